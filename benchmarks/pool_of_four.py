"""How much sooner a pool of four fake devices is done than one: wall time of the same cells, both by `harness sweep`.

Fake devices wait and do not compute, so two cores serve four of them; what does compute is the start of each cell's
process. Cells therefore wait much longer than a process takes to start, as real cells do. Run it on a quiet machine.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MOST = 0.35
"""Of one device's wall time: a quarter, and the start of four processes on few cores."""


def sweep(device: str, cells: int, seconds: float, folder: Path) -> float:
    """Measure the cells on `device`; return how long the whole command took, in seconds."""
    samples = 10
    each_ms = seconds * 1000 / (2 * samples)  # two passes a sample
    sides = ",".join(str(64 * (number + 1)) for number in range(cells))
    command = [sys.executable, "-m", "harness", "sweep", "--model", "fake", "--suite", "pages", "--device", device]
    command += ["--res", sides, "--limit", str(samples), "--min-samples", str(samples), "--min-seconds", "0"]
    command += ["--max-samples", str(samples), "--set", f"prefill_ms={each_ms}", "--out", str(folder / device)]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    took = time.monotonic() - began
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return took


def main() -> None:
    """Measure both, print both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20.0, help="what a cell waits, about")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        four = sweep("fake:all", asked.cells, asked.seconds, Path(folder))
        one = sweep("fake", asked.cells, asked.seconds, Path(folder))
    print(f"{asked.cells} cells: one device {one:.1f} s, a pool of four {four:.1f} s: {four / one:.3f} of one")
    sys.exit(four / one > MOST)


if __name__ == "__main__":
    main()
