"""Data from the Hub: only the split's files, only as many as are needed, told apart from a part of a cache.

There is no Hub in the tests; a server on this machine answers as it does, for huggingface_hub's own client.
"""

import hashlib
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from harness.suites import examples
from harness.suites.card import load_suite_card

REPO = "lmms-lab-encoder/DocVQA"
REVISION = "a" * 40
README = """\
---
configs:
- config_name: DocVQA
  data_files:
  - split: validation
    path: DocVQA/validation-*
  - split: test
    path: DocVQA/test-*
---
"""


def page(number: int) -> dict[str, Any]:
    """Return a row of DocVQA."""
    image = {"bytes": f"page {number}".encode(), "path": f"{number}.png"}
    return {"questionId": str(number), "question": "What?", "image": image, "answers": ["x"]}


class Hub:
    """What stands on the server, and what was asked of it."""

    def __init__(self, folder: Path) -> None:
        names = ("validation-00000-of-00002", "validation-00001-of-00002", "test-00000-of-00001")
        for at, name in enumerate(names):
            path = folder / "DocVQA" / f"{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            parquet.write_table(pa.Table.from_pylist([page(3 * at + number) for number in range(3)]), path)
        (folder / "README.md").write_text(README)
        self.files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}
        self.fetched: list[str] = []

    def info(self) -> dict[str, Any]:
        """Return what the Hub says about a data set."""
        siblings = [{"rfilename": name} for name in self.files]
        return {
            "id": REPO,
            "sha": REVISION,
            "private": False,
            "tags": [],
            "siblings": siblings,
            "downloads": 0,
            "likes": 0,
        }

    def tree(self, under: str) -> list[dict[str, Any]]:
        """Return a folder's files and folders."""
        found = {}
        for name, data in self.files.items():
            if not under or name.startswith(f"{under}/"):
                first = name[len(under) + 1 if under else 0 :].partition("/")
                path = f"{under}/{first[0]}".strip("/")
                kind = "directory" if first[1] else "file"
                found[path] = {"type": kind, "path": path, "size": len(data), "oid": _oid(data)}
        return list(found.values())


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub on this machine with DocVQA's first six pages in two files."""
    stock = Hub(tmp_path / "hub")

    class Answer(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def reply(self, body: Any, status: int = 200, **headers: str) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/" or re.fullmatch(rf"/api/datasets/{REPO}(/revision/\w+)?", path):
                return self.reply(stock.info())
            tree = re.fullmatch(rf"/api/datasets/{REPO}/tree/\w+(?:/(.+))?", path)
            if tree and stock.tree(tree[1] or ""):
                return self.reply(stock.tree(tree[1] or ""))
            file = re.fullmatch(rf"/datasets/{REPO}/resolve/\w+/(.+)", path)
            if file and file[1] in stock.files:
                data = stock.files[file[1]]
                if self.command == "GET":
                    stock.fetched.append(file[1])
                return self.reply(data, ETag=f'"{_oid(data)}"', X_Repo_Commit=REVISION)
            return self.reply({"error": "not found"}, 404, X_Error_Code="EntryNotFound")

        do_HEAD = do_GET  # noqa: N815 - the name is the library's

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.setenv("VLM_PARETO_CACHE", str(tmp_path / "cache"))
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_CACHE", "HARNESS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    yield stock
    server.shutdown()


def fetch(program: str) -> list[Any]:
    """Run `program` where the libraries see the environment from the start; return what it printed, line by line."""
    head = (
        "import json\nfrom harness import hub\nfrom harness.errors import DataError\n"
        "from harness.suites.builder import addresses, count_rows\n"
        "def say(found): print(json.dumps([found[0], [path.name for path in found[1]]]))\n"
        "def told(act):\n"
        "    try: say(act())\n"
        "    except DataError as error: print(json.dumps(str(error)))\n"
    )
    done = subprocess.run([sys.executable, "-c", head + program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_only_what_is_needed_is_fetched_and_a_part_of_a_cache_is_not_the_data_set(hub: Hub) -> None:
    first, part, both, whole, wrong = fetch(
        f"def wanted(rows): return [('DocVQA', 'validation', rows)]\n"
        f"told(lambda: hub.fetch('{REPO}', wanted(2), addresses('{REPO}'), count_rows))\n"
        f"told(lambda: hub.cached('{REPO}', wanted(2)))\n"
        f"told(lambda: hub.fetch('{REPO}', wanted(None), addresses('{REPO}'), count_rows))\n"
        f"told(lambda: hub.cached('{REPO}', wanted(None)))\n"
        f"told(lambda: hub.fetch('{REPO}X', wanted(None), addresses('{REPO}X'), count_rows))\n"
    )
    names = [f"validation-0000{at}-of-00002.parquet" for at in (0, 1)]
    assert first == [REVISION, names[:1]]
    assert part == f"the Hub's cache has 1 of 2 files of {REPO}, split validation, at revision {REVISION[:12]}"
    assert both == whole == [REVISION, names]
    assert wrong.startswith(f"{REPO}X could not be fetched from the Hub: ")
    assert sorted(name for name in hub.fetched if name.endswith(".parquet")) == [f"DocVQA/{name}" for name in names]


def test_a_suite_from_the_hub_is_built_once_and_needs_no_hub_after(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = examples.open_suite(load_suite_card("docvqa"), limit=2)
    assert (suite.origin, suite.name, suite.notice) == ("hub", "docvqa", "")
    assert [example.images for example in suite.examples] == [(b"page 0",), (b"page 1",)]
    assert examples.present(load_suite_card("docvqa"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(examples, "_make", lambda _: pytest.fail("built again"))
    again = examples.open_suite(load_suite_card("docvqa"), limit=2)
    assert (again.digest, list(again.examples)) == (suite.digest, list(suite.examples))
