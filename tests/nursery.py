"""A program's start costs seconds, all of them imports. Here one process imports, and each call is a fork of it.

Each call is still a process of its own, with its own folder, environment, streams, signals and exit code. Tests of the
very start (what is imported when, a signal in the first moment) start a real `python -m harness` instead.
"""

import functools
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

IMPORTED = ["torch", "transformers", "datasets", "pandas", "matplotlib.pyplot", "lmms_eval.tasks"]
IMPORTED += ["harness.cli", "harness.measure.run", "harness.measure.sweep", "harness.models.families.fastvlm"]
IMPORTED += ["harness.models.families.fake", "harness.suites.builder", "harness.reports.formats"]


class Nursery:
    """Runs `harness` in forks of one process that has imported everything; it ends with this one."""

    def __init__(self) -> None:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, arguments: list[str], cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """Run `harness ARGUMENTS` in `cwd` with exactly the environment `env`; return what it printed and its code."""
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder) / "out", Path(folder) / "err"
            order = {"arguments": arguments, "cwd": str(cwd), "env": env, "out": str(out), "err": str(err)}
            said = self._ask(order)
            return subprocess.CompletedProcess(arguments, json.loads(said)["code"], out.read_text(), err.read_text())

    def _ask(self, order: dict[str, object]) -> str:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin
        assert stdout
        stdin.write(json.dumps(order) + "\n")
        stdin.flush()
        said = stdout.readline()
        assert said, "the process that has imported everything is gone"
        return said


@functools.cache
def opened() -> Nursery:
    """Return this test process's nursery, started when it is first asked for."""
    return Nursery()


def _born(order: dict[str, str]) -> None:
    """Become the program: never returns."""
    from harness.__main__ import main

    code = 1
    try:
        for number, path in ((1, order["out"]), (2, order["err"])):
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, number)
            os.close(file)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115
        os.chdir(order["cwd"])
        os.environ.clear()
        os.environ.update(order["env"])  # type: ignore[arg-type]
        sys.argv = ["harness", *order["arguments"]]
        main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def be_impatient() -> None:
    """Have the gate ask again at once: tests run beside each other, and no machine under them will become quiet.

    A refused sample is refused all the same. Clocks that are scripted keep their delays, which cost nothing.
    """
    from harness.clock import Monotonic
    from harness.measure.gate import Gate

    patient = Gate.retry_delay_ns

    def delay_ns(gate: Gate, attempt: int) -> int:
        return 0 if isinstance(gate._clock, Monotonic) else patient(gate, attempt)

    Gate.retry_delay_ns = delay_ns  # type: ignore[method-assign]


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no answer
    for name in IMPORTED:
        importlib.import_module(name)
    be_impatient()
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if not child:
            answers.close()
            _born(order)
        _, status = os.waitpid(child, 0)
        answers.write(json.dumps({"code": os.waitstatus_to_exitcode(status)}) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
