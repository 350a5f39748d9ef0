"""What one measurement came to, as `harness run` and `harness show` print it: a summary row in words and rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from harness.errors import LogError
from harness.models.protocol import STAGES, Work
from harness.reports import accuracy, frame, summary
from harness.runlog.log import Log
from harness.units import milliseconds, size

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One summary row with its logs."""

    row: Row
    flops: Mapping[str, int]
    of_roofline: Mapping[str, float]
    """By stage, the least time its FLOPs and weight bytes could take at the machine's peaks, over the time it took."""
    failures: tuple[str, ...]
    """A line for each example that failed: what, where, what next."""

    @property
    def failed(self) -> bool:
        """Whether anything that was asked for is missing from the result."""
        return bool(self.failures) or self.row["n"] == 0

    def as_dict(self) -> dict[str, Any]:
        """Return facts, stage rows, what else there is to say, and doubts: all that the table and `--json` show."""
        row = self.row
        return {
            "facts": _facts(row),
            "stages": [self._stage(name) for name in (*STAGES, "ttft") if _number(row, f"{name}_ns") is not None],
            "also": _also(row),
            "doubts": list(row["doubts"]),
            "accuracy": _accuracy(row),
            "logs": list(row["logs"]),
        }

    def _stage(self, name: str) -> dict[str, Any]:
        row = self.row
        return {
            "stage": _stage_name(name, row),
            "median_ms": _ms(_number(row, f"{name}_ns")),
            "low_ms": _ms(_number(row, f"{name}_low_ns")),
            "high_ms": _ms(_number(row, f"{name}_high_ns")),
            "n": int(row["n"]),
            "flops": self.flops.get(name),
            "of_roofline": self.of_roofline.get(name),
        }


def of(paths: Sequence[Path]) -> tuple[list[Outcome], list[str]]:
    """Read these logs and score their answers; return a result for each cell, and a line for each log left out.

    Raises `LogError` when there is no log that can be read.
    """
    table = frame.load(*paths)
    skipped = [str(one) for one in table.skipped]
    if not table.records:
        raise LogError("; ".join(skipped) or "no run log was found; next: `harness run` makes one below ./results")
    rows = summary.summary(table, accuracy.of(table)).to_dict("records")
    return [_outcome({str(key): value for key, value in row.items()}, table) for row in rows], skipped


def _outcome(row: Row, table: frame.Frame) -> Outcome:
    logs = [table.records[name] for name in row["logs"]]
    flops: dict[str, int] = {}
    of_roofline: dict[str, float] = {}
    for name, log in zip(row["logs"], logs, strict=True):
        samples = summary.timed(table.samples[table.samples["log"] == name])
        for stage, count, share in _roofline(log, samples):
            flops.setdefault(stage, count)
            if share is not None:
                of_roofline.setdefault(stage, share)
    failures = [f"example {f.example}: {f.message} [{f.stage}, {log.path}]" for log in logs for f in log.lasting]
    return Outcome(row, flops, of_roofline, tuple(failures))


def _roofline(log: Log, samples: pd.DataFrame) -> Iterator[tuple[str, int, float | None]]:
    """Yield stage, FLOPs and share of the roofline for the samples of the commonest counted shape, and for no others.

    A tiled page is several times the work of a small one: FLOPs of one over the time of the other would mean nothing. A
    part loaded alone speaks only of its own stages.
    """
    shape = ["visual_tokens", "tiles"]
    counted = {(each.visual_tokens, each.tiles): each for each in log.counted}
    for key in samples.value_counts(shape).index if set(shape) <= set(samples.columns) else ():
        if key not in counted:
            continue
        work, mine = counted[key], samples[(samples[shape] == list(key)).all(axis=1)]
        part = log.header.cell.get("part")
        for stage, flops in work.flops.items():
            column = f"{stage}_ns"
            if flops <= 0 or column not in mine or (part and (part == "llm") == stage.startswith("encode")):
                continue
            of = [log.header.effective.get(f"peak_{what}_per_s") for what in ("flops", "bytes")]
            known = [peak for peak in of if isinstance(peak, int | float)]
            share = None
            if len(known) == 2 and part in (None, "llm"):
                todo = Work(flops, work.weight_bytes.get(stage, 0))
                share = todo.share_of_roofline(float(mine[column].median()), *known)
            yield stage, flops, share
        return


def _facts(row: Row) -> dict[str, str]:
    weights = str({"random": "random †: exact architecture, not trained"}.get(row["weights"], row["weights"]))
    data = {"embedded": "embedded ‡: generated pages, ships with the package", "hub": "the Hub", "local": "local files"}
    suite = f"{row['suite']} ({data.get(row['data'], row['data'])})"
    if row["asked_suite"] and row["asked_suite"] != row["suite"]:
        suite += f", standing in for {row['asked_suite']}, whose data are not here"
    tokens: str = _count(row, "visual_tokens")
    if _number(row, "visual_tokens_low") != _number(row, "visual_tokens_high"):
        tokens += f" (from {row['visual_tokens_low']:.0f} to {row['visual_tokens_high']:.0f})"
    facts = {
        "model": f"{row['model']} ({row['dtype']}, {row['device']}, {row['engine']})",
        "weights": weights,
        "suite": suite,
        "resolution": f"{row['resolution']} px asked, {row['processed_px']} px to the encoder "
        f"in {_count(row, 'tiles')} tile(s), originals {row['original_px']} px (medians)",
        "tokens": f"{tokens} visual, {_count(row, 'text_tokens')} text; "
        f"{_count(row, 'content_px_per_token')} pixels of the image per visual token",
        "protocol": PROTOCOLS.get(row["protocol"], str(row["protocol"])),
        "clock": f"{row['clock'] or '–'}; sync: {row['sync'] or '–'}",
    }
    if row["settings"]:
        facts["settings"] = str(row["settings"])
    if row["isolate"]:
        facts["isolated"] = "§ each part loaded and timed alone; TTFT is their sum"
    return facts


PROTOCOLS = {
    "ttft": "ttft: from the image file's bytes in memory to the first token on the host, batch 1, caches off",
    "paper": "paper ¶: encoder + prefill of the visual tokens alone, timed apart and added up",
}


def _also(row: Row) -> dict[str, str]:
    also = {}
    if _number(row, "residual_percent") is not None:
        also["residual"] = f"{row['residual_percent']:+.1f} % of TTFT (TTFT minus the stages' sum)"
    for q in (90, 95, 99):
        bound = milliseconds(_number(row, f"ttft_p{q}_bound_ns"))
        if _number(row, f"ttft_p{q}_ns") is not None:
            also[f"p{q} TTFT"] = f"{milliseconds(row[f'ttft_p{q}_ns'])}, with 99 % confidence at most {bound}"
        elif q == 90 and _number(row, "ttft_p90_bound_ns") is not None:
            also["p90 TTFT"] = f"at most {bound} with 99 % confidence ({row['ttft_p90_reason']})"
    if _number(row, "cold_ttft_ns") is not None:
        also["cold TTFT"] = f"{milliseconds(row['cold_ttft_ns'])} (first request of a fresh process)"
    if _number(row, "tpot_ns") is not None:
        also["decode"] = f"{milliseconds(row['tpot_ns'])} per token ({row['decode_tokens']} tokens, fixed length)"
    if _number(row, "between_process_percent") is not None:
        also["processes"] = f"{row['processes']} fresh ones, medians spread over {row['between_process_percent']:.1f} %"
    if _number(row, "peak_memory_bytes") is not None:
        also["peak memory"] = f"{size(row['peak_memory_bytes'])} ({row['peak_memory_of']})"
    spent = [
        f"{stage} {row[f'{stage}_energy_mj'] / 1e3:.3g} J" for stage in STAGES if _number(row, f"{stage}_energy_mj")
    ]
    if spent:
        also["energy"] = ", ".join(spent)
    also["accuracy"] = _accuracy_text(row)
    also["stopped by"] = str(row["stopped"] or "not finished")
    if row["refused"]:
        also["refused"] = f"{row['refused']} samples by the validity gate"
    return also


def _accuracy(row: Row) -> dict[str, Any]:
    if row["not_scored"]:
        return {"not_scored": row["not_scored"]}
    interval = {end: _number(row, f"accuracy_{end}") for end in ("low", "high")}
    return {"metric": row["metric"], **interval, "n": row["accuracy_n"], "value": row["accuracy"]}


def _accuracy_text(row: Row) -> str:
    if row["not_scored"]:
        return f"not scored: {row['not_scored']}"
    known = _number(row, "accuracy_low") is not None  # None becomes NaN in a column that has numbers
    interval = f" [{row['accuracy_low']:.3f}, {row['accuracy_high']:.3f}]" if known else ""
    return f"{row['metric']} {row['accuracy']:.3f}{interval} over {row['accuracy_n']} questions of {row['suite']}"


def _stage_name(name: str, row: Row) -> str:
    if name == "ttft":
        return "TTFT (sum)" if row["additive"] else "TTFT"
    return name


def _number(row: Row, name: str) -> float | None:
    value = row.get(name)
    return None if value is None or value != value else float(value)


def _ms(ns: float | None) -> float | None:
    return None if ns is None else ns / 1e6


def _count(row: Row, name: str) -> str:
    value = _number(row, name)
    return "–" if value is None else f"{value:.0f}"
