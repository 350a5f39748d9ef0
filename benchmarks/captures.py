"""What the terminal shows at 80 and 120 columns, kept as text in docs/captures: run, sweep, show, list, choose.

`python benchmarks/captures.py FOLDER` measures in FOLDER what `run` and `sweep` show (a minute or two); the others read
the reference logs. Read what changed before it is committed.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
REFERENCE = str(ROOT / "results" / "reference")
WIDTHS = (80, 120)
COMMANDS = {
    "run": "run --suite docvqa --res 1024 --offline --limit 24 --max-seconds 30",
    "sweep": "sweep --model fastvlm-nano --suite pages --res 256,512 --limit 8 --max-seconds 10",
    "show": f"show {REFERENCE}",
    "list": "list",
    "choose": f"choose --ttft 150ms --logs {REFERENCE}",
}


def capture(name: str, columns: int, folder: Path) -> str:
    """Return the command and all it says, as a terminal of this width shows it."""
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "dumb"}
    command = [sys.executable, "-m", "harness", *COMMANDS[name].split()]
    more = ["--again"] if name in ("run", "sweep") and columns == WIDTHS[-1] else []
    done = subprocess.run(
        [*command, *more], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, check=False,
    )  # fmt: skip
    told = f"$ harness {COMMANDS[name]}\n{done.stdout}"
    for place, short in ((str(ROOT), "."), (str(folder), "."), (str(Path.home()), "~")):
        told = told.replace(f"{place}/", f"{short}/" if short != "." else "")
    return told


def main(folder: Path) -> None:
    """Write all captures."""
    to = ROOT / "docs" / "captures"
    to.mkdir(exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    for name in COMMANDS:
        for columns in reversed(WIDTHS):  # measured once; the narrow one shows what is there already
            (to / f"{name}-{columns}.txt").write_text(capture(name, columns, folder.resolve()), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
