"""From what was asked to a frozen `Cell` with its key; the last place where anything is defaulted."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType

from harness import files, plugins
from harness.errors import HarnessError, SettingError, UnknownName
from harness.machine import backend, pool
from harness.measure import sampling
from harness.measure.asked import PROTOCOLS, Asked, Protocol, Setting
from harness.measure.stopping import Rule, rule_of
from harness.models.card import ModelCard, check_settings, check_side
from harness.models.memory_format import Subject
from harness.models.synthesis import model_card
from harness.runlog.records import SCHEMA
from harness.suites.card import SuiteCard, load_suite_card


@dataclass(frozen=True, slots=True)
class Cell:
    """One fully resolved measurement. Everything that could change a number is here, and so in the key."""

    model: str
    model_digest: str
    weights: str
    """local, cache, hub or random."""
    weights_digest: str
    suite: str
    """Whose data these are: `pages` when it stands in for another suite."""
    asked_suite: str
    suite_digest: str
    data: str
    """hub, local or embedded."""
    data_digest: str
    resolution: int
    device: str
    engine: str
    dtype: str
    protocol: Protocol
    seed: int
    settings: Mapping[str, Setting]
    limit: int | None
    isolate: bool
    part: str | None
    repetition: int
    decode_tokens: int
    threads: int | None
    minimum_samples: int
    minimum_seconds: float
    maximum_samples: int
    maximum_seconds: float
    precision: float
    sampling: str = sampling.VERSION
    """How the timed examples are drawn; with the seed it names their order."""
    endpoint: str = ""
    """The URL of a served model; here and in what follows, empty values are left out of the key."""
    concurrency: int = 1
    load: tuple[int, ...] = ()

    @property
    def rule(self) -> Rule:
        """When to stop."""
        return rule_of(self)

    def as_dict(self) -> dict[str, object]:
        """Return the cell for the log's header."""
        told = {**asdict(self), "settings": dict(self.settings)}
        return {name: value for name, value in told.items() if name not in SERVED or value != SERVED[name]}

    @property
    def key(self) -> str:
        """The digest of all of it, and of the log's schema."""
        text = json.dumps([SCHEMA, self.as_dict()], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def title(self) -> str:
        """A readable name: suite, model, resolution, device, precision and what is special."""
        special: list[str] = [self.protocol] if self.protocol != "ttft" else []
        special += [f"part {self.part}"] if self.part else []
        special += [f"process {self.repetition + 1}"] if self.repetition else []
        special += [f"{name}={value}" for name, value in sorted(self.settings.items())]
        side = f"{self.resolution}px" if self.resolution else "own-size"
        return " ".join([self.suite, self.model, side, self.device, *([] if self.endpoint else [self.dtype]), *special])

    def path(self, out: Path, machine: str) -> Path:
        """Return where the finished log of this cell lies: `<out>/<machine>/<title>-<key>.jsonl`."""
        title = re.sub(r"[^A-Za-z0-9.+-]+", "-", f"{self.title}-")
        most = 255 - len(f"-{self.key}.jsonl.part")  # of bytes, on every usual file system; the key tells cells apart
        return out / machine / f"{title[:-1][:most]}-{self.key}.jsonl"


SERVED: Mapping[str, object] = {"endpoint": "", "concurrency": 1, "load": ()}
"""Fields of a served model's cell with their defaults: left out of others' keys, which stay as they were."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What was asked, with every default decided that needs no data and no weights: nothing here is optional."""

    asked: Asked
    """The same wishes with these decisions in them, for a child process or a reader to ask again."""
    card: ModelCard
    suite: SuiteCard
    resolution: int
    device: str
    dtype: str
    settings: Mapping[str, Setting]
    """The card's and the engine's settings that differ from their defaults."""
    isolate: bool
    notices: tuple[str, ...]
    """What was changed of what was asked."""
    decisions: tuple[str, ...] = ()
    """What the engine decided by trial, and why: for the log."""


def settle(asked: Asked, here: bool = True) -> Settled:
    """Check what was asked against the cards and decide what is left open.

    Where it will not be measured `here`, but in a job on another machine, the device is not asked: no precision is
    decided (the text is empty), and no trial made. Raises `UnknownName`, `CardError` or `SettingError`.
    """
    asked = _placed(asked)
    runner = engine(asked.engine)
    # A server's model has no card: its engine makes one of its name.
    card = runner.card(asked.model) if hasattr(runner, "card") else model_card(asked.model, asked.offline)
    suite = load_suite_card(asked.suite)
    notices = [f"{card.name}: {card.notes}"] if card.adapter == "auto" and card.folder else []
    side = card.resolution.default if asked.res is None else asked.res
    if card.resolution.rule == "fixed":
        if side != card.resolution.default:
            notices.append(f"{card.name} has fixed input sizes: --res {side} is measured as its one point")
        side = card.resolution.default
    check_side(card, side)
    _check(asked)
    _check_part(card, asked.part)
    device = runner.place(asked.device)
    dtype = asked.dtype or (backend.of(device).dtype() if here else "")
    notices += backend.of(device).doubts(dtype) if here else ()  # before hours are spent, not only in the log
    wishes = _changed(card, runner, asked.settings)
    settings, decisions = wishes, tuple[str, ...]()
    if here and hasattr(runner, "decide"):  # the key names what takes effect, never "auto"
        subject = Subject(asked.model, card.digest, side, device, dtype, asked.threads, {})
        settings, decisions = runner.decide(wishes, subject, asked.wait)
    isolate = asked.isolate and card.llm is not None
    if asked.isolate and not isolate:
        why = "runs by transformers' own code" if card.adapter == "auto" else "is an encoder alone"
        notices.append(f"{card.name} {why}: --isolate-stages changes nothing")
    told = None if asked.endpoint else dtype or None
    decided = replace(asked, res=side, device=device, dtype=told, settings=wishes, isolate=isolate)
    return Settled(decided, card, suite, side, device, dtype, settings, isolate, tuple(notices), decisions)


def unseen(model: str, offline: bool) -> bool:
    """Return whether `--model` names a folder or a Hub id that cannot be seen from here, and may be from a job."""
    if "/" not in model or model.endswith(".toml"):
        return False
    try:
        model_card(model, offline)
    except HarnessError:
        return not files.is_folder(Path(model).expanduser())
    return False


def _placed(asked: Asked) -> Asked:
    """Return what was asked with the engine and the device that `--endpoint` means; refuse what a server cannot do."""
    if not asked.endpoint:
        beyond = {"--engine openai": asked.engine == "openai", "--concurrency": asked.concurrency != 1}
        beyond["--load"] = asked.load is not None
        for name, given in beyond.items():
            if given:
                raise SettingError(f"{name}: for served models; next: --endpoint URL")
        return asked
    own = {
        "--shards": asked.shards != 1,
        f"--engine {asked.engine}": asked.engine not in ("torch", "openai"),
        f"--dtype {asked.dtype}": asked.dtype is not None,
        f"--threads {asked.threads}": asked.threads is not None,
        "--isolate-stages": asked.isolate,
        "--protocol paper": asked.protocol != "ttft",
    }
    for name, given in own.items():
        if given:
            raise SettingError(f"{name}: a server decides that itself, or cannot do it; next: leave it out")
    if asked.concurrency < 1:
        raise SettingError(f"--concurrency {asked.concurrency}: must be at least 1")
    _ = asked.load_levels
    runner = engine("openai")
    return replace(asked, engine="openai", device=runner.device_of(asked.endpoint), endpoint=runner.url(asked.endpoint))


def _check(asked: Asked) -> None:
    """Refuse what no card and no device can take."""
    if asked.protocol not in PROTOCOLS:
        raise SettingError(f"--protocol {asked.protocol}: known: {', '.join(PROTOCOLS)}")
    backend.of(asked.device)
    if pool.is_pool(asked.device):
        raise SettingError(f"--device {asked.device}: several devices, for `harness sweep`; next: name one")
    at_least_one = {"--limit": asked.limit, "--threads": asked.threads, "--decode-tokens": asked.decode_tokens}
    for name, value in at_least_one.items():
        if value is not None and value < 1:
            raise SettingError(f"{name} {value}: must be at least 1")
    if asked.shard > asked.shards or (asked.shards > 1 and asked.isolate):
        raise SettingError(f"--shards {asked.shards}: not shard {asked.shard}, and not with --isolate-stages")
    _ = asked.rule


def _check_part(card: ModelCard, part: str | None) -> None:
    if part is not None and part not in card.part_names:
        raise UnknownName(f"part of {card.name}", part, card.part_names)


def _changed(card: ModelCard, runner: ModuleType, given: Mapping[str, Setting]) -> dict[str, Setting]:
    """Return the settings, the card's or the engine's, that `given` changes; refuse those that neither has."""
    for name in given:
        if name not in card.settings and name not in runner.SETTINGS:
            raise UnknownName(f"setting of {card.name}", name, {**card.settings, **runner.SETTINGS})
    own = {name: value for name, value in given.items() if name in runner.SETTINGS}
    settings = check_settings(card, {name: value for name, value in given.items() if name not in own})
    changed = {name: value for name, value in settings.items() if card.settings[name] != value}
    changed |= {name: value for name, value in own.items() if runner.SETTINGS[name] != value}
    return runner.distinct(card, changed) if hasattr(runner, "distinct") else changed


def engine(name: str) -> ModuleType:
    """Return the engine `name` ("torch", "mlx", "coreml+mlx"): a plug-in with `place`, `SETTINGS` and `load`."""
    known = [one.replace("_", "+") for one in plugins.names("engines")]
    if name not in known:
        raise SettingError(f"--engine {name}: known: {', '.join(known)}")
    return plugins.load("engines", name.replace("+", "_"))
