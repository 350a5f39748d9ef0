"""What the user asks of a measurement: one field a wish, its default and its words, written once.

The command line, plans and child processes are made from these fields (`command.py`).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from harness.errors import SettingError
from harness.measure.stopping import Rule, rule_of

Protocol = Literal["ttft", "paper"]
PROTOCOLS: tuple[Protocol, ...] = ("ttft", "paper")

Setting = str | int | float | bool

RULE = Rule()
"""Its defaults are the stopping rule's own."""


def wish(default: object, words: str, flag: str | None = None, **more: object) -> Any:
    """Return a field of `Asked`: its default, what `--help` says, and its flag where that is not its name."""
    metadata = {"help": words, "flag": flag, **more}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user asked for, as typed; `None` is "decide for me"."""

    model: str = wish("fastvlm-0.5b", "A model of `harness list models`, a card file, a checkpoint's folder, a Hub id.")
    suite: str = wish("docvqa", "A suite of `harness list suites`, or a card file.")
    res: int | None = wish(None, "Input side in pixels, by the model's own rule (docs/models.md). Default: the card's.")
    device: str = wish("cpu", "cpu, cuda, cuda:1, mps, fake; of a sweep also cuda:all. Default: the best one here.")
    dtype: str | None = wish(None, "Precision. Default: the device's own.", choices=("float32", "bfloat16", "float16"))
    weights: str | None = wish(None, "A checkpoint's folder, or `random`. Default: Hub cache, Hub, else random.")
    data: str | None = wish(None, "Parquet file or folder with the suite's columns, instead of the Hub's data.")
    limit: int | None = wish(None, "Only the first N examples.")
    protocol: Protocol = wish(
        "ttft",
        "ttft: bytes in memory to first token; paper: encoder + prefill of the visual tokens, added up.",
        choices=PROTOCOLS,
    )
    engine: str = wish("torch", "torch; mlx or coreml+mlx on a Mac.")
    seed: int = wish(0, "Seed of random weights.")
    settings: Mapping[str, Setting] = wish(
        {}, "A setting of the model's card or of the engine (docs/reference.md).", "set", metavar="NAME=VALUE"
    )
    isolate: bool = wish(False, "Load encoders and LLM one by one; add up their times.", "isolate-stages")
    part: str | None = wish(None, "The one part to load.", hidden=True)
    repetition: int = wish(0, "Which process of the cell this is.", hidden=True)
    decode_tokens: int = wish(16, "Number of tokens of a timed answer.")
    threads: int | None = wish(None, "Number of CPU threads for torch. Default: torch's own.")
    minimum_samples: int = wish(RULE.minimum_samples, "Minimum number of timed samples.", "min-samples")
    minimum_seconds: float = wish(RULE.minimum_seconds, "Minimum time of measuring, in seconds.", "min-seconds")
    maximum_samples: int = wish(RULE.maximum_samples, "Maximum number of timed samples.", "max-samples")
    maximum_seconds: float = wish(RULE.maximum_seconds, "Maximum time of measuring, in seconds.", "max-seconds")
    precision: float = wish(RULE.precision, "Stop when the 95 % interval of the median is within ± this fraction.")
    offline: bool = wish(False, "Do not ask the Hub.")
    no_stand_in: bool = wish(False, "Refuse random weights, or generated pages, in place of what cannot be had.")
    wait: bool = wish(False, "Wait for a device that another run holds.")
    endpoint: str | None = wish(
        None, "URL of a server that speaks OpenAI's API, as http://localhost:8000/v1; --model is its name there."
    )
    concurrency: int = wish(1, "Number of questions that a server is asked at a time, once timing has stopped.")
    load: str | None = wish(
        None, "Numbers of requests at a time to time a server under, as 1,2,4,8: a series of its own.", metavar="N,N"
    )
    skip_energy: bool = wish(False, "Do not repeat short stages to read what they draw: 10 s a cell on a GPU.")
    shards: int = wish(1, "Split the scoring of a cell over so many jobs or devices; the first one times alone.")
    shard: int = wish(0, "Which of them this process is: 1, 2, ...", hidden=True)
    out: str = wish("results", "Folder for run logs.")

    def __post_init__(self) -> None:
        """Refuse a number that no machine could mean, whoever says it: the command line, a plan, a program."""
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if name == "res" and self.endpoint:
                least = 0  # a server is sent each file's own bytes
            if value is not None and not least <= value <= most:  # NaN is neither
                flag = "--" + (FIELDS[name].metadata["flag"] or name.replace("_", "-"))
                raise SettingError(f"{flag} {str(value)[:40]}: must be from {least} to {most}")

    @property
    def load_levels(self) -> tuple[int, ...]:
        """The numbers of requests at a time of `--load`; raises `SettingError` for what is none."""
        texts = self.load.split(",") if self.load else []
        if not all(text.strip().isdecimal() and int(text) for text in texts):
            raise SettingError(f"--load {self.load}: write whole numbers from 1 with commas between, as --load 1,2,4,8")
        return tuple(dict.fromkeys(int(text) for text in texts))

    @property
    def rule(self) -> Rule:
        """The stopping rule that was asked for; raises `SettingError` for one that cannot be."""
        return rule_of(self)


RANGES = {
    "res": (1, 65536), "limit": (1, 10**9), "seed": (-(2**63), 2**63 - 1), "repetition": (0, 10**6),
    "decode_tokens": (1, 100_000), "threads": (1, 4096), "minimum_samples": (0, 10**9), "maximum_samples": (1, 10**9),
    "minimum_seconds": (0, 10**7), "maximum_seconds": (0, 10**7), "precision": (0, 10**3), "concurrency": (1, 10**5),
    "shards": (1, 1000), "shard": (0, 1000),
}  # fmt: skip
"""What a number may be; what the model or the machine can take is asked of them."""

FIELDS = {field.name: field for field in dataclasses.fields(Asked)}
"""The wishes by name, with their defaults and their words."""
