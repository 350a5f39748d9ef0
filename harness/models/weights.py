"""Where the weights of a run come from, and what makes them these: order, digests, the towers that lie elsewhere.

Order: `--weights PATH`, what ships with the package, the local Hub cache, the Hub when it can be reached, else random
weights with a plain notice.
Deciding (`resolve`) needs no torch and takes seconds where there is no network.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import msgspec

from harness import cards, hub
from harness.errors import WeightsError
from harness.files import digest_bytes, digest_file
from harness.models.card import Hub, ModelCard, load_model_card
from harness.models.checkpoints import Tensors, is_complete, passed_over, refusal, visible, weight_files

Settings = Mapping[str, str | int | float | bool]
Kind = Literal["local", "shipped", "cache", "hub", "random", "served"]

SHIPPED_MODEL = "fastvlm-nano"
"""The card whose trained weights come with the package: what is offered where no others can be had."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where the weights of a run come from; `notice` is what the user must be told about it."""

    kind: Kind
    folder: Path | None = None
    """The checkpoint's folder; with random weights, a folder that only lends its tokenizer, or None."""
    digest: str = ""
    notice: str = ""
    repository: str = ""
    """The Hub repository and, after an @, its commit; empty for what is local, shipped or random."""
    towers: Mapping[str, "Source"] | None = None
    """Encoders whose weights lie elsewhere, by the encoder's name; None: nobody has looked yet."""
    stamps: Mapping[str, tuple[int, ...]] | None = field(default=None, compare=False, repr=False)
    """Size, times and inode of the files in the digest, by name; None where the Hub's commit is the digest."""

    @property
    def trained(self) -> bool:
        """False for random weights, which are never scored as a model's accuracy."""
        return self.kind != "random"

    def as_dict(self) -> dict[str, str]:
        """Return what the log says; what ships with the package is named as the package has it, on any machine."""
        folder = self.folder
        if folder and folder.is_relative_to(cards.ROOT):
            folder = folder.relative_to(cards.ROOT)
        told = {"source": self.kind, "location": str(folder or ""), "digest": self.digest, "notice": self.notice}
        if self.repository:
            told["repository"] = self.repository
        for name, tower in (self.towers or {}).items():
            told[f"tower_{name}"] = f"{tower.repository or tower.folder} ({tower.digest})"
        return told


def resolve(card: ModelCard, asked: str | None, offline: bool = False, settings: Settings | None = None) -> Source:
    """Decide where the weights of `card` come from, and those of encoders that have a repository of their own.

    `asked` is the value of `--weights`: a folder, `random`, or None for the stated order. `settings` are those asked
    for with `--set`: one of them can send an encoder to its own repository.
    """
    if asked is None and card.folder:
        asked = card.folder
    source = _resolve(card, asked, offline)
    if not source.trained or not source.folder:
        return source
    reason = refusal(source.folder)
    if reason:
        raise WeightsError(f"{source.folder}: {reason}")
    towers = find_towers(card, source.folder, offline, settings)
    if not towers:
        return replace(source, towers={})
    told = {name: tower.digest for name, tower in towers.items()}
    return replace(source, digest=with_towers(source.digest, told), towers=towers)


def with_towers(digest: str, towers: Mapping[str, str]) -> str:
    """Return the digest of a checkpoint with its towers', by their names: of every file that the number depends on."""
    parts = [digest, *(f"{name} {one}" for name, one in sorted(towers.items()))]
    return digest_bytes("\n".join(parts).encode()) if towers else digest


def _resolve(card: ModelCard, asked: str | None, offline: bool) -> Source:
    if asked == "random":
        return _random(card, "random weights, as asked: times are real, answers mean nothing")
    if asked is not None:
        folder = Path(asked).expanduser()
        if folder.is_file():
            raise WeightsError(f"--weights {asked}: a file, not a folder; next: give the checkpoint's folder")
        if not folder.is_dir():
            raise WeightsError(f"--weights {asked}: no such folder; next: give a checkpoint's folder, or `random`")
        return _digested("local", folder)
    kept = _kept(card)
    if kept and is_complete(kept):
        return _digested("shipped", kept) if card.shipped else _of_hub("cache", card, kept)
    fetched, reason = None, "the card names no Hub repository"
    if card.hub:
        fetched, reason = hub.fetch_model(card.hub.repo, card.hub.revision, card.hub.files, offline)
    if fetched:
        return _of_hub("hub", card, fetched)
    notice = f"{reason}: random weights of the exact architecture (times are real, answers mean nothing)"
    if card.hub and present(small := load_model_card(SHIPPED_MODEL)):
        notice += f"; for answers that can be scored: --model {small.name}, a small model that ships with the package"
    return _random(card, notice)


def _random(card: ModelCard, notice: str) -> Source:
    """Return random weights with what a folder lends them: its tokenizer decides how long a question is."""
    kept = _kept(card)
    return Source("random", folder=kept, digest=digest(kept, lent=True) if kept else "", notice=notice)


def _digested(kind: Kind, folder: Path) -> Source:
    """Return the folder's weights with its digest, and with what tells later that it is still that."""
    stamps = _stamps(folder)  # before the digest: what changes meanwhile is seen too
    return Source(kind, folder, digest=digest(folder), notice=passed_over(folder), stamps=stamps)


def check_unchanged(source: Source) -> None:
    """Refuse weights that changed between their digest and now, when they are loaded. Raises `WeightsError`."""
    for one in (source, *(source.towers or {}).values()):
        if one.folder is None or one.stamps is None:
            continue
        now = _stamps(one.folder)
        other = next((name for name in {**one.stamps, **now} if one.stamps.get(name) != now.get(name)), None)
        if other:
            raise WeightsError(
                f"{one.folder}: {other} changed while it was read, so no digest tells what was loaded; next: wait "
                "until it is written, and run again"
            )


def _of_hub(kind: Kind, card: ModelCard, snapshot: Path) -> Source:
    assert card.hub
    return Source(kind, snapshot, digest=snapshot.name, repository=f"{card.hub.repo}@{snapshot.name}")


TOWER_FOLDER = "vision_tower"
"""The subfolder of a checkpoint's folder that may hold its one tower's own repository."""


def find_towers(card: ModelCard, folder: Path, offline: bool, settings: Settings | None = None) -> dict[str, Source]:
    """Return where the encoders lie whose weights are not in the checkpoint's own files, by the encoder's name.

    An encoder's folder inside the checkpoint's comes first: `<its name>`, or `vision_tower` where there is one encoder.
    Else, unless the checkpoint has the encoder's tensors, it is its repository in the Hub's cache or on the Hub; one
    that is in neither is left out, for it may not be needed.
    """
    found = {}
    names: list[str] | None = None
    settings = settings or {}
    for encoder in card.encoders:
        places = [folder / encoder.name, *([folder / TOWER_FOLDER] if len(card.encoders) == 1 else [])]
        inside = next((place for place in places if place.is_dir()), None)
        if inside:
            found[encoder.name] = _digested("local", inside)
        elif encoder.repo:
            names = list(Tensors(folder)) if names is None else names
            own = any(name.startswith(("vision_tower.", "model.vision_tower.")) for name in names)
            if own and settings.get("tower", card.settings.get("tower", "checkpoint")) == "checkpoint":
                continue
            tower = _tower(card, encoder.repo, offline)
            if tower:
                found[encoder.name] = tower
    return found


def towers_of(card: ModelCard, source: Source, settings: Settings) -> Mapping[str, Source]:
    """Return the towers that `resolve` found, or where nobody has looked yet those on this machine."""
    if source.towers is not None or not source.folder:
        return source.towers or {}
    return find_towers(card, source.folder, offline=True, settings=settings)


def _tower(card: ModelCard, repo: str, offline: bool) -> Source | None:
    """Return the tower's repository, with its safetensors or else its pickles: both would be fetched twice over."""
    for pattern in ("*.safetensors", "*.bin"):
        files = (pattern, "*.json")
        asked = msgspec.structs.replace(card, hub=Hub(repo=repo, files=files), shipped="")
        kept = hub.cached_model(repo, None, files)
        if kept and visible(kept, pattern) and is_complete(kept):
            return _of_hub("cache", asked, kept)
        fetched, _ = hub.fetch_model(repo, None, files, offline)
        if fetched and visible(fetched, pattern):
            return _of_hub("hub", asked, fetched)
    return None


def present(card: ModelCard) -> bool:
    """Return whether the card's weights are on this machine."""
    kept = _kept(card)
    return bool(kept and is_complete(kept))


def _kept(card: ModelCard) -> Path | None:
    """Return the folder on this machine that has the card's weights, or some of them."""
    if card.folder:
        return Path(card.folder)
    if card.shipped:
        return cards.ROOT / "models" / card.shipped
    return hub.cached_model(card.hub.repo, card.hub.revision, card.hub.files) if card.hub else None


DIGESTED = (".safetensors", ".bin", ".json", ".model", ".txt", ".jinja", ".tiktoken")


TENSORS = (".safetensors", ".bin")
TEMPLATES = "additional_chat_templates"
"""The one folder inside a checkpoint's that transformers reads templates from."""


def digest(folder: Path, lent: bool = False) -> str:
    """Return the digest of all weight, configuration and tokenizer files of a checkpoint's folder.

    With `lent`, of those that serve random weights too: all but the tensors and their indices.
    """
    total = hashlib.blake2b(digest_size=16)
    for path in digested(folder):
        if lent and (path.suffix in TENSORS or path.name.endswith(".index.json")):
            continue
        total.update(path.relative_to(folder).as_posix().encode())
        total.update(bytes.fromhex(digest_file(path)))
    return total.hexdigest()


def digested(folder: Path) -> list[Path]:
    """Return the files that make a checkpoint these weights: those beside each other, and what they name elsewhere."""
    beside = [path for path in visible(folder, "*") if path.suffix in DIGESTED and path.is_file()]
    templates = visible(folder / TEMPLATES, "*.jinja")
    try:
        named = [path for path in weight_files(folder) if path.is_file() and path not in beside]
    except WeightsError:
        named = []  # an index that is none: the loader says so
    inside = [path for path in named if path.is_relative_to(folder)]
    return [*beside, *templates, *inside]


def _stamps(folder: Path) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for path in digested(folder):
        stat = path.stat()
        found[path.name] = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    return found
