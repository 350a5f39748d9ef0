"""The run log survives what kills a run: torn lines, full disks, two writers."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from harness.errors import LogError
from harness.runlog import log
from harness.runlog.log import Writer, find, read
from harness.runlog.records import Failure, Footer, Header, Resumed, Sample

HEADER = Header(
    schema=1,
    cell={"model": "m"},
    key="k",
    command="harness run",
    started_at="now",
    harness={},
    environment={},
    device={},
    requested={},
    effective={},
    cards={},
    weights={"source": "random"},
    data={"name": "pages"},
)
FOOTER = Footer(ended_at="later", samples=2, failures=0, stopped="examples")


def sample(name: str) -> Sample:
    return Sample(example=name, index=0, attempt=1, phase="timed", at="now", clock="scripted", answer="é \u2028 x")


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    failure = Failure(example="b", index=1, stage="encode", error="ExampleError", message="m", traceback="t", at="now")
    resumed = Resumed(started_at="now", environment={}, device={}, lines_kept=2, bytes_dropped=7)
    with Writer(tmp_path / "a.jsonl") as writer:
        assert writer.open() is None
        for record in (HEADER, sample("a"), failure, resumed):
            writer.append(record)
        assert not (tmp_path / "a.jsonl").exists()
        writer.finish(FOOTER)
    back = read(tmp_path / "a.jsonl")
    assert (back.header, back.samples, back.failures, back.resumed) == (HEADER, (sample("a"),), (failure,), (resumed,))
    assert back.footer == FOOTER
    assert back.torn_bytes == 0
    assert not (tmp_path / "a.jsonl.part").exists()


def test_every_cut_of_a_log_is_read_and_resumed(tmp_path: Path) -> None:
    """Wherever a dying process stops writing, all whole lines are kept and nothing else."""
    path = tmp_path / "a.jsonl"
    with Writer(path) as writer:
        writer.open()
        for record in (HEADER, sample("a"), sample("b")):
            writer.append(record)
    whole = writer.part.read_bytes()
    ends = [position + 1 for position, byte in enumerate(whole) if byte == 10]
    for cut in range(len(whole) + 1):
        writer.part.write_bytes(whole[:cut])
        complete = sum(end <= cut for end in ends)
        with Writer(path) as again:
            left = again.open()
            if not complete:
                assert left is None
                assert writer.part.stat().st_size == 0
                continue
            assert left is not None
            assert len(left.samples) == complete - 1
            assert left.torn_bytes == cut - ends[complete - 1]
            again.append(sample("c"))
        assert [s.example for s in read(writer.part).samples] == [*["a", "b"][: complete - 1], "c"]


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    with Writer(tmp_path / "a.jsonl") as writer:
        writer.open()
        writer.append(HEADER)
        writer.append(sample("a"))
    lines = writer.part.read_bytes().splitlines(keepends=True)
    writer.part.write_bytes(lines[0] + b'{"kind":"sample"\n' + lines[1])
    with pytest.raises(LogError, match=r"a\.jsonl\.part:2: not a line of a run log"):
        read(writer.part)


def test_a_log_of_the_future_is_refused_by_its_schema(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"kind":"header","schema":99,"new":1}\n{"kind":"sample"}\n')
    with pytest.raises(LogError, match="schema 99 is newer"):
        read(path)


def test_two_runs_cannot_write_one_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "WAIT_S", 0.0)
    with Writer(tmp_path / "a.jsonl") as first, Writer(tmp_path / "a.jsonl") as second:
        first.open()
        with pytest.raises(LogError, match="another run is writing it"):
            second.open()


def test_a_full_disk_loses_nothing_that_was_written(tmp_path: Path) -> None:
    """A child with a file size limit stands for the full disk: the write fails half way through a line."""
    code = """
import resource, signal, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_log import HEADER, sample
from harness.errors import LogError
from harness.runlog import log
from harness.runlog.log import Writer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))
with Writer(Path(sys.argv[1])) as writer:
    writer.open()
    writer.append(HEADER)
    try:
        for number in range(100):
            writer.append(sample(str(number)))
    except LogError as error:
        print(number, error)
"""
    target = tmp_path / "a.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", code, str(target), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=True,
    )
    written, _, message = done.stdout.partition(" ")
    assert "everything before is kept; next: free space" in message
    assert int(written) >= 1
    kept = read(target.with_name("a.jsonl.part"))
    assert [s.example for s in kept.samples] == [str(n) for n in range(int(written))]
    assert kept.torn_bytes == 0


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(LogError, match="cannot be written"):
        Writer(blocked / "a.jsonl").open()


def test_logs_are_found_finished_or_not_in_a_stable_order(tmp_path: Path) -> None:
    for name in ("b/x.jsonl", "a/y.jsonl.part", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert [os.path.relpath(p, tmp_path) for p in find(tmp_path)] == ["a/y.jsonl.part", "b/x.jsonl"]


def written(path: Path, *records: Header | Sample | Failure | Footer) -> Path:
    """Write records as lines, without a writer's care."""
    path.write_bytes(b"".join(msgspec.json.encode(record) + b"\n" for record in records))
    return path


def test_two_logs_in_one_file_are_no_log(tmp_path: Path) -> None:
    """They would be counted as one run of twice as many samples."""
    once = (HEADER, sample("a"), FOOTER)
    with pytest.raises(LogError, match=r"a\.jsonl:4: a second header"):
        read(written(tmp_path / "a.jsonl", *once, *once))
    with pytest.raises(LogError, match=r"b\.jsonl:4: a line after the footer"):
        read(written(tmp_path / "b.jsonl", *once, sample("b")))
    with pytest.raises(LogError, match=r"c\.jsonl:1: the first line is no header"):
        read(written(tmp_path / "c.jsonl", sample("a"), HEADER))


def test_a_line_that_stands_twice_counts_once_and_is_said(tmp_path: Path) -> None:
    twice = read(written(tmp_path / "a.jsonl", HEADER, sample("a"), sample("b"), sample("a"), FOOTER))
    assert [one.example for one in twice.samples] == ["a", "b"]
    assert twice.repeated == (4,)


@pytest.mark.parametrize(
    "figure", ['"ttft_ns":0', '"ttft_ns":-5', '"ttft_ns":9223372036854775808', '"ttft_ns":1e400', '"ttft_ns":NaN',
               '"ttft_ns":1' + "0" * 30, '"stage_ns":{"encode":-1}', '"total_ns":9007199254740993']
)  # fmt: skip
def test_a_figure_that_cannot_be_is_no_figure(tmp_path: Path, figure: str) -> None:
    good = msgspec.json.encode(sample("a"))
    bad = good[:-1] + b',"whole":{' + figure.encode() + b"}}"
    path = written(tmp_path / "a.jsonl", HEADER, sample("b"))
    path.write_bytes(path.read_bytes() + bad + b"\n" + msgspec.json.encode(FOOTER) + b"\n")
    with pytest.raises(LogError, match=r"a\.jsonl:3: not a line of a run log"):
        read(path)


@pytest.mark.parametrize(
    ("where", "what"),
    [("cell", {"repetition": "x"}), ("cell", {"limit": True}), ("cell", {"isolate": "no"}),
     ("effective", {"peak_flops_per_s": 0}), ("effective", {"peak_bytes_per_s": -1.0})],
)  # fmt: skip
def test_a_header_that_no_run_could_have_is_no_log(tmp_path: Path, where: str, what: dict[str, object]) -> None:
    header = msgspec.json.decode(msgspec.json.encode(HEADER))
    header[where] |= what
    (tmp_path / "a.jsonl").write_bytes(msgspec.json.encode(header) + b"\n" + msgspec.json.encode(FOOTER) + b"\n")
    with pytest.raises(LogError, match=rf"a\.jsonl:1: .*{next(iter(what))}"):
        read(tmp_path / "a.jsonl")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(LogError, match="is a named pipe, not a regular file"):
        read(tmp_path / "a.jsonl")


def test_a_run_that_died_before_the_renaming_is_finished(tmp_path: Path) -> None:
    """Its footer stands there: nothing is to be measured, and no second footer written."""
    path = tmp_path / "a.jsonl"
    written(tmp_path / "a.jsonl.part", HEADER, sample("a"), FOOTER)
    log.complete(path)
    assert read(path).finished
    assert not (tmp_path / "a.jsonl.part").exists()


def test_a_log_that_gets_its_name_meanwhile_is_not_replaced_by_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the reading of the footer and the lock, the run that wrote it gives the log its name."""
    path, part = tmp_path / "a.jsonl", written(tmp_path / "a.jsonl.part", HEADER, sample("a"), FOOTER)
    whole = part.read_bytes()

    def named_meanwhile(one: Path) -> log.Log:
        found = read(one)
        part.rename(path)
        return found

    monkeypatch.setattr(log, "read", named_meanwhile)
    log.complete(path)
    assert path.read_bytes() == whole
    assert not part.exists()


def test_a_log_that_another_run_goes_on_with_meanwhile_is_not_given_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, part = tmp_path / "a.jsonl", written(tmp_path / "a.jsonl.part", HEADER, sample("a"), FOOTER)
    seen = []

    def gone_on_with(one: Path) -> log.Log:
        found = read(one)
        if not seen:
            seen.append(written(part, HEADER, sample("a")))
        return found

    monkeypatch.setattr(log, "read", gone_on_with)
    log.complete(path)
    assert part.exists()
    assert not path.exists()


def test_a_log_that_another_run_finishes_meanwhile_is_not_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    with Writer(path) as first, Writer(path) as second:
        first.open()
        first.append(HEADER)
        first.append(sample("a"))
        lock = second.lock

        def finished_meanwhile() -> None:
            first.finish(FOOTER)
            lock()

        monkeypatch.setattr(second, "lock", finished_meanwhile)
        with pytest.raises(LogError, match="another run has just finished it"):
            second.reopen()
    assert [one.example for one in read(path).samples] == ["a"]
    assert not second.part.exists()


def test_whoever_goes_on_with_a_finished_log_takes_its_footer_off(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", HEADER, sample("a"), FOOTER)
    whole = path.read_bytes()
    with Writer(path) as writer:
        left = writer.reopen()
        assert left is not None
        assert writer.part.read_bytes() == whole  # until there is more to say: dying here loses nothing
        writer.append(sample("b"))
        writer.finish(FOOTER)
    assert path.read_bytes().count(b'"kind":"footer"') == 1
    assert [one.example for one in read(path).samples] == ["a", "b"]


def failed(name: str, error: str, message: str = "m") -> Failure:
    return Failure(example=name, index=0, stage="encode", error=error, message=message, traceback="", at="now")


@pytest.mark.parametrize(
    ("records", "stopped", "cut_short"),
    [
        ([failed("a", "MemoryError"), failed("b", "OutOfMemoryError")], "examples", True),
        ([failed("a", "RuntimeError", "CUDA error: out of memory")], "examples", True),
        ([failed("a", "MemoryError"), failed("b", "ExampleError")], "examples", False),
        ([failed("a", "ValueError")], "failures", False),
        ([sample("a"), failed("b", "MemoryError")], "examples", False),
        ([sample("a"), failed("b", "MemoryError")], "failures", True),
        ([sample("a")], "examples", False),
    ],
)
def test_trouble_that_may_pass_is_not_the_end_of_a_run(
    tmp_path: Path, records: list[Sample | Failure], stopped: str, cut_short: bool
) -> None:
    footer = Footer(ended_at="later", samples=0, failures=0, stopped=stopped)
    assert read(written(tmp_path / "a.jsonl", HEADER, *records, footer)).cut_short is cut_short


def test_a_failure_that_a_later_try_mended_is_not_told_any_more(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", HEADER, failed("a", "MemoryError"), failed("b", "MemoryError"), sample("a"))
    assert [one.example for one in read(path).lasting] == ["b"]


def test_an_example_that_failed_twice_is_one_failure(tmp_path: Path) -> None:
    """A run that was resumed tried it again, or two shards did."""
    twice = [failed("a", "ValueError", "first"), failed("b", "ValueError"), failed("a", "ValueError", "last")]
    lasting = read(written(tmp_path / "a.jsonl", HEADER, *twice)).lasting
    assert [(one.example, one.message) for one in lasting] == [("b", "m"), ("a", "last")]


def test_what_was_put_together_of_shards_is_not_cut_short(tmp_path: Path) -> None:
    """One gave up, and the last failure is another's, which passes: there is no shard left to go on with."""
    footer = Footer(ended_at="later", samples=1, failures=1, stopped="failures")
    records = [sample("a"), failed("b", "MemoryError"), footer]
    whole = msgspec.structs.replace(HEADER, effective={"shards": 2})
    assert read(written(tmp_path / "a.jsonl", HEADER, *records)).cut_short
    assert not read(written(tmp_path / "b.jsonl", whole, *records)).cut_short


def test_a_finished_log_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power cut leaves a name whose content never arrived: the order of the two calls is the promise."""
    order: list[str] = []
    sync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("sync"), sync(handle))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("name"), rename(a, b))[1])
    with Writer(tmp_path / "a.jsonl") as writer:
        writer.open()
        writer.append(HEADER)
        writer.append(sample("1"))
        writer.finish(FOOTER)
    assert order[-2:] == ["sync", "name"]


def test_a_line_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    line = msgspec.json.encode(sample("a")).replace("é".encode(), b"\xed\xa0\x80")
    path.write_bytes(
        b"\n".join(map(msgspec.json.encode, [HEADER, FOOTER])).replace(b"\n", b"\n" + line + b"\n") + b"\n"
    )
    with pytest.raises(LogError, match=r"a\.jsonl:2: not a line of a run log.*next:"):
        read(path)


@pytest.mark.parametrize("cell", [{"model": ["a"]}, {"model": {"a": 1}}, {"resolution": [1, 2]}, {"settings": 5}])
def test_a_cell_that_no_run_could_have_had_is_refused(tmp_path: Path, cell: dict[str, object]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(msgspec.json.encode({**msgspec.to_builtins(HEADER), "cell": cell}) + b"\n")
    with pytest.raises(LogError, match=rf"a\.jsonl:1: .*the cell's {next(iter(cell))} is a "):
        read(path)


def test_half_of_a_surrogate_pair_in_an_answer_costs_that_character_alone(tmp_path: Path) -> None:
    with Writer(tmp_path / "a.jsonl") as writer:
        writer.open()
        writer.append(HEADER)
        writer.append(msgspec.structs.replace(sample("a"), answer="é\ud83d!"))
        writer.finish(FOOTER)
    (kept,) = read(tmp_path / "a.jsonl").samples
    assert kept == msgspec.structs.replace(sample("a"), answer="é?!")
