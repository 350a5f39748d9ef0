"""What one measurement came to, as `harness run` and `harness show` print it: a summary row in words and rows."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.errors import LogError
from harness.models.protocol import STAGES, Work
from harness.reports import accuracy, configuration, frame, served, summary, wording
from harness.reports.summary import CellSummary, Timed
from harness.runlog.log import Log
from harness.runlog.records import STOPPED
from harness.units import milliseconds, size

MOST_OF_ROOFLINE = 1.05
"""Five per cent above the measured peak are the peak's own scatter."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One cell's summary, and what its logs say beside it."""

    cell: CellSummary
    flops: Mapping[str, int]
    of_roofline: Mapping[str, float]
    """By stage, the least time its FLOPs and weight bytes could take at the machine's peaks, over the time it took."""
    failures: tuple[str, ...]
    """A line for each example that failed: what, where, what next."""
    load: tuple[str, ...] = ()
    """A line for each number of requests at a time that a server was timed under."""

    @property
    def failed(self) -> bool:
        """Whether anything that was asked for is missing from the result."""
        return bool(self.failures) or self.cell.times.n == 0

    def as_dict(self) -> dict[str, object]:
        """Return facts, stage rows, what else there is to say, and doubts: all that the table and `--json` show."""
        one = self.cell
        return {
            "facts": _facts(one),
            "stages": [self._stage(name) for name in (*_stages(one), "ttft") if one.times.of(name)],
            "also": {**_also(one), **({"under load": "; ".join(self.load)} if self.load else {})},
            "doubts": [*one.doubts, *self._peak_doubts()],
            "accuracy": _accuracy(one),
            "numbers": _numbers(one),
            "marks": list(one.marks),
            "logs": list(one.logs),
        }

    def as_line(self) -> dict[str, str]:
        """Return the cell in one line of a compact table."""
        one = self.cell
        marked = f"{one.cell.label}{one.mark}" + " ?" * bool(one.doubts)
        known = one.accuracy.estimate
        return {
            "model": marked,
            "suite": one.cell.suite,
            "px": str(one.cell.resolution),
            "protocol": one.cell.protocol,
            "TTFT ms": wording.estimate(one.times.of("ttft"), 1e-6),
            "n": str(one.times.n),
            "accuracy": "not scored" if known is None else wording.estimate(known),
        }

    def _peak_doubts(self) -> Iterator[str]:
        """Doubt a peak that a stage surpasses: nothing is faster than the machine."""
        above = {stage: share for stage, share in self.of_roofline.items() if share > MOST_OF_ROOFLINE}
        if above:
            which = ", ".join(f"{stage} reaches {share:.0%}" for stage, share in above.items())
            yield (
                f"{which} of the roofline: the peak was measured too low, while the machine was busy or slowed down; "
                "next: remove the folder `peaks` of the cache folder, and measure again on a quiet machine"
            )

    def _stage(self, name: str) -> dict[str, object]:
        found = self.cell.times.median_ns[name]
        return {
            "stage": _stage_name(name, self.cell),
            "median_ms": _ms(found.value),
            "low_ms": _ms(found.low),
            "high_ms": _ms(found.high),
            "n": self.cell.times.n,
            "flops": self.flops.get(name),
            "of_roofline": self.of_roofline.get(name),
            "busy": self.cell.hardware.busy_share.get(name),
            "launch_bound": self.cell.hardware.launch_bound(name),
        }


def nothing_in(places: Sequence[Path]) -> LogError:
    """Return what is said where no run log was found in these files and folders."""
    told = ", ".join(map(str, places))
    return LogError(f"no run log was found in {told}; next: `harness run` makes one below ./results")


def of(paths: Sequence[Path]) -> tuple[list[Outcome], list[str]]:
    """Read these logs and score their answers; return a result for each cell, and a line for each log left out.

    Raises `LogError` when there is no log that can be read.
    """
    table = frame.load(*paths)
    skipped = [str(one) for one in table.skipped]
    if not table.records:
        raise LogError("; ".join(skipped)) if skipped else nothing_in(paths)
    return [_outcome(one, table) for one in summary.summaries(table, accuracy.of(table))], skipped


def _outcome(one: CellSummary, table: frame.Frame) -> Outcome:
    logs = [table.records[name] for name in one.logs]
    flops: dict[str, int] = {}
    of_roofline: dict[str, float] = {}
    for log in logs:
        for stage, count, share in _roofline(log, summary.timed([log])):
            flops.setdefault(stage, count)
            if share is not None:
                of_roofline.setdefault(stage, share)
    failures = [f"example {f.example}: {f.message} [{f.stage}, {log.path}]" for log in logs for f in log.lasting]
    load = [served.load_text(each) for log in logs for each in log.loaded]
    return Outcome(one, flops, of_roofline, tuple(failures), tuple(load))


def _roofline(log: Log, samples: Sequence[Timed]) -> Iterator[tuple[str, int, float | None]]:
    """Yield stage, FLOPs and share of the roofline for the samples of the commonest counted shape, and for no others.

    A tiled page is several times the work of a small one: FLOPs of one over the time of the other would mean nothing. A
    part loaded alone speaks only of its own stages.
    """
    counted = {(each.visual_tokens, each.tiles): each for each in log.counted}
    shapes = Counter((one.sample.visual_tokens, one.sample.tiles) for one in samples)
    shape = next((shape for shape, _ in shapes.most_common() if shape in counted), None)
    if shape is None:
        return
    work, part = counted[shape], configuration.part(log)
    mine = [one for one in samples if (one.sample.visual_tokens, one.sample.tiles) == shape]
    for stage, flops in work.flops.items():
        times = [time for one in mine if (time := one.ns(stage)) is not None]
        if flops <= 0 or not times or (part and (part == "llm") == stage.startswith("encode")):
            continue
        of = [log.header.effective.get(f"peak_{what}_per_s") for what in ("flops", "bytes")]
        known = [peak for peak in of if isinstance(peak, int | float)]
        share = None
        if len(known) == 2 and part in ("", "llm"):
            todo = Work(flops, work.weight_bytes.get(stage, 0))
            share = todo.share_of_roofline(float(np.median(times)), *known)
        yield stage, flops, share


def _facts(one: CellSummary) -> dict[str, str]:
    about, tokens = one.cell, one.tokens
    data = {"embedded": "embedded ‡: generated pages, ships with the package", "hub": "the Hub", "local": "local files"}
    suite = f"{about.suite} ({data.get(about.data, about.data)})"
    if about.asked_suite and about.asked_suite != about.suite:
        suite += f", standing in for {about.asked_suite}, whose data are not here"
    visual = _count(tokens.visual)
    if tokens.visual_low != tokens.visual_high:
        visual += f" (from {_count(tokens.visual_low)} to {_count(tokens.visual_high)})"
    facts = {
        "model": f"{about.model} ({about.dtype}, {about.device}, {about.engine})",
        "weights": {"random": "random †: exact architecture, not trained"}.get(about.weights, about.weights),
        "suite": suite,
        "resolution": f"{about.resolution} px asked, {tokens.processed_px} px to the encoder "
        f"in {_count(tokens.tiles)} tile{'' if tokens.tiles == 1 else 's'}, "
        f"originals {tokens.original_px} px (medians)",
        "tokens": f"{visual} visual, {_count(tokens.text)} text; "
        f"{_count(tokens.content_px_per_token)} pixels of the image per visual token",
        "protocol": PROTOCOLS.get("served" if about.endpoint else about.protocol, about.protocol),
        "clock": f"{one.process.clock or '–'}; sync: {one.process.sync or '–'}",
    }
    if about.settings:
        facts["settings"] = about.settings
    if about.isolate:
        facts["isolated"] = "§ each part loaded and timed alone; TTFT is their sum"
    return facts


PROTOCOLS = {
    "ttft": "ttft: from the image file's bytes in memory to the first token on the host, batch 1, caches off",
    "served": "served @: from the first byte sent to the first text received, one request at a time, at the client",
    "paper": "paper ¶: encoder + prefill of the visual tokens alone, timed apart and added up",
}


def _also(one: CellSummary) -> dict[str, str]:
    times, also = one.times, {}
    if times.residual_percent is not None:
        also["residual"] = f"{times.residual_percent:+.1f} % of TTFT (TTFT minus the sum of its stages)"
    for at in times.ttft_percentiles:
        bound = milliseconds(at.bound)
        if at.value is not None:
            also[f"p{100 * at.q:g} TTFT"] = f"{milliseconds(at.value)}, with 99 % confidence at most {bound}"
        elif at is times.ttft_percentiles[0] and at.bound is not None:
            also[f"p{100 * at.q:g} TTFT"] = f"at most {bound} with 99 % confidence ({at.reason})"
    if times.of("cold_ttft"):
        also["cold TTFT"] = f"{milliseconds(times.ns('cold_ttft'))} (first request of a fresh process)"
    if pace := _pace(one):
        also["decode"] = pace
    if times.between_process_percent is not None:
        spread = f"medians spread over {times.between_process_percent:.1f} %"
        also["processes"] = f"{one.process.count} fresh ones, {spread}"
    if one.basis is not None:
        images, share = wording.basis(one)
        also["timed on"] = f"{images.text} images, of the shapes of {share.text} % of the suite"
    if one.memory.peak_bytes is not None:
        also["peak memory"] = f"{size(one.memory.peak_bytes)} ({one.memory.of})"
    spent = [f"{stage} {energy / 1e3:.3g} J" for stage, energy in times.energy_mj.items() if energy]
    if spent:
        also["energy"] = ", ".join(spent)
    also |= _hardware(one)
    also["accuracy"] = _accuracy_text(one)
    stopped = one.process.stopped
    also["stopped"] = STOPPED.get(stopped, stopped) or "the run did not finish"
    if times.refused:
        also["refused"] = (
            f"{times.refused} samples, by the validity gate: other programs, heat or a clock had disturbed them"
        )
    return also


def _pace(one: CellSummary) -> str:
    """Return the time per token in words, and why answers of a server have none."""
    times = one.times
    if not times.of("tpot"):
        return f"no time per token for {times.without_tpot}" if times.without_tpot else ""
    how = "the server's count of tokens" if one.cell.endpoint else f"{one.cell.decode_tokens} tokens, fixed length"
    how += f"; none for {times.without_tpot}" if times.without_tpot else ""
    return f"{milliseconds(times.ns('tpot'))} per token ({how})"


def _hardware(one: CellSummary) -> dict[str, str]:
    found, also = one.hardware, {}
    if found.clock:
        also["GPU clock"] = found.clock
    if found.busy_share:
        also["device busy"] = ", ".join(f"{share:.0%} of {stage}" for stage, share in found.busy_share.items())
    if found.energy:
        drawn = [
            f"{stage} {each.above_idle_mj / 1e3:.3g} J [{each.low_mj / 1e3:.3g}, {each.high_mj / 1e3:.3g}]"
            for stage, each in found.energy.items()
        ]
        idle = "" if found.idle_w is None else f" of {found.idle_w:.3g} W"
        also["energy above idle"] = (
            f"{', '.join(drawn)} (stages repeated back to back, less the idle device's draw{idle})"
        )
    return also


def _numbers(one: CellSummary) -> dict[str, str | float | int | None]:
    """Return as numbers what `facts` and `also` say in words; the unit is in the name."""
    about, times, tokens = one.cell, one.times, one.tokens
    found: dict[str, str | float | int | None] = {
        "model": about.label,
        "suite": about.suite,
        "resolution_px": about.resolution,
        "visual_tokens": tokens.visual,
        "text_tokens": tokens.text,
        "tiles": tokens.tiles,
        "content_px_per_visual_token": tokens.content_px_per_token,
        "samples": times.n,
        "refused": times.refused,
        "residual_percent": times.residual_percent,
        "cold_ttft_ms": _ms(times.ns("cold_ttft")),
        "decode_ms_per_token": _ms(times.ns("tpot")),
        "peak_memory_bytes": one.memory.peak_bytes,
        "between_process_percent": times.between_process_percent,
        "images": one.basis.images if one.basis else None,
        "suite_images": one.basis.suite_images if one.basis else None,
        "share_of_shapes": one.basis.share_of_shapes if one.basis else None,
    }
    for at in times.ttft_percentiles:
        found[f"ttft_p{100 * at.q:g}_ms"] = _ms(at.value)
        found[f"ttft_p{100 * at.q:g}_bound_ms"] = _ms(at.bound)
    return found | {f"{stage}_energy_mj": energy for stage, energy in times.energy_mj.items()}


def _accuracy(one: CellSummary) -> dict[str, object]:
    found = one.accuracy
    remarks = {"remarks": list(found.remarks)} if found.remarks else {}
    if found.own is not None:
        return {"metric": found.metric, "in_its_own_unit": found.own, **remarks}
    if found.value is None:
        return {"not_scored": found.reason, **remarks}
    interval = {"low": found.low, "high": found.high}
    questions = {"questions": found.questions} if found.questions else {}
    return {"metric": found.metric, **interval, "n": found.n, **questions, "value": found.value, **remarks}


def _accuracy_text(one: CellSummary) -> str:
    found = one.accuracy
    remarks = "".join(f"; {remark}" for remark in found.remarks)
    if found.value is None:
        return f"{'' if found.own is not None else 'not scored: '}{found.reason}{remarks}"
    known = found.low is not None and found.high is not None
    interval = f" [{found.low:.3f}, {found.high:.3f}]" if known else ""
    timed = f"; {one.times.n} of these answers were timed" if one.times.n < found.n and one.process.count == 1 else ""
    return f"{found.metric} {found.value:.3f}{interval} over {found.over} of {one.cell.suite}{timed}{remarks}"


def _stages(one: CellSummary) -> list[str]:
    """Return the stages in their order, with those that were timed as one (`encode+project`) at their place."""
    joined = [name for name in one.times.median_ns if "+" in name]
    return sorted((*STAGES, *joined), key=lambda name: STAGES.index(name.partition("+")[0]))


def _stage_name(name: str, one: CellSummary) -> str:
    if name == "ttft":
        return "TTFT (sum)" if one.times.additive else "TTFT"
    return name


def _ms(ns: float | None) -> float | None:
    return None if ns is None else ns / 1e6


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"
