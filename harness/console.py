"""How things look in a terminal: progress on stderr (no thread refreshes it: that would be timed), tables as text."""

import io
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.errors import cleaned
from harness.reports import marks
from harness.runlog.records import STOPPED, Failure, Footer, Sample
from harness.units import milliseconds, size

if TYPE_CHECKING:
    from harness.machine.doctor import Finding
    from harness.measure.asked import Asked
    from harness.measure.executor import Ended, Executor
    from harness.measure.experiments import Result
    from harness.measure.job import Job
    from harness.reports.result import Outcome

WIDTH = 118
"""Of tables that no terminal shows: in files and pipes."""
NARROWEST = 60
WIDE = 100
"""From here on a compact table has all its columns."""
PLAIN_EVERY_S = 10.0
"""How often progress is said where stderr is no terminal: what ends sooner, well or in an error, says nothing of it."""


class Progress:
    """Says on stderr what is going on: a live line in a terminal, now and then a line elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._said_s = time.monotonic()
        self._live = False
        self._ticker: Ticker | None = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_line()

    def say(self, text: str) -> None:
        """Print one line."""
        self._end_line()
        self._console.print(escape(cleaned(text)))

    def wait(self, text: str) -> None:
        """Say now and then that `text` still goes on, until the next line: a thread does it, so never while timing."""
        self._end_line()
        self._ticker = Ticker(lambda seconds: self._update(f"[{seconds:5.0f} s] {text}"))

    def _hear(self, text: str) -> None:
        """Print what a job says of itself; of what may take long, say that it goes on."""
        self.say(text)
        if text.startswith("building "):
            self.wait(text)

    def follow(self, job: "Job", run_job: Callable[["Job", Callable[[str], None]], Iterator[object]]) -> Path:
        """Measure `job` while telling how far it is; return its log."""
        for notice in job.notices:
            self.say(f"note: {notice}")
        if job.finished:
            since = f"; changed since: {told}" if (told := job.since()) else ""
            self.say(f"measured already: {job.path} (--again measures it once more{since})")
            return job.log or job.path
        self.say(f"measuring {job.cell.title}")
        count = Counted(job.total, time.monotonic, job.begun)
        for record in run_job(job, self._hear):
            if isinstance(record, Sample):
                count.add(record)
                self._update(_line(record, count))
            elif isinstance(record, Failure):
                count.add(record)
                self.say(f"failed: example {record.example}: {record.message}")
            elif isinstance(record, Footer):
                self._end_line()
                self.say(f"stopped: {STOPPED.get(record.stopped, record.stopped)}; {record.refused} samples refused")
        return job.log or job.path

    def follow_all(self, cells: Iterable["Ended"], total: int, paced: bool = True) -> list[Path]:
        """Say which of several cells has ended and how; each says its own progress from its own process.

        `paced`: they come one after the other, so that those past tell how long those left will take.
        """
        paths, started_s, fresh = [], time.monotonic(), 0
        for number, ended in enumerate(cells, 1):
            now_s = time.monotonic()
            fresh += not ended.already
            if not fresh:
                started_s = now_s
            left = ""
            if paced and number < total and ended.code == 0 and not ended.already:
                left = f", about {_duration((now_s - started_s) / fresh * (total - number))} left"
            self.say(f"[{number}/{total}] {ended.title}: {ended.message}{left}")
            if ended.path:
                paths.append(ended.path)
        return paths

    def _update(self, text: str) -> None:
        """Write over the live line of a terminal; elsewhere print a line, not often."""
        if self._console.is_terminal:
            self._console.file.write("\r\x1b[2K" + text[: self._console.width - 1])
            self._console.file.flush()
            self._live = True
        elif time.monotonic() - self._said_s > PLAIN_EVERY_S:
            self._said_s = time.monotonic()
            self._console.print(escape(text))

    def _end_line(self) -> None:
        if self._ticker:
            self._ticker.stop()
            self._ticker = None
        if self._live:
            self._console.file.write("\r\x1b[2K")
            self._live = False


class Ticker:
    """Calls `tell` with the seconds gone by, after each `every_s`, until it is stopped."""

    def __init__(self, tell: Callable[[float], None], every_s: float = 1.0) -> None:
        self._tell, self._over, self._started_s = tell, threading.Event(), time.monotonic()
        self._every_s = every_s
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            self._tell(time.monotonic() - self._started_s)

    def stop(self) -> None:
        """Stop, and return when nothing more will be said."""
        self._over.set()
        self._thread.join()


class Counted:
    """How many of a suite's examples are done, and how long the rest will take at the pace so far.

    An example counts once, however often it is measured; one that failed is done as well. Those that an earlier process
    has measured say nothing of the pace.
    """

    def __init__(self, total: int, clock_s: Callable[[], float], before: frozenset[str] = frozenset()) -> None:
        self.total, self._clock_s, self._started_s = total, clock_s, clock_s()
        self._before, self._done = before, set(before)

    def add(self, record: Sample | Failure) -> None:
        """Count what the record measured, unless it is a warm-up."""
        if record.example and getattr(record, "phase", "timed") == "timed":
            self._done.add(record.example)

    @property
    def elapsed_s(self) -> float:
        """How long it has taken so far."""
        return self._clock_s() - self._started_s

    @property
    def text(self) -> str:
        """`[   12 s] 30/120, about 36 s left`."""
        done, elapsed_s = len(self._done), self.elapsed_s
        here = done - len(self._before)
        left_s = elapsed_s / here * (self.total - done) if here else None
        left = f", about {_duration(left_s)} left" if left_s else ""
        return f"[{elapsed_s:5.0f} s] {done}/{self.total}{left}"


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def _line(sample: Sample, count: Counted) -> str:
    what, ttft_ns = "TTFT", sample.whole.ttft_ns if sample.whole else None
    if ttft_ns is None and sample.stages:
        what, ttft_ns = "stages", sum(value for name, value in sample.stages.stage_ns.items() if "." not in name)
    refused = f"  refused: {', '.join(sample.reasons)}" if not sample.valid else ""
    phase = count.text if sample.phase == "timed" else f"[{count.elapsed_s:5.0f} s] {sample.phase}"
    answer = f"  answer {sample.answer[:40]!r}" if sample.answer else ""
    return f"{phase}  {what} {milliseconds(ttft_ns)}{answer}{refused}"


def width() -> int:
    """Return how wide tables may be: as the terminal, or as COLUMNS says."""
    if not sys.stdout.isatty() and not os.environ.get("COLUMNS"):
        return WIDTH
    return max(NARROWEST, shutil.get_terminal_size((WIDTH, 24)).columns)


def _text(table: Table) -> str:
    console = Console(file=io.StringIO(), width=width(), highlight=False)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().strip("\n").split("\n"))


def table(results: Sequence["Outcome"]) -> str:
    """Return the table that `harness run` ends with: one block for each result."""
    return "\n\n".join(_result(result.as_dict()) for result in results)


def compact(results: Sequence["Outcome"]) -> str:
    """Return one line for each result, and what its signs mean."""
    carried = marks.legend(mark for result in results for mark in result.cell.marks)
    doubted = ["? doubts: `harness show --long` says which"] if any(one.cell.doubts for one in results) else []
    lines = [result.as_line() for result in results]
    above = []
    if width() < WIDE:  # a broken number is no number: what all have in common, or a mark tells, gives way
        common = {name: lines[0][name] for name in ("suite", "protocol") if len({line[name] for line in lines}) == 1}
        above = [", ".join(f"{name} {value}" for name, value in common.items())] if common else []
        lines = [{k: v for k, v in line.items() if k not in (*common, "protocol")} for line in lines]
    return "\n".join([*above, rows(lines, whole=True), *carried, *doubted])


def _result(result: Mapping[str, Any]) -> str:
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in result["facts"].items():
        facts.add_row(name, escape(str(value)))
    times = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for name in ("stage", "median", "95 % interval", "n", "FLOPs", "of roofline"):
        times.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
    for row in result["stages"]:
        times.add_row(
            row["stage"],
            _ms(row.get("median_ms")),
            f"{_ms(row['low_ms'])} – {_ms(row['high_ms'])}" if row.get("low_ms") is not None else "–",
            str(row["n"]),
            _gflop(row.get("flops")),
            _roofline(row),
        )
    tail = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    tail.add_column(style="bold", no_wrap=True)
    tail.add_column(overflow="fold")
    for name, value in result["also"].items():
        tail.add_row(name, escape(str(value)))
    lines = [_text(facts), _text(times), _text(tail)]
    lines += [f"! {text}" for text in result["doubts"]]
    return "\n".join(lines)


def _roofline(row: Mapping[str, object]) -> str:
    """Return the share of the roofline; beside it how busy the device was, where the host held it up."""
    if row.get("of_roofline") is None:
        return "–"
    return f"{row['of_roofline']:.0%}" + (f" (busy {row['busy']:.0%})" if row.get("launch_bound") else "")


def _ms(value: float | None) -> str:
    return milliseconds(None if value is None else value * 1e6)


def _gflop(flops: float | None) -> str:
    return "–" if not flops else f"{flops / 1e9:,.1f} G"


BRIEF = {
    "models": ("model", "sides", "weights"),
    "suites": ("suite", "metric", "data", "scored"),
    "devices": ("device", "here"),
    "reports": ("report", "title"),
}
"""The columns of `harness list` without --long."""


def catalogue(tables: Mapping[str, Sequence[Mapping[str, str]]], long: bool = True) -> str:
    """Return the tables of `harness list`, with all columns or those that say what can be asked for."""
    shown = [
        [{k: v for k, v in row.items() if (k != "repository" if long else k in BRIEF[kind])} for row in content]
        for kind, content in tables.items()
    ]
    more = "" if long else "\n`harness list --long` says more of each"
    return "\n\n".join(rows(content) for content in shown if content) + more


def rows(content: Sequence[Mapping[str, object]], whole: bool = False) -> str:
    """Return a plain table of dicts that share their keys; `whole`: only the first column may be broken into lines."""
    if not content:
        return "nothing"
    shape = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for position, name in enumerate(content[0]):
        numeric = isinstance(content[0][name], int | float)
        shape.add_column(
            name, justify="right" if numeric else "left", overflow="fold", no_wrap=(position == 0) != whole
        )
    for row in content:
        shape.add_row(*(escape("" if value is None else str(value)) for value in row.values()))
    return _text(shape)


def architectures(counted: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of `harness models`: what each card amounts to at each side it supports."""
    listed = []
    for one in counted:
        ratios = one["ratio"]
        part = "total" if "total" in ratios else next(iter(ratios), None)
        published = f"{ratios[part]:.3f} {part}" if part else ""
        listed.append(
            {
                "model": one["model"],
                "side": one["side"],
                "tiles": one["tiles"],
                "tokens": one["visual_tokens"],
                "text": one["text_tokens"],
                "params M": f"{sum(one['params'].values()) / 1e6:,.1f}",
                "of published": one["problem"] or published or "–",
                "encode": _gflop(one["encode_flops"]),
                "project": _gflop(one["project_flops"]),
                "prefill": _gflop(one["prefill_flops"]),
                "bf16": size(one["bf16_bytes"]),
            }
        )
    return (
        f"{rows(listed)}\nFLOPs of one square image, two per multiply-add; prefill of the visual tokens and of the "
        "column's text tokens; parts: --format json or markdown"
    )


def findings(found: Sequence["Finding"]) -> str:
    """Return the lines of `harness doctor`."""
    signs = {"ok": "ok     ", "doubt": "doubt  ", "missing": "missing"}
    lines = []
    for finding in found:
        lines.append(f"{signs[finding.level]}  {finding.text}")
        if finding.next_step:
            lines.append(f"         next: {finding.next_step}")
    return "\n".join(lines)


ALIKE = ("suite", "device", "protocol", "part", "process")
"""Columns of a plan that are left out where all cells have the same."""


def plan(wanted: Sequence["Asked"], elsewhere: bool = False) -> str:
    """Return the cells of a sweep with what each will probably take (predicted from counts, marked so).

    Of jobs `elsewhere` this host cannot tell the time; instead it says what they will look for, and where.
    """
    from harness.machine import peaks
    from harness.measure import estimate, request

    if elsewhere:
        cells = [{"cell": request.title(asked), "request": request.of(asked)} for asked in wanted]
        looked = dict.fromkeys(line for asked in wanted for line in request.looked_for(asked, Path(asked.out) / "jobs"))
        return "\n".join([rows(cells), f"{len(cells)} cells, a job each; looked for where a job runs:", *looked])
    listed, estimates = [], []
    # Without them two cells would look the same.
    unlike = [name for name in ("dtype", "engine", "settings") if len({_said(asked, name) for asked in wanted}) > 1]
    for asked in wanted:
        peak = peaks.known(asked.device, asked.dtype)
        one = estimate.estimate(asked, peak.flops_per_s if peak else None)
        estimates.append(one)
        listed.append(
            {
                "model": "\n".join([asked.model, *filter(None, (_said(asked, name) for name in unlike))]),
                "suite": asked.suite,
                "res": asked.res,
                "device": asked.device,
                "protocol": asked.protocol,
                "part": asked.part or (f"shard {asked.shard}/{asked.shards}" if asked.shard else "all"),
                "process": asked.repetition + 1,
                "timing ◇": "–" if one.seconds is None else _duration(one.seconds),
                "answers": one.answers,
                "memory ◇": size(one.memory_bytes),
                "weights": size(one.download_bytes),
            }
        )
    # A column that says the same of every cell is said once below: eleven columns do not fit a terminal of 80.
    alike = [name for name in ALIKE if len({row[name] for row in listed}) == 1]
    of_all = [f"{name} {listed[0][name]}" for name in alike if listed[0][name] not in ("all", 1)]
    head = ", ".join([f"{len(listed)} cell{'s' * (len(listed) > 1)}", *of_all])
    listed = [{name: value for name, value in row.items() if name not in alike} for row in listed]
    whole = estimate.total(estimates)
    time_text = "for an unknown time" if whole.seconds is None else f"about {_duration(whole.seconds)}"
    lines = [
        f"{head}; loading and timing {time_text}, at most {size(whole.memory_bytes)} at a time, "
        f"{size(whole.download_bytes)} of weights to download   ◇ predicted, not measured"
    ]
    if whole.seconds is None:
        lines.append(
            "–: no peak of the device is known yet (run one cell first), or only a run counts the model's FLOPs"
        )
    left = ["preparing images", "decoding"]
    if any(one.answers for one in estimates):
        left.append("answering, untimed, what else is scored (`answers` in all; --limit N asks the first N)")
    return "\n".join([rows(listed), *lines, f"not in these times: {', '.join(left)}"])


def _said(asked: "Asked", name: str) -> str:
    value = getattr(asked, name)
    return "\n".join(f"{one}={it}" for one, it in sorted(value.items())) if name == "settings" else str(value or "")


def queued(wanted: Sequence["Asked"], by: "Executor") -> str:
    """Return how the cells of a submitted sweep are."""
    from harness.measure import queue

    return rows(
        [{"cell": row.title, "job": row.job, "state": row.state, "log": row.log} for row in queue.status(wanted, by)]
    )


def experiment(result: "Result") -> str:
    """Return an experiment's table: B over A by stage."""
    listed = [
        {
            "stage": each.name,
            "A": _ms(each.a_median_ms),
            "B / A": "–" if each.value is None else f"{each.value:.4f}",
            "95 % interval": "–" if each.low is None else f"{each.low:.4f} – {each.high:.4f}",
            "half-width": "–" if each.half_width_percent is None else f"{each.half_width_percent:.2f} %",
            "pairs": each.n,
        }
        for each in result.ratios
    ]
    return f"{result.title}\n{rows(listed)}\n{'holds' if result.passed else 'does not hold'}: {result.verdict}"
