"""The program in one screen: each command reads cards and options, calls one function, and prints what it returns.

Only this file prints, catches errors and sets exit codes. Progress and notices go to stderr; stdout holds the result.
Everything heavy (torch, pandas, lmms-eval) is imported inside the command that needs it, so `--help` answers at once.

Exit codes: 0 done; 1 done, but examples failed; 2 an error (one line says which); 70 a bug; 130 interrupted; 141 closed
pipe.
"""

import io
import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from harness import __version__, completion, parent
from harness.errors import LESS_MEMORY, HarnessError, SettingError, cleaned, out_of_memory
from harness.measure.asked import PROTOCOLS
from harness.measure.command import Share, option
from harness.models.protocol import JOINED, STAGES


def main() -> NoReturn:
    """Run the program; turn every foreseen error into one line and an exit code."""
    _open_streams()
    if os.environ.get("_HARNESS_COMPLETE"):
        program(prog_name="harness")  # the shell asks what could come next; click answers and ends the program
    _spare_numexpr()
    signal.signal(signal.SIGTERM, _terminated)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, _terminated)
    try:
        code = program(standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except BaseException as error:  # noqa: BLE001 - some libraries raise what is no Exception, or try to end the program
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # once is enough: the line below is to be said
        code = _say_error(*_in_words(error))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    if code not in (0, None):  # else Python would complain at exit about what cannot be flushed
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code if isinstance(code, int) else 0)


def _open_streams() -> None:
    """Make the standard streams writable: where one is closed, a run log would get its number, and its text."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if not number else "w", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a code page that has no `†` gets a question mark


def _spare_numexpr() -> None:
    """Keep `OMP_NUM_THREADS=4,1`, or nonsense, from numexpr, which pandas loads: it takes one number, or falls."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told and not told.strip().isdecimal():
        os.environ.setdefault("NUMEXPR_NUM_THREADS", "1")


def _in_words(error: BaseException) -> tuple[str, int]:
    """Return the one line that says what went wrong, and the exit code."""
    kept = "what was measured is kept"
    if isinstance(error, HarnessError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt | click.exceptions.Abort):
        if parent.followed:
            return "", 130
        return f"interrupted; {kept}; next: the same command resumes", 130
    if isinstance(error, ReaderGoneError):
        return "the reader of stdout has gone; the run log is complete; next: `harness show LOG`", 141
    if out_of_memory(error):
        return f"out of memory; {kept}; next: {LESS_MEMORY}", 2
    if isinstance(error, OSError):
        what = f"{error.filename or 'input/output'}: {error.strerror or error}"
        return f"{what}; {kept}; next: check that place, its space and its rights", 2
    if isinstance(error, SystemExit):
        return f"a library ended the program ({error.code}); {kept}; next: HARNESS_TRACEBACK=1 shows which", 2
    if not isinstance(error, Exception):
        first = (str(error).splitlines() or [""])[0]
        return f"{type(error).__name__} in a library: {first}; {kept}; next: HARNESS_TRACEBACK=1 shows where", 2
    traceback.print_exc()  # a bug of ours: all of it, and no exit code that means anything else
    return f"a bug of the harness, see above; {kept}; next: please report it", 70


class ReaderGoneError(Exception):
    """Nobody reads our output any more (`harness ... | head`)."""


def say(text: str) -> None:
    """Print the result on stdout."""
    try:
        click.echo(cleaned(text, lines=True))
    except BrokenPipeError as error:  # click would leave with exit code 1 and not a word
        raise ReaderGoneError from error


def _terminated(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say_error(text: str, code: int) -> int:
    if os.environ.get("HARNESS_TRACEBACK"):
        traceback.print_exc()
    with suppress(OSError):  # stderr may have gone as well
        if text:
            click.echo(f"harness: {cleaned(text)}", err=True)
    return code


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def program() -> None:
    """Measure how fast and how right a vision-language model is, at which resolution.

    Start with `harness run --suite docvqa --res 1024`, or with `harness doctor` to see what this machine is good for.
    """


# --- options that several commands share ---


def measuring(command: Callable[..., object]) -> Callable[..., object]:
    """Add the options that say how a cell is measured."""
    for name in reversed(MEASURING):
        command = option(name)(command)
    return click.option("--route", type=click.Choice(["own", "auto"]), help=ROUTES)(command)


ROUTES = "By which code: own (the family's adapter) or auto (transformers' classes). Default: own where there is one."


def serving(command: Callable[..., object]) -> Callable[..., object]:
    """Add the options for a model that a server serves."""
    for name in ("load", "concurrency", "endpoint"):
        command = option(name)(command)
    return command


MEASURING = (
    "device", "dtype", "weights", "data", "limit", "engine", "settings", "isolate", "seed", "threads", "decode_tokens",
    "precision", "minimum_samples", "minimum_seconds", "maximum_samples", "maximum_seconds", "skip_energy", "offline",
    "no_stand_in", "wait", "out",
)  # fmt: skip


@program.command()
@option("model")
@option("suite")
@option("res")
@option("protocol", type=click.Choice([*PROTOCOLS, "both"]))
@click.option(
    "--processes", type=click.IntRange(1), default=1, show_default=True, help="Repeat in so many fresh processes."
)
@click.option("--again", is_flag=True, help="Measure once more, also if a finished log is there.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@option("part")
@option("repetition")
@option("shards", hidden=True)
@option("shard")
@click.option("--bare", hidden=True, is_flag=True, help="Measure only: the process that asked prints the result.")
@serving
@measuring
def run(protocol: Any, processes: int, again: bool, as_json: bool, bare: bool, **options: object) -> int:
    """Measure one model on one suite at one resolution: TTFT by stage, and the accuracy of all answers, timed or not.

    Exit codes: 0 done, 1 done, but examples failed, 2 an error.
    """
    from harness import console
    from harness.measure import job, request, run, shards, sweep

    asked = _asked({**options, "model": options["model"] or _model_for(options)})
    protocols = PROTOCOLS if protocol == "both" else (protocol,)
    asked = replace(asked, protocol=protocols[0])
    wanted = job.expand(asked, protocols, processes) if asked.part is None else [asked]
    total = shards.count(wanted)
    with console.Progress() as progress:
        if len(wanted) == 1:
            progress.wait("looking for weights and data")
            one = job.prepare(wanted[0])
            if again:
                one = job.afresh(one)
            paths = [progress.follow(one, run.run_job)]
            request.note(one.wished, paths[0])
        else:
            paths = progress.follow_all(sweep.run_all(wanted, again, notify=progress.say), total)
    if bare:
        return 0
    return _show(paths, as_json) or (len(paths) < total)


@program.command()
@click.option(
    "--plan", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A TOML plan; flags beat it."
)
@click.option("--model", "models", help="Models, separated by commas.", shell_complete=completion.listed("models"))
@click.option("--suite", "suites", help="Suites, separated by commas. [default: docvqa]",
              shell_complete=completion.listed("suites"))  # fmt: skip
@click.option("--res", help="Input sides, separated by commas. Default: each card's.")
@click.option("--protocol", "protocols", help="ttft, paper, or both by a comma. [default: ttft]")
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True, help="Fresh processes a cell.")
@option("shards")
@click.option("--executor", help="Where cells run: local, pool, submitit (Slurm). [default: the plan's, or local]")
@click.option(
    "--executor-option", "told", multiple=True, metavar="NAME=VALUE", help="As partition=gpu (docs/cluster.md)."
)
@click.option("--submit", is_flag=True, help="Leave when jobs are submitted; the same command without it collects.")
@click.option("--status", is_flag=True, help="Only say how the cells of a submitted sweep are.")
@click.option("--cancel-on-interrupt", is_flag=True, help="Ctrl-C cancels the jobs too.")
@click.option("--again", is_flag=True, help="Measure finished cells once more.")
@click.option("--dry-run", is_flag=True, help="Only list the cells, with an estimate of time, memory and download.")
@serving
@measuring
def sweep(plan: Path | None, again: bool, dry_run: bool, status: bool, **options: Any) -> int:
    """Measure a grid of models, suites and resolutions, each cell in a process of its own; a killed sweep resumes.

    Exit codes: 0 done, 1 done, but examples or cells failed, 2 an error.
    """
    from harness import console
    from harness.measure import shards, sweep

    by = sweep.read_executor(plan, options.pop("executor"), options.pop("told"))
    by = replace(by, leave=options.pop("submit"), cancel=options.pop("cancel_on_interrupt"))
    if not by.elsewhere and (by.leave or by.cancel or status):
        raise SettingError(
            f"--submit, --status and --cancel-on-interrupt: not with the executor {by.name}; see --executor"
        )
    by, wanted, refused = _cells(plan, by, options)
    for one in refused:
        click.echo(f"left out: {one.reason}", err=True)
    if not wanted:
        raise SettingError("no cell of this grid can be measured; next: `harness list models` names the sides of each")
    if status and not dry_run:
        say(console.queued(wanted, by))
        return 0
    if dry_run:
        with console.Progress() as progress:
            progress.wait(f"counting what {len(wanted)} cells amount to")
            listed = console.plan(wanted, by.elsewhere)
        say(listed)
        return 0
    total = shards.count(wanted)
    with console.Progress() as progress:
        cells = sweep.run_all(wanted, again, by, progress.say)
        paths = progress.follow_all(cells, total, paced=not by.elsewhere)
        if by.leave:
            return 0
        progress.say(f"{len(paths)} of {total} cells have a log; next: harness report pareto --logs {wanted[0].out}")
    failed = _show(paths, as_json=False, long=False) if paths else 0
    return 1 if failed or len(paths) < total else 0


def _cells(plan: Path | None, by: Any, options: dict[str, Any]) -> tuple[Any, list[Any], list[Any]]:
    """Return the executor (a pool, where the device says so), the cells of a plan and of flags, and those refused."""
    from harness.measure import sweep

    processes = options.pop("processes")
    flags = {"model": "models", "suite": "suites", "res": "res", "protocol": "protocols"}
    given = {name: text.split(",") for name, flag in flags.items() if (text := options.pop(flag))}
    typed = {name: [_side(text) for text in texts] if name == "res" else texts for name, texts in given.items()}
    source = click.get_current_context().get_parameter_source
    said = [name for name in options if source(name) == click.core.ParameterSource.COMMANDLINE]
    grids = sweep.read_plan(plan) if plan else [({}, {})]
    by, options["device"], grids = sweep.pooled(by, options["device"], grids)
    named = "model" in given or all("model" in axes or "model" in common for axes, common in grids)
    if by.elsewhere:
        sweep.check_named(
            named or bool(options.get("endpoint")), "device" in said or bool(options.get("endpoint")), grids
        )
        options["device"] = options["device"] or "cpu"  # a plan's beats it
    asked = _asked({**options, "model": None if named else _model_for(options)})
    wanted, refused = [], []
    for axes, common in grids:
        axes = {name: values for name, values in axes.items() if name not in said}
        common = {name: value for name, value in common.items() if name not in said}
        cells, left_out = sweep.grid({**axes, **typed}, replace(asked, **common), processes, not by.elsewhere)
        wanted += cells
        refused += left_out
    return by, wanted, refused


@program.command()
@click.argument("kind", type=click.Choice(["aa", "injection", "overhead"]))
@click.option("--model", default=None, help="A model card. Default: the fake one, in real time.")
@option("res")
@click.option("--pairs", type=click.IntRange(6), default=20, show_default=True, help="Rounds of both arms.")
@click.option(
    "--answers", type=click.IntRange(1), default=4, show_default=True, help="Answers of each arm in a round, in turns."
)
@click.option(
    "--stage",
    type=click.Choice((*STAGES, *JOINED)),
    default="prefill",
    show_default=True,
    help="Where `injection` sleeps.",
)
@click.option(
    "--share",
    type=Share(),
    default=0.05,
    show_default=True,
    help="How long, as a share of the stage.",
)
@option("suite", default="pages")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@measuring
def experiment(kind: str, as_json: bool, **options: object) -> int:
    """Test the instrument itself: A/A, a planted delay, or the overhead of measuring; interleaved, ratios by stage.

    Exit codes: 0 it holds, 1 it does not, 2 an error.
    """
    from harness import console
    from harness.measure import experiments

    if not options["model"]:
        options |= {"model": "fake", "device": options["device"] or "fake"}
    with console.Progress() as progress:
        chosen = {name: options.pop(name) for name in ("pairs", "stage", "share", "answers")}
        design = experiments.Design(**chosen)  # type: ignore[arg-type]  # click has made them what they are to be
        result = experiments.run_experiment(kind, _asked(options), design, progress.say)
    say(json.dumps(result.as_dict(), indent=2) if as_json else console.experiment(result))
    return 0 if result.passed else 1


@program.command()
@click.argument("a")
@click.argument("b")
@click.option(
    "--interleave", is_flag=True, help="Measure both now, example by example; A, B: checkpoints, cards, Hub ids."
)
@option("model", default=None, help="The card of both checkpoints. [default: fastvlm-0.5b]")
@option("suite")
@option("res")
@option("protocol")
@click.option(
    "--min-effect", type=Share(), default=0.03, show_default=True, help="The smallest change that counts, as a share."
)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.option("--bare", hidden=True, is_flag=True, help="Measure only: the process that asked compares.")
@click.option("--alone", hidden=True, is_flag=True, help="With --bare: measure B alone.")
@option("repetition")
@measuring
def compare(
    a: str, b: str, interleave: bool, min_effect: float, as_json: bool, bare: bool, alone: bool, **options: object
) -> int:
    """Say whether B is slower or answers worse than A: two logs, or two checkpoints measured side by side now.

    Exit codes: 0 same or better, 1 slower or worse, 2 could not tell (or an error), 3 B cannot be loaded. Of logs that
    differ in more than the checkpoint (machine, settings, threads, packages) it cannot tell.
    """
    if not interleave:
        from harness.track import compare as comparing
        from harness.track import outputs

        verdict = comparing.of_logs(Path(a), Path(b), min_effect)
        say(json.dumps(verdict.as_dict(), indent=2) if as_json else outputs.text(verdict))
        return verdict.code
    from harness import console

    asked = _asked(options if bare else _finer(options, min_effect))
    with console.Progress() as progress:
        if bare:
            from harness.track import arms
            from harness.track import interleave as both

            sides = [("checkpoint", b)] if alone else [("checkpoint", b), ("baseline", a)]
            wanted = [replace(arms.arm(asked, text), out=str(Path(asked.out) / name)) for name, text in sides]
            both.measure(wanted[0], None if alone else wanted[1], progress.say)
            return 0
        from harness.track import compare as comparing
        from harness.track import outputs

        verdict = comparing.now(asked, a, b, Path(asked.out) / "compared", min_effect, progress.say)
    say(json.dumps(verdict.as_dict(), indent=2) if as_json else outputs.text(verdict))
    return verdict.code


@program.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--repo", help="A Hub repository whose revisions are the checkpoints, instead of FOLDER.")
@click.option(
    "--baseline", help="The pinned checkpoint: a name in FOLDER, or a folder. [default: the first that loads]"
)
@option("model", default=None, help="The card of the checkpoints. [default: fastvlm-0.5b]")
@option("suite")
@option("res")
@option("protocol")
@click.option(
    "--min-effect", type=Share(), default=0.03, show_default=True, help="The smallest change that counts, as a share."
)
@click.option("--alone", is_flag=True, help="Do not measure the baseline beside each night: history alone decides.")
@click.option("--latest", is_flag=True, help="Only the newest checkpoint; older new ones if it is bad, by halving.")
@click.option("--again", multiple=True, metavar="NAME", help="Measure this checkpoint once more; may be repeated.")
@click.option("--verdict", "to", default="verdict", show_default=True, type=click.Path(path_type=Path),
              help="Folder for the verdict: Markdown, JUnit, annotations, JSON, history page.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@measuring
def track(folder: Path | None, repo: str | None, min_effect: float, to: Path, as_json: bool, **options: Any) -> int:
    """Measure the nightly checkpoints that are new, and say whether the newest is slower or worse than the baseline.

    Exit codes: 0 same or better, 1 regression, 2 could not tell (or an error), 3 the newest cannot be loaded.
    """
    from harness import console
    from harness.track import nights, outputs
    from harness.track import track as tracking

    if (folder is None) == (repo is None):
        raise SettingError("harness track: give a FOLDER of checkpoints or --repo ID; next: harness track nightlies/")
    found = nights.Discovered(tuple(nights.of_repo(repo))) if repo else nights.discover(folder or Path())
    baseline, alone, latest, again = (options.pop(name) for name in ("baseline", "alone", "latest", "again"))
    asked, nightly = _asked(_finer(options, min_effect)), Path(options["out"]) / "nightly"
    wish = tracking.Wish(asked, found.nights, nightly, baseline, min_effect, not alone, latest, again, found.notices)
    with console.Progress() as progress:
        result = tracking.track(wish, progress.say)
        for line in outputs.aside(result.verdict, result.write(to)):
            progress.say(line)
    say(json.dumps(result.verdict.as_dict(), indent=2) if as_json else outputs.text(result.verdict))
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in outputs.annotations(result.verdict):
            say(line)
    return result.verdict.code


def _finer(options: dict[str, object], minimum_effect: float) -> dict[str, object]:
    """Return the options with a precision that a ratio with this smallest effect needs, unless one was given."""
    given = click.get_current_context().get_parameter_source("precision")
    if given is click.core.ParameterSource.DEFAULT:
        return {**options, "precision": minimum_effect / 4}
    return options


@program.command()
@click.argument("name", required=False, shell_complete=completion.named("reports"))
@click.option(
    "--logs", default="results", show_default=True, type=click.Path(path_type=Path), help="Folder of run logs."
)
@click.option("--out", default="report", show_default=True, type=click.Path(path_type=Path), help="Folder to write to.")
@click.option(
    "--format", "formats", multiple=True, help="md (markdown), tex (latex), csv, html, png, svg, pdf. [default: all]"
)
@click.option("--columns", default="", help="Only these columns of the tables, by their titles with commas between.")
@click.option("--rows", default="", help="Only rows whose first entry has one of these texts, with commas between.")
@click.option("--all", "every", is_flag=True, help="Render every report.")
def report(
    name: str | None, logs: Path, out: Path, formats: tuple[str, ...], columns: str, rows: str, every: bool
) -> None:
    """Render a report (a Pareto plot, a paper's table, the claims ...) from run logs."""
    from harness.reports import render

    names = render.names() if every or not name else [name]
    chosen = ([part.strip() for part in text.split(",") if part.strip()] for text in (columns, rows))
    made = render.render_all(names, logs, out, formats or render.FORMATS, *chosen)
    for line in made.told:
        click.echo(f"harness: {cleaned(line)}", err=True)
    for path in made.files:
        say(str(path))


@program.command()
@click.option("--ttft", help="The median TTFT allowed, as 200ms.")
@click.option("--accuracy", help="The accuracy needed, as 0.7 or 70%: the fastest such cell is named.")
@click.option("--memory", help="The memory there is, as 8GB.")
@click.option("--energy", help="The energy allowed for a first token, as 5J.")
@click.option("--suite", help="Only cells of this suite. [default: all, each for itself]",
              shell_complete=completion.named("suites"))  # fmt: skip
@click.option("--logs", default="results", show_default=True, type=click.Path(path_type=Path), help="Run logs.")
@click.option("--figure", type=click.Path(path_type=Path), help="Draw the choice into this file (png, svg, pdf).")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def choose(suite: str | None, logs: Path, figure: Path | None, as_json: bool, **limits: str | None) -> int:
    """Name the checkpoint and resolution for a budget, how sure that is, and what would make it surer.

    Exit codes: 0 there is a choice, 1 the logs cannot tell.
    """
    from harness.reports import choice, measured

    answers = choice.choose(measured.of(logs), choice.parse(**limits), suite)
    if figure:
        from harness.reports.figures import pareto

        for path in pareto.write_choice(answers, figure):
            click.echo(str(path), err=True)
    if as_json:
        say(json.dumps([choice.as_dict(one) for one in answers], indent=2))
    else:
        say(choice.text(answers) or f"{logs}: no run log; next: `harness sweep` measures a grid")
    return 0 if any(one.winner for one in answers) else 1


@program.command()
@click.argument("logs", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--long", is_flag=True, help="All there is to say of each. [default: of one cell]")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON: a list.")
def show(logs: tuple[Path, ...], long: bool, as_json: bool) -> int:
    """Print the table of run logs that are there already.

    Exit codes: 0 done, 1 done, but examples failed or logs cannot be read.
    """
    from harness.reports import result
    from harness.runlog import log

    found = [path for folder in logs for path in log.find(folder)]
    if not found:
        raise result.nothing_in(logs)
    return _show(found, as_json, long)


@program.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", default="results", show_default=True, type=click.Path(path_type=Path), help="Folder to copy to.")
def merge(sources: tuple[Path, ...], out: Path) -> int:
    """Copy run logs of other machines into one folder, and name what is there twice.

    Exit codes: 0 all are there, 1 some are not: another run of the same cell is in their place, or they cannot be read.
    """
    from harness.runlog import merge

    merged = list(merge.merge(sources, out))
    for one in merged:
        if one.what != merge.CAME:
            click.echo(f"harness: {cleaned(f'{one.path}: {one.what}: {one.told}')}", err=True)
    kinds = [one.what for one in merged]
    say(", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)) or "no run logs there")
    return int(any(one.problem for one in merged))


def _show(paths: list[Path], as_json: bool, long: bool = True) -> int:
    from harness import console
    from harness.reports import result as outcome

    results, skipped = outcome.of(paths)
    for line in skipped:
        click.echo(f"harness: {cleaned(line)}", err=True)
    if as_json:
        say(json.dumps([result.as_dict() for result in results], indent=2))
    else:
        say(console.table(results) if long or len(results) == 1 else console.compact(results))
        for path in paths:
            say(str(path))
    for line in dict.fromkeys(line for result in results for line in result.failures):
        click.echo(f"harness: {cleaned(line)}", err=True)
    return 1 if skipped or any(result.failed for result in results) else 0


@program.command(name="list")
@click.argument("kind", required=False, type=click.Choice(["models", "suites", "devices", "reports"]))
@click.option("--long", is_flag=True, help="All columns: titles, families, licenses.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def list_(kind: str | None, long: bool, as_json: bool) -> None:
    """Show models, suites, devices and reports, and which of them can run here."""
    from harness import catalogue, console

    tables = catalogue.tables([kind] if kind else ["models", "suites", "devices", "reports"])
    say(json.dumps(tables, indent=2) if as_json else console.catalogue(tables, long))


@program.command()
def check() -> int:
    """Load every card and every plug-in; name what is wrong.

    Exit codes: 0 all is well, 2 something is wrong.
    """
    from harness import catalogue

    problems, count = catalogue.check()
    for problem in problems:
        say(problem)
    say(f"{count} cards and plug-ins checked, {len(problems)} wrong")
    return 2 if problems else 0


@program.command()
@click.option("--strict", is_flag=True, help="Exit with 1 where timings would be doubtful.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def doctor(strict: bool, as_json: bool) -> int:
    """Say what this machine is, what would make its timings doubtful, and what is missing.

    Exit codes: 0 said, 1 with --strict: timings would be doubtful.
    """
    from harness import console
    from harness.machine import doctor

    findings = doctor.examine()
    if as_json:
        say(json.dumps([{"level": f.level, "text": f.text, "next": f.next_step} for f in findings], indent=2))
    else:
        say(console.findings(findings))
    return 1 if strict and any(finding.level == "doubt" for finding in findings) else 0


@program.command()
@option("device")
@option("dtype")
@click.option("--res", type=click.IntRange(64, 2048), default=512, show_default=True, help="Input side in pixels.")
@click.option("--fault", default="", metavar="NAME", help="Plant a fault, which must be found (--device fake alone).")
@option("wait")
@click.option(
    "--to", default="selftest.txt", show_default=True, type=click.Path(path_type=Path), help="The file to send."
)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def selftest(device: Any, dtype: Any, res: int, fault: str, wait: bool, to: Path, as_json: bool) -> int:
    """Check what this machine's numbers rest on: outputs, clocks, syncs, memory, the gate, energy. Minutes, offline.

    Exit codes: 0 passed (doubts are named), 1 a check failed.
    """
    from harness import console
    from harness.machine import backend
    from harness.measure.selftest import kit

    with console.Progress() as progress:
        report = kit.run(device or backend.best(), dtype, res, fault, wait, progress.say)
    report.write(to)
    say(json.dumps(report.as_dict(), indent=2) if as_json else f"{report.text()}\nto send: {to}")
    return 1 if report.failed else 0


@program.command()
@click.option("--format", "form", type=click.Choice(["text", "markdown", "json"]), default="text", show_default=True)
@click.argument("names", nargs=-1, shell_complete=completion.named("models"))
def models(form: str, names: tuple[str, ...]) -> None:
    """Print every card's parameters by part, visual tokens, FLOPs and bytes (counted without weights)."""
    from harness import console
    from harness.models import counts

    with console.Progress() as progress:
        rows = counts.table(list(names) or None, lambda name: progress.say(f"counting {name}"))
    if form == "json":
        say(json.dumps(rows, indent=2))
    elif form == "markdown":
        say(counts.to_markdown(rows))
    else:
        say(console.architectures(rows))


@program.group()
def export() -> None:
    """Write a model, or a part of it, in another program's format."""


def tracker(name: str, told: str, example: str, keeps_figures: bool = False) -> None:
    """Add `harness export NAME`: the cells of run logs (and their figure), told to another program."""

    @click.argument("logs", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
    @click.option("--to", required=True, help=example)
    @click.option("--tag", "tags", multiple=True, metavar="NAME=VALUE", help="A tag for every cell.")
    def command(logs: tuple[Path, ...], to: str, tags: tuple[str, ...]) -> None:
        from harness import plugins
        from harness.reports import measured, render

        data = measured.of(*logs)
        for skipped in data.frame.skipped:
            click.echo(f"harness: {skipped}", err=True)
        named = {key: str(value) for key, value in map(_setting, tags)}
        exporter = plugins.load("exporters", name.replace("-", "_"))
        beside = {"figures": render.drawings("pareto", data)} if keeps_figures else {}
        for line in exporter.export(data.cells, to, sources=data.frame.records, **beside, **named):
            say(str(line))

    export.command(name=name, help=told)(command)


tracker(
    "mlflow", "A run per cell in MLflow; the same cell is the same run.", "A tracking URI, as sqlite:///runs.db.", True
)
tracker("wandb", "A run per cell in Weights & Biases; the same cell is the same run.", "The project.", True)
tracker("trackio", "A run per cell in Trackio.", "The project.")
tracker("hud", "PyTorch HUD's benchmark JSON.", "The file to write.")
tracker("github-benchmark", "github-action-benchmark's JSON.", "The file to write.")


@export.command()
@click.option("--model", default="fastvlm-0.5b", show_default=True, help="A FastVLM card.")
@option("res")
@click.option("--dtype", type=click.Choice(["float16", "float32"]), default="float16", show_default=True)
@option("weights")
@option("seed")
@option("offline")
def coreml(model: str, res: int | None, dtype: str, weights: str | None, seed: int, offline: bool) -> None:
    """Convert FastVLM's encoder to a Core ML package (once; kept in the cache) and print where it is."""
    from harness.models.families.fastvlm import coreml as coreml_export

    path, notices = coreml_export.export(model, res, weights, dtype, seed, offline)
    for notice in notices:
        click.echo(f"note: {notice}", err=True)
    say(str(path))


def _model_for(options: dict[str, Any]) -> str:
    """Return the model to measure where none is named, and say why if it is not the usual one."""
    from harness import catalogue

    if options.get("endpoint"):
        from harness.models.engines import openai

        return openai.only_model(options["endpoint"])
    if options["no_stand_in"]:
        return catalogue.DEFAULT_MODEL
    model, notice = catalogue.default_model(options["weights"], options["offline"])
    if notice:
        click.echo(f"note: {notice}", err=True)
    return model


def _asked(options: dict[str, Any]) -> Any:
    """Turn the options into what is asked for, with the device and the model decided."""
    from harness import catalogue
    from harness.machine import backend
    from harness.measure.asked import Asked

    settings = dict(_setting(text) for text in options.pop("settings"))
    if route := options.pop("route"):
        settings["route"] = route
    device = options.pop("device")
    if options.get("endpoint"):
        if device and not device.startswith("served"):
            raise SettingError(f"--device {device}: a server has devices of its own; next: leave --device out")
        device = "cpu"
    device = backend.best() if device is None else device
    model = options.pop("model") or catalogue.DEFAULT_MODEL
    return Asked(**options, device=device, model=model, settings=settings)


def _side(text: str) -> int:
    if not text.strip().isdecimal():
        raise SettingError(f"--res {text}: write whole numbers of pixels with commas between, as --res 512,1024")
    return int(text)


def _setting(text: str) -> tuple[str, str | int | float | bool]:
    name, equals, value = text.partition("=")
    if not equals:
        raise SettingError(f"--set {text}: write NAME=VALUE")
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):  # not JSON, or digits and brackets without end: a text
        parsed = value
    if isinstance(parsed, float) and not math.isfinite(parsed):
        raise SettingError(f"--set {text[:80]}: not a finite number; next: give one, or quotation marks for a text")
    return name, parsed if isinstance(parsed, str | int | float | bool) else value
