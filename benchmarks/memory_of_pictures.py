"""Peak memory of `harness run` with 4 and with 400 examples of 3 MB pictures: it must not grow with their number.

    python benchmarks/memory_of_pictures.py [--few 4] [--many 400] [--folder FOLDER]

The fake model decodes each picture (`--set decode=true`), twice for a timed sample; every example is timed. Takes 3 GB
of disk and some minutes. Exit 1 where the peaks differ by more than 5 %. Linux.
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

SIDE = 1024
"""Noise of this side has 3.1 MB as PNG."""
AT_ONCE = 8
"""Rows of a row group: what a reader must hold."""
MOST_GROWTH = 0.05

KIND = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema(
    [("questionId", pa.string()), ("question", pa.string()), ("answers", pa.list_(pa.string())), ("image", KIND)]
)
PROGRAM = r"""
import atexit, re, sys
from pathlib import Path
place = Path(sys.argv.pop())
atexit.register(lambda: place.write_text(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]))
from harness import cli
cli.main()
"""


def pictures(count: int) -> Iterator[bytes]:
    """Yield so many different pictures of noise."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(out, "PNG", compress_level=1)
        yield out.getvalue()


def write(path: Path, count: int) -> None:
    """Write so many rows of DocVQA."""
    with parquet.ParquetWriter(path, SCHEMA) as file:
        rows = []
        for at, data in enumerate(pictures(count)):
            row = {"questionId": str(at), "question": f"What is {at}?", "answers": ["noise"]}
            rows.append(row | {"image": {"bytes": data, "path": f"{at}.png"}})
            if len(rows) == AT_ONCE or at + 1 == count:
                file.write_table(pa.Table.from_pylist(rows, SCHEMA))
                rows.clear()


def peak_mib(folder: Path, count: int) -> float:
    """Measure so many examples in a process of its own; return its peak of resident memory."""
    data, place = folder / f"{count}.parquet", folder / f"{count}.txt"
    write(data, count)
    short = [f"--set={stage}_ms=0.1" for stage in ("preprocess", "encode", "project", "prefill", "decode")]
    asked = ["run", "--model", "fake", "--device", "fake", "--suite", "docvqa", "--data", str(data), *short]
    asked += ["--set", "decode=true", "--decode-tokens", "2", "--min-seconds", "0", "--max-seconds", "600"]
    asked += [
        "--precision",
        "0",
        "--min-samples",
        str(count),
        "--max-samples",
        str(count),
        "--out",
        str(folder / "out"),
    ]
    env = {**os.environ, "VLM_PARETO_CACHE": str(folder / "cache"), "HARNESS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", PROGRAM, *asked, str(place)], env=env, check=True, stdout=subprocess.DEVNULL)
    return int(place.read_text()) / 1024


def main() -> int:
    """Print both peaks and how they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", type=int, default=4)
    parser.add_argument("--many", type=int, default=400)
    parser.add_argument("--folder", type=Path, help="for some GB (default: a temporary one)")
    given = parser.parse_args()
    if given.folder:
        given.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        few, many = (peak_mib(Path(folder), count) for count in (given.few, given.many))
    growth = many / few - 1
    print(f"peak of {given.few} examples: {few:.1f} MiB; of {given.many}: {many:.1f} MiB; {growth:+.2%}")
    return int(growth > MOST_GROWTH)


if __name__ == "__main__":
    sys.exit(main())
