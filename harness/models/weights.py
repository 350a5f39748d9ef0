"""Where the weights of a run come from, and what makes them these: order, digests, the towers that lie elsewhere.

Order: `--weights PATH`, what ships with the package, the local Hub cache, the Hub when it can be reached, else random
weights with a plain notice.
Deciding (`resolve`) needs no torch and takes seconds where there is no network.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec

from harness import cards, hub
from harness.errors import WeightsError
from harness.files import digest_bytes, digest_file
from harness.models.card import Hub, ModelCard, load_model_card
from harness.models.checkpoints import Tensors, is_complete, refusal, visible

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
    # the cell's identity is of every file that the number depends on
    parts = [source.digest, *(f"{name} {tower.digest}" for name, tower in sorted(towers.items()))]
    return replace(source, digest=digest_bytes("\n".join(parts).encode()), towers=towers)


def _resolve(card: ModelCard, asked: str | None, offline: bool) -> Source:
    if asked == "random":
        return Source(
            "random", folder=_kept(card), notice="random weights, as asked: times are real, answers mean nothing"
        )
    if asked is not None:
        folder = Path(asked).expanduser()
        if folder.is_file():
            raise WeightsError(f"--weights {asked}: a file, not a folder; next: give the checkpoint's folder")
        if not folder.is_dir():
            raise WeightsError(f"--weights {asked}: no such folder; next: give a checkpoint's folder, or `random`")
        return Source("local", folder, digest=digest(folder))
    kept = _kept(card)
    if kept and is_complete(kept):
        return Source("shipped", kept, digest=digest(kept)) if card.shipped else _of_hub("cache", card, kept)
    fetched, reason = None, "the card names no Hub repository"
    if card.hub:
        fetched, reason = hub.fetch_model(card.hub.repo, card.hub.revision, card.hub.files, offline)
    if fetched:
        return _of_hub("hub", card, fetched)
    notice = f"{reason}: random weights of the exact architecture (times are real, answers mean nothing)"
    if card.hub and present(small := load_model_card(SHIPPED_MODEL)):
        notice += f"; for answers that can be scored: --model {small.name}, a small model that ships with the package"
    return Source("random", folder=kept, notice=notice)


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
            found[encoder.name] = Source("local", inside, digest=digest(inside))
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


def digest(folder: Path) -> str:
    """Return the digest of all weight, configuration and tokenizer files of a checkpoint's folder."""
    total = hashlib.blake2b(digest_size=16)
    for path in visible(folder, "*"):
        if path.suffix in DIGESTED:
            total.update(path.name.encode())
            total.update(bytes.fromhex(digest_file(path)))
    return total.hexdigest()
