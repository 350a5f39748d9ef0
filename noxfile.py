"""`nox` runs what CI runs: style, types, the arrows between modules, the tests, and that the reports are up to date."""

import os
import shutil
import sys

import nox

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["lint", "tests"]
GROUPS = nox.project.load_toml("pyproject.toml")


def install(session: nox.Session, group: str) -> None:
    """Install the project as it is in this folder, and the tools of one dependency group."""
    session.install("-e", ".", *nox.project.dependency_groups(GROUPS, group))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, types and that the two halves stay apart."""
    install(session, "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("mypy", "--config-file", "tests/mypy.ini")
    session.run("lint-imports")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests but for the slow ones; `nox -s tests -- -k frontier` passes arguments on."""
    install(session, "test")
    # One thread a process: two test processes with two threads each would only wait for one another.
    command = ("pytest", "-q", "-n", "2", "--dist", "loadgroup", "-m", "not slow")
    session.run(*command, *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def slow(session: nox.Session) -> None:
    """Run the slow tests: whole programs over several processes, and training. Five minutes on two quiet cores."""
    install(session, "test")
    session.run("pytest", "-q", "-m", "slow", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def serving(session: nox.Session) -> None:
    """Run what needs a real server: `transformers serve` with tiny checkpoints. Two minutes on two quiet cores."""
    install(session, "test")
    session.install(*nox.project.dependency_groups(GROUPS, "serving"))
    session.run("pytest", "-q", "tests/measure/test_served.py", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def slurm(session: nox.Session) -> None:
    """Run sweeps on a real Slurm of this host, brought up on loopback: two nodes, no accounting. Five minutes."""
    if not shutil.which("slurmctld"):
        if shutil.which("apt-get") is None or os.getuid() != 0:
            session.skip("there is no slurmctld here, and only root of a Debian can install it: slurm-wlm and munge")
        try:
            packages = ("slurm-wlm", "munge")
            session.run("apt-get", "install", "-y", "-q", "--no-install-recommends", *packages, external=True)
        except nox.command.CommandFailed:
            session.skip("slurm-wlm and munge cannot be installed here: apt-get says why above")
    install(session, "test")
    session.install("submitit>=1.5")
    environment = {"OMP_NUM_THREADS": "1", "VLM_PARETO_SLURM": "1"}
    session.run("pytest", "-q", "-m", "slurm", "tests/measure/test_slurm.py", *session.posargs, env=environment)


@nox.session
def apple(session: nox.Session) -> None:
    """Run what of Apple's engines runs here: MLX (its CPU build on Linux), and conversion to Core ML. Ten minutes."""
    install(session, "test")
    mlx = "mlx" if sys.platform == "darwin" else "mlx[cpu]"
    session.install(mlx, "mlx-lm", "coremltools", "numpy<2.4")  # coremltools 9 cannot convert with numpy 2.4
    names = ["models/test_mlx", "models/test_coreml", "measure/test_gate"]
    names += [f"machine/test_{name}" for name in ("devices_mps", "devices_mlx", "probes_mac", "awake")]
    files = [f"tests/{name}.py" for name in names]
    session.run("pytest", "-q", *files, *session.posargs, env={"OMP_NUM_THREADS": "2"})


@nox.session
def gpu(session: nox.Session) -> None:
    """Run what only an NVIDIA GPU can show (docs/cuda.md). A minute; nothing of it runs without one."""
    install(session, "test")
    session.run("pytest", "-q", "-m", "gpu", "tests", *session.posargs)
