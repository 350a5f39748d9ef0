"""What makes two run logs one cell's: model, weights, suite, resolution, platform, protocol and all the rest."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from harness.errors import LogError
from harness.runlog.log import Log

Platform = tuple[str, ...]
"""Machine, device, engine, precision and threads: times are comparable only where all of these are equal."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """A cell, as its logs' headers name it. What a header does not say is empty, or None where it is a number."""

    machine: str
    model: str
    model_digest: str
    weights: str
    weights_digest: str
    suite: str
    asked_suite: str
    suite_digest: str
    """Of the suite's card: another length of answer or another metric is another cell."""
    data: str
    data_digest: str
    resolution: int
    """Pixels of a side, as requested."""
    device: str
    engine: str
    dtype: str
    protocol: str
    seed: int | None
    settings: str
    limit: int | None
    isolate: bool
    decode_tokens: int | None
    threads: int | None
    endpoint: str = ""
    """The server's URL, for a served model: another server is another cell."""
    concurrency: int = 1

    @property
    def name(self) -> str:
        """The cell's readable name; no other cell has it, for each field is in it."""
        parts = [self.machine, self.suite, self.model, f"{self.resolution}px", self.device, self.engine, self.dtype]
        parts += [self.protocol, self.weights, self.weights_digest, f"{self.data} data" if self.data else ""]
        parts = [part for part in parts if part]
        parts += [f"for {self.asked_suite}"] if self.asked_suite not in ("", self.suite) else []
        parts += ["isolated"] if self.isolate else []
        parts += [self.settings] if self.settings else []
        parts += [f"at {self.endpoint}"] if self.endpoint else []
        parts += [f"concurrency={self.concurrency}"] if self.concurrency > 1 else []
        named = ("limit", "seed", "threads", "decode_tokens", "suite_digest", "data_digest", "model_digest")
        values = ((name, getattr(self, name)) for name in named)
        return " ".join([*parts, *(f"{name}={value}" for name, value in values if value not in (None, ""))])

    @property
    def label(self) -> str:
        """The model and its settings: what a table's row or a figure's series is called."""
        return f"{self.model} {self.settings}".strip()

    @property
    def title(self) -> str:
        """A name for people: what was run, where it matters for telling cells apart."""
        parts = [self.label, f"{self.resolution} px", self.suite, self.device, self.dtype]
        parts += [self.protocol if self.protocol != "ttft" else "", "isolated" if self.isolate else ""]
        return " ".join(part for part in parts if part)

    @property
    def questions(self) -> tuple[str, ...]:
        """What must be equal for two cells' accuracies to be comparable."""
        return (self.suite, self.suite_digest, self.data_digest, str(self.limit or ""))

    @property
    def platform(self) -> Platform:
        """What must be equal for two cells' times to be comparable."""
        where = (self.machine, self.device, self.engine, self.endpoint or self.dtype)
        return where if self.threads is None else (*where, f"{self.threads} thread{'' if self.threads == 1 else 's'}")

    def text(self, name: str) -> str:
        """Return one of its fields as text, nothing where there is none."""
        value = getattr(self, name)
        return "" if value is None else str(value)

    @property
    def order(self) -> tuple[str | int, ...]:
        """What cells are sorted by: machine, suite, model, resolution, then everything else."""
        first = ("machine", "suite", "model", "resolution", "device", "dtype", "protocol", "isolate")
        rest = (field.name for field in fields(self) if field.name not in first)
        values = ((name, getattr(self, name)) for name in (*first, *rest))
        return tuple(value if name == "resolution" else str(value or "") for name, value in values)


FIELDS = tuple(field.name for field in fields(Configuration))


def told_apart_by(cells: Iterable[Configuration], names: Iterable[str], known: Sequence[str] = ()) -> list[str]:
    """Return which of the fields `names` it takes, one after the other, to tell these cells apart beyond `known`."""
    several, chosen = list(cells), list(known)

    def kinds(by: Sequence[str]) -> int:
        return len({tuple(getattr(one, name) for name in by) for one in several})

    for name in names:
        if kinds([*chosen, name]) > kinds(chosen):
            chosen.append(name)
    return chosen[len(known) :]


def of(log: Log) -> Configuration:
    """Return the cell of a run log. Raises `LogError` where its header names no resolution."""
    cell = log.header.cell

    def text(name: str) -> str:
        return str(cell.get(name) or "")

    def number(name: str) -> int | None:
        value = cell.get(name)
        return int(value) if isinstance(value, int | float) else None

    resolution, settings = number("resolution"), cell.get("settings") or {}
    if resolution is None:
        raise LogError(f"its header names no resolution ({cell.get('resolution')!r}); next: measure the cell anew")
    return Configuration(
        machine=machine(log),
        model=text("model"),
        model_digest=text("model_digest"),
        weights=text("weights"),
        weights_digest=text("weights_digest"),
        suite=text("suite"),
        asked_suite=text("asked_suite"),
        suite_digest=text("suite_digest"),
        data=text("data"),
        data_digest=text("data_digest"),
        resolution=resolution,
        device=text("device"),
        engine=text("engine"),
        dtype=text("dtype"),
        protocol=text("protocol"),
        seed=number("seed"),
        settings=" ".join(f"{k}={v}" for k, v in sorted(settings.items())) if isinstance(settings, dict) else "",
        limit=_limit(number("limit"), log.header.data.get("examples")),
        isolate=bool(cell.get("isolate")),
        decode_tokens=number("decode_tokens"),
        threads=number("threads"),
        endpoint=text("endpoint"),
        concurrency=number("concurrency") or 1,
    )


def _limit(limit: int | None, examples: object) -> int | None:
    """Return the limit where it cut the suite short, so far as the log says: one beyond the suite's end is none."""
    return None if limit is not None and str(examples).isdigit() and int(str(examples)) < limit else limit


def machine(log: Log) -> str:
    """Return the machine that a log was measured on; where its header has no name, its folder's."""
    return str(log.header.environment.get("machine") or log.path.parent.name or "unknown")


def part(log: Log) -> str:
    """Return the part of the model that was loaded alone, or nothing."""
    return str(log.header.cell.get("part") or "")


def repetition(log: Log) -> int:
    """Return which fresh process of the cell this was, from 0."""
    return int(str(log.header.cell.get("repetition") or 0))
