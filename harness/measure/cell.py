"""From cards and options to frozen `Cell`s with keys; the last place where anything is defaulted."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from harness import plugins
from harness.errors import SettingError
from harness.machine import backend
from harness.measure.stopping import Rule
from harness.models.card import ModelCard, check_settings, check_side, load_model_card
from harness.runlog.records import SCHEMA
from harness.suites.card import SuiteCard, load_suite_card

Protocol = Literal["ttft", "paper"]
PROTOCOLS: tuple[Protocol, ...] = ("ttft", "paper")

Setting = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user asked for, as typed; `None` is "decide for me"."""

    model: str = "fastvlm-0.5b"
    suite: str = "docvqa"
    res: int | None = None
    device: str = "cpu"
    dtype: str | None = None
    weights: str | None = None
    data: str | None = None
    limit: int | None = None
    protocol: Protocol = "ttft"
    engine: str = "torch"
    seed: int = 0
    settings: Mapping[str, Setting] = field(default_factory=dict)
    isolate: bool = False
    part: str | None = None
    repetition: int = 0
    decode_tokens: int = 16
    threads: int | None = None
    minimum_samples: int = 8
    minimum_seconds: float = 2.0
    maximum_samples: int = 200
    maximum_seconds: float = 120.0
    precision: float = 0.02
    offline: bool = False
    wait: bool = False
    """Whether to wait for a device that another run holds."""
    out: str = "results"


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

    def as_dict(self) -> dict[str, Any]:
        """Return the cell for the log's header."""
        return {**asdict(self), "settings": dict(self.settings)}

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
        return " ".join([self.suite, self.model, f"{self.resolution}px", self.device, self.dtype, *special])

    def path(self, out: Path, machine: str) -> Path:
        """Return where the finished log of this cell lies: `<out>/<machine>/<title>-<key>.jsonl`."""
        name = re.sub(r"[^A-Za-z0-9.+-]+", "-", f"{self.title}-{self.key}")
        return out / machine / f"{name}.jsonl"


def settle(asked: Asked) -> tuple[Asked, ModelCard, SuiteCard, list[str]]:
    """Check what was asked against the cards and settle every default that needs no data and no weights.

    Returns the settled wishes, the two cards, and notices about what was changed. Raises `UnknownName`, `CardError` or
    `SettingError`.
    """
    card, suite = load_model_card(asked.model), load_suite_card(asked.suite)
    notices = []
    side = card.resolution.default if asked.res is None else asked.res
    if card.resolution.rule == "fixed":
        if side != card.resolution.default:
            notices.append(f"{card.name} has fixed input sizes: --res {side} is measured as its one point")
        side = card.resolution.default
    check_side(card, side)
    if asked.protocol not in PROTOCOLS:
        raise SettingError(f"--protocol {asked.protocol}: known: {', '.join(PROTOCOLS)}")
    backend.of(asked.device)
    runner = engine(asked.engine)
    device = runner.place(asked.device)
    dtype = asked.dtype or backend.of(device).dtype()
    own = {name: value for name, value in asked.settings.items() if name in runner.SETTINGS}
    settings = check_settings(card, {k: v for k, v in asked.settings.items() if k not in own})
    changed = {name: value for name, value in settings.items() if card.settings[name] != value}
    changed |= {name: value for name, value in own.items() if runner.SETTINGS[name] != value}
    at_least_one = {"--limit": asked.limit, "--threads": asked.threads, "--decode-tokens": asked.decode_tokens}
    for name, value in at_least_one.items():
        if value is not None and value < 1:
            raise SettingError(f"{name} {value}: must be at least 1")
    rule(asked)
    isolate = asked.isolate and card.llm is not None
    if asked.isolate and not isolate:
        notices.append(f"{card.name} is an encoder alone: --isolate-stages changes nothing")
    settled = replace(asked, res=side, device=device, dtype=dtype, settings=changed, isolate=isolate)
    return settled, card, suite, notices


def rule(asked: Asked | Cell) -> Rule:
    """Return the stopping rule that was asked for; raises `SettingError` for one that cannot be."""
    return Rule(
        minimum_samples=asked.minimum_samples,
        minimum_seconds=asked.minimum_seconds,
        maximum_samples=asked.maximum_samples,
        maximum_seconds=asked.maximum_seconds,
        precision=asked.precision,
    )


def engine(name: str) -> ModuleType:
    """Return the engine `name` ("torch", "mlx", "coreml+mlx"): a plug-in with `place`, `SETTINGS` and `load`."""
    known = [one.replace("_", "+") for one in plugins.names("engines")]
    if name not in known:
        raise SettingError(f"--engine {name}: known: {', '.join(known)}")
    return plugins.load("engines", name.replace("+", "_"))
