"""`nox` runs what CI runs: style, types, the arrows between modules, the tests, and that the reports are up to date."""

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
    session.run("lint-imports")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests; `nox -s tests -- -k frontier` passes arguments on."""
    install(session, "test")
    # One thread a process: two test processes with two threads each would only wait for one another.
    session.run("pytest", "-q", "-n", "2", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def serving(session: nox.Session) -> None:
    """Run what needs a real server: `transformers serve` with tiny checkpoints. Two minutes on two quiet cores."""
    install(session, "test")
    session.install(*nox.project.dependency_groups(GROUPS, "serving"))
    session.run("pytest", "-q", "tests/measure/test_served.py", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def apple(session: nox.Session) -> None:
    """Run what of Apple's engines runs here: MLX (its CPU build on Linux), and conversion to Core ML. Ten minutes."""
    install(session, "test")
    mlx = "mlx" if sys.platform == "darwin" else "mlx[cpu]"
    session.install(mlx, "mlx-lm", "coremltools", "numpy<2.4")  # coremltools 9 cannot convert with numpy 2.4
    names = ("models/test_mlx", "models/test_coreml", "machine/test_devices_mps", "measure/test_gate")
    files = [f"tests/{name}.py" for name in names]
    session.run("pytest", "-q", *files, *session.posargs, env={"OMP_NUM_THREADS": "2"})


@nox.session
def gpu(session: nox.Session) -> None:
    """Run what only an NVIDIA GPU can show (docs/cuda.md). A minute; nothing of it runs without one."""
    install(session, "test")
    session.run("pytest", "-q", "-m", "gpu", "tests", *session.posargs)
