"""Change a line that matters, one at a time, and see whether a test fails: `python benchmarks/mutants.py`.

A mutant that no test kills is a line that nobody watches. Each is applied to a copy of the working tree, and only the
tests named beside it are run. The table at the end goes into a closing note; the exit code is the number that survived.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
KEPT = ("harness", "models", "suites", "reports", "tests", "training", "results", "benchmarks", "pyproject.toml")


@dataclass(frozen=True)
class Mutant:
    """A fault: in `file`, `old` becomes `new`; `tests` are pytest's arguments."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


LOOP = ("tests/measure/test_loop.py", "tests/measure/test_passes.py")
MUTANTS = (
    Mutant(
        "passes never alternate",
        "harness/measure/loop.py",
        'order = ["stages", "whole"] if example.index % 2 else ["whole", "stages"]',
        'order = ["whole", "stages"]',
        LOOP,
    ),
    Mutant(
        "the peak is not reset between stages",
        "harness/measure/passes.py",
        "            self.bench.device.reset_peak()\n",
        "",
        LOOP,
    ),
    Mutant(
        "consecutive failures are never forgiven",
        "harness/measure/loop.py",
        "            self.failures_in_a_row = 0\n            new",
        "            new",
        LOOP,
    ),
    Mutant(
        "drift is compared across shapes",
        "harness/measure/gate.py",
        "known = self._first_ns.get(shape, [])",
        "known = [one for each in self._first_ns.values() for one in each]",
        ("tests/measure/test_gate.py",),
    ),
    Mutant(
        "random weights answer in full",
        "harness/measure/loop.py",
        "length = example.max_new_tokens if plan.score and not",
        "length = example.max_new_tokens if not",
        LOOP,
    ),
    Mutant(
        "an isolated part keeps all stages",
        "harness/measure/loop.py",
        "    if plan.part and stages:\n        stages = keep_part(stages, plan.part)\n",
        "",
        LOOP,
    ),
    Mutant(
        "a failure in prefill is labelled preprocess",
        "harness/measure/passes.py",
        "error.failed_in = stage_after(done)",
        "error.failed_in = STAGES[0]",
        LOOP,
    ),
    Mutant(
        "the gate learns from refused samples",
        "harness/measure/gate.py",
        "        if reasons:\n            self._refused_in_a_row += 1\n        else:\n",
        "        if reasons:\n            self._refused_in_a_row += 1\n        if True:\n",
        ("tests/measure/test_gate.py",),
    ),
    Mutant(
        "the gate's first samples grow without end",
        "harness/measure/gate.py",
        "if headline_ns is not None and len(first_ns) < 2 * HISTORY:",
        "if headline_ns is not None:",
        ("tests/measure/test_gate.py",),
    ),
    Mutant(
        "Pareto's interval is twice as wide",
        "harness/reports/pareto.py",
        "/ (2 * 1.96)",
        "/ 1.96",
        ("tests/reports/test_pareto.py",),
    ),
    Mutant(
        "Pareto's rivals come in reverse order",
        "harness/reports/pareto.py",
        "np.argsort(-dominated[i]",
        "np.argsort(dominated[i]",
        ("tests/reports/test_pareto.py",),
    ),
    Mutant(
        "the run log is not synced to the disk",
        "harness/runlog/log.py",
        "        os.fsync(self._file.fileno())\n",
        "",
        ("tests/runlog/test_log.py",),
    ),
    Mutant(
        "refused samples of an earlier process are not counted",
        "harness/measure/run.py",
        "refused = len([s for s in earlier if s.timed and not s.valid])",
        "refused = 0",
        ("tests/measure/test_run.py",),
    ),
    Mutant(
        "LLaVA cuts a longer vocabulary without a word",
        "harness/models/configuration.py",
        "    return msgspec.structs.replace(card, vocab=vocab, tied=tied)",
        "    return msgspec.structs.replace(card, vocab=min(vocab, card.vocab), tied=tied)",
        ("tests/models/test_llava.py", "tests/models/test_configuration.py"),
    ),
    Mutant(
        "OneVision does not round",
        "harness/models/families/llava_onevision.py",
        "int(round(height * (cols / width), 7))",
        "int(height * (cols / width))",
        ("tests/models/test_llava_onevision.py",),
    ),
    Mutant(
        "one decode step too many",
        "harness/models/pipeline.py",
        "elif count + 1 < most:",
        "elif count < most:",
        ("tests/models/test_pipeline.py",),
    ),
)


def copy(to: Path) -> None:
    """Copy what the tests need."""
    for name in KEPT:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=shutil.ignore_patterns("__pycache__", "rendered", "nightlies"))
        else:
            shutil.copy(source, to / name)


def try_one(mutant: Mutant, tree: Path) -> str:
    """Apply one mutant to `tree`, run its tests, undo it; return what became of it."""
    path = tree / mutant.file
    text = path.read_text()
    if text.count(mutant.old) < 1:
        return "NOT APPLIED: the line has changed; next: mend this script"
    path.write_text(text.replace(mutant.old, mutant.new))
    tests = [test for test in mutant.tests if (tree / test).exists()]
    shared = os.environ.get("VLM_PARETO_SHARED", str(ROOT.parent / "shared"))
    environment = {**os.environ, "VLM_PARETO_SHARED": shared, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    finally:
        path.write_text(text)
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    if done.returncode == 1 and failed:
        return "killed by " + failed[0].split("::", 1)[1].split(" - ")[0]
    return "SURVIVED" if done.returncode == 0 else f"NOT RUN: pytest ended with {done.returncode}"


def main() -> int:
    """Try all of them, or those whose name contains the first argument."""
    wanted = [mutant for mutant in MUTANTS if len(sys.argv) < 2 or sys.argv[1] in mutant.name]
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        tree.mkdir()
        copy(tree)
        for number, mutant in enumerate(wanted, 1):
            result = try_one(mutant, tree)
            bad += not result.startswith("killed")
            print(f"{number:2}  {mutant.name:55}  {result}", flush=True)
    print(f"{len(wanted) - bad} of {len(wanted)} killed")
    return bad


if __name__ == "__main__":
    sys.exit(main())
