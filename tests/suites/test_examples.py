"""Examples are built once, from the data set's own bytes, whole or not at all, and read back without anything heavy."""

import base64
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from harness.errors import CardError, DataError
from harness.suites import builder, examples
from harness.suites import cache as builds
from harness.suites.card import load_suite_card

WORD = "Answer the question using a single word or phrase."


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of our own, and no Hub."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("VLM_PARETO_CACHE", str(folder))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as the Hub's Parquet files have them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def chart(question: str, image: bytes) -> dict[str, Any]:
    """Return a row in the columns of ChartQA."""
    return {"type": "human_test", "question": question, "answer": "3", "image": {"bytes": image, "path": "x.png"}}


@pytest.fixture
def charts(tmp_path: Path) -> Path:
    """Four questions on three images, of which one file is empty and one is no image at all."""
    images = [b"\x89PNG not really", b"\x89PNG not really", b"", b"GIF? no"]
    return write(tmp_path / "data" / "test.parquet", [chart(f"Q{at}?", image) for at, image in enumerate(images)])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build in this process: the child's own import of lmms-eval takes 5 s; three tests below have real ones."""

    def make(order: builds.Order) -> builds.Build:
        with builds.writing():
            build = builds.read(builder.build(order))
        assert build
        return build

    monkeypatch.setattr(examples, "_make", make)


def no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, starting a child process is an error."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a child process was started")

    monkeypatch.setattr(subprocess, "run", refuse)
    monkeypatch.setattr(examples, "_make", refuse)


def test_real_documents_keep_their_bytes_and_ask_as_lmms_eval_does(
    shared: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shared / "data" / "docvqa_mini"
    (file,) = data.glob("*.parquet")
    rows = parquet.read_table(file).to_pylist()
    suite = examples.open_suite(load_suite_card("docvqa"), str(data))
    assert (suite.origin, suite.name, suite.card.name, len(suite.examples)) == ("local", "docvqa", "docvqa", 49)
    for example, row in zip(suite.examples, rows, strict=True):
        assert example.images == (row["image"]["bytes"],)
        assert example.image_ids == (hashlib.blake2b(row["image"]["bytes"], digest_size=16).hexdigest(),)
        assert example.question == f"{row['question']}\n{WORD}"
        assert example.references == tuple(dict.fromkeys(row["answers"]))
        assert example.max_new_tokens == 32
        assert example.doc == {name: value for name, value in row.items() if name != "image"}
        assert example.id == f"{example.index}-{row['questionId']}"
    kept = os.listdir(builds.cache_folder() / "examples" / suite.digest / "images")
    assert len(kept) == 12, "each image is kept once"

    no_child(monkeypatch)
    again = examples.open_suite(load_suite_card("docvqa"), str(file), limit=5)
    assert again.digest == suite.digest
    assert list(again.examples) == list(suite.examples[:5])

    monkeypatch.undo()
    program = f"""
import sys
def refuse(event, _):
    assert event not in ("subprocess.Popen", "os.fork", "os.posix_spawn", "os.exec", "socket.connect"), event
sys.addaudithook(refuse)
from harness.suites import examples
from harness.suites.card import load_suite_card
assert len(examples.open_suite(load_suite_card("docvqa"), {str(data)!r}).examples[48].images[0]) > 1000
heavy = {{"lmms_eval", "datasets", "pandas", "torch", "pyarrow", "transformers", "PIL", "huggingface_hub"}}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "VLM_PARETO_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]", "a second run has what it needs without lmms-eval, and without a child"


@pytest.mark.usefixtures("quick")
def test_files_that_are_no_images_do_not_stop_the_building(charts: Path) -> None:
    suite = examples.open_suite(load_suite_card("chartqa"), str(charts))
    assert [example.images for example in suite.examples] == [(b"\x89PNG not really",)] * 2 + [(b"",), (b"GIF? no",)]


@pytest.mark.usefixtures("quick")
def test_a_limit_builds_no_more_and_a_later_run_without_it_builds_the_rest(
    charts: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = examples.open_suite(load_suite_card("chartqa"), str(charts), limit=2)
    assert [example.doc["question"] for example in few.examples] == ["Q0?", "Q1?"]
    assert os.listdir(cache / "examples") == [f"{few.digest}-first-2"]
    whole = examples.open_suite(load_suite_card("chartqa"), str(charts))
    assert (whole.digest, len(whole.examples)) == (few.digest, 4)
    no_child(monkeypatch)
    assert len(examples.open_suite(load_suite_card("chartqa"), str(charts), limit=100).examples) == 4
    assert list(examples.open_suite(load_suite_card("chartqa"), str(charts), limit=2).examples) == list(few.examples)


@pytest.mark.usefixtures("quick")
def test_the_digest_is_of_the_contents_and_not_of_the_place(charts: Path, tmp_path: Path, monkeypatch: Any) -> None:
    suite = examples.open_suite(load_suite_card("chartqa"), str(charts))
    moved = tmp_path / "elsewhere" / "validation-0.parquet"
    moved.parent.mkdir()
    moved.write_bytes(charts.read_bytes())
    with monkeypatch.context() as patch:
        no_child(patch)
        assert examples.open_suite(load_suite_card("chartqa"), str(moved)).digest == suite.digest
    time.sleep(0.01)
    write(charts, [chart("Q0?", b"other")])
    assert examples.open_suite(load_suite_card("chartqa"), str(charts)).digest != suite.digest


@pytest.mark.parametrize("damage", ["manifest", "cut", "edited", "image lost", "image cut"])
@pytest.mark.usefixtures("quick")
def test_a_damaged_build_is_built_anew(damage: str, charts: Path, cache: Path) -> None:
    suite = examples.open_suite(load_suite_card("chartqa"), str(charts))
    wanted = list(suite.examples)
    folder = cache / "examples" / suite.digest
    lines, image = folder / "examples.jsonl", folder / "images" / wanted[0].image_ids[0]
    if damage == "manifest":
        (folder / "manifest.json").write_bytes(b"{")
    elif damage == "cut":
        lines.write_bytes(lines.read_bytes()[:-20])
    elif damage == "edited":
        lines.write_bytes(lines.read_bytes().replace(b"Q0?", b"Q9?"))
    elif damage == "image lost":
        image.unlink()
    else:
        image.write_bytes(image.read_bytes()[:-1])
    assert list(examples.open_suite(load_suite_card("chartqa"), str(charts)).examples) == wanted
    assert os.listdir(cache / "examples") == [suite.digest]


@pytest.mark.usefixtures("quick")
def test_an_image_that_changed_in_the_cache_is_never_measured(charts: Path, cache: Path) -> None:
    suite = examples.open_suite(load_suite_card("chartqa"), str(charts))
    image = cache / "examples" / suite.digest / "images" / suite.examples[0].image_ids[0]
    image.write_bytes(image.read_bytes()[::-1])
    with pytest.raises(DataError, match="has changed; next: delete"):
        suite.examples[0]


def test_of_two_builders_at_once_one_build_is_kept_whole(cache: Path) -> None:
    facts = {"task": "chartqa", "source": {}, "complete": True}
    line = builds.Line(id="0", index=0, question="Q?", references=("3",), doc={})
    first, second = builds.Writer(), builds.Writer()
    for writer in (first, second):
        writer.add([b"image"], line)
    (cache / "examples" / "name").mkdir()
    (cache / "examples" / "name" / "manifest.json").write_bytes(b"torn")
    assert first.finish("name", **facts) == second.finish("name", **facts) == cache / "examples" / "name"
    assert os.listdir(cache / "examples") == ["name"]
    build = builds.read(cache / "examples" / "name")
    assert build
    assert build.image(build.line(0).images[0]) == b"image"


def test_a_killed_builder_leaves_no_build_and_the_next_one_sweeps(cache: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", "from harness.suites import cache; cache.Writer(); print('x', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert writer.stdout
    writer.stdout.readline()
    assert len(os.listdir(cache / "examples")) == 1
    alive = builds.Writer()
    assert len(os.listdir(cache / "examples")) == 2, "a builder that lives is left alone"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    alive.discard()
    builds.Writer().discard()
    assert os.listdir(cache / "examples") == []


def test_no_room_is_one_clear_error_and_leaves_nothing(charts: Path, cache: Path) -> None:
    write(charts, [chart(f"Q{at}?", b"x") for at in range(20)])
    program = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))
from harness.suites import examples
from harness.suites.card import load_suite_card
try:
    examples.open_suite(load_suite_card("chartqa"), {str(charts)!r})
except examples.DataError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "no room for the examples" in done.stdout
    assert "VLM_PARETO_CACHE" in done.stdout
    assert os.listdir(cache / "examples") == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_from_other_trouble(number: int) -> None:
    with pytest.raises(DataError, match="free space"), builds.writing():
        raise OSError(number, os.strerror(number))
    with pytest.raises(FileNotFoundError), builds.writing():
        raise FileNotFoundError(errno.ENOENT, "x")


def test_ctrl_c_while_building_leaves_nothing(charts: Path, cache: Path) -> None:
    write(charts, [chart(f"Q{at}?", os.urandom(2000)) for at in range(20_000)])
    order = builds.Order("chartqa", "chartqa", {"kind": "local"}, None, "d", [str(charts)])
    child = subprocess.Popen(
        [sys.executable, "-m", "harness.suites.builder", json.dumps(order.as_dict())],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not list((cache / "examples").glob(".building-*/images/*")):
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    _, told = child.communicate(timeout=30)
    assert child.returncode == 130
    assert os.listdir(cache / "examples") == []
    assert b"Traceback" not in told


@pytest.mark.usefixtures("quick")
def test_rows_of_another_data_set_are_refused_with_their_columns(tmp_path: Path) -> None:
    file = write(tmp_path / "data" / "a.parquet", [{"colour": "red"}])
    with pytest.raises(
        DataError, match=r"does not fit task chartqa: .*it has the columns colour; next: .*lmms-lab-encoder/ChartQA"
    ):
        examples.open_suite(load_suite_card("chartqa"), str(file))


@pytest.mark.usefixtures("quick")
def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no")
    with pytest.raises(DataError, match=r"a\.parquet: not a readable Parquet file"):
        examples.open_suite(load_suite_card("chartqa"), str(tmp_path / "a.parquet"))
    with pytest.raises(DataError, match="no such file or folder"):
        examples.open_suite(load_suite_card("chartqa"), str(tmp_path / "b.parquet"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no Parquet files in it"):
        examples.open_suite(load_suite_card("chartqa"), str(tmp_path / "empty"))


@pytest.mark.usefixtures("quick")
def test_a_folder_with_several_splits_gives_the_tasks_own(charts: Path) -> None:
    write(charts.with_name("train-00000-of-00001.parquet"), [chart("Train?", b"x")])
    suite = examples.open_suite(load_suite_card("chartqa"), str(charts.parent))
    assert [example.doc["question"] for example in suite.examples] == ["Q0?", "Q1?", "Q2?", "Q3?"]
    assert "4 rows (1 of 2 files: test.parquet; left out: train-00000-of-00001.parquet)" in suite.notice


@pytest.mark.usefixtures("quick")
def test_gqa_joins_its_two_tables(tmp_path: Path) -> None:
    questions = [{"id": f"q{at}", "imageId": f"n{at % 2}", "question": "Red?", "answer": "yes"} for at in range(3)]
    write(tmp_path / "gqa" / "testdev-questions.parquet", questions)
    images = [{"id": f"n{at}", "image": {"bytes": f"file {at}".encode(), "path": None}} for at in range(2)]
    write(tmp_path / "gqa" / "testdev-images.parquet", images)
    suite = examples.open_suite(load_suite_card("gqa"), str(tmp_path / "gqa"))
    assert [example.images for example in suite.examples] == [(b"file 0",), (b"file 1",), (b"file 0",)]
    with pytest.raises(DataError, match=r"GQA's image 'n0' is not in the data; next: add a column `image`"):
        examples.open_suite(load_suite_card("gqa"), str(tmp_path / "gqa" / "testdev-questions.parquet"))


def test_a_suite_without_data_says_what_to_do() -> None:
    with pytest.raises(
        DataError, match=r"lmms-lab-encoder/textvqa is not in the cache.*offline mode.*next: .*--data PATH"
    ):
        examples.open_suite(load_suite_card("textvqa"))
    assert not examples.present(load_suite_card("textvqa"))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ["docvqa", "infovqa"])
def test_the_embedded_suite_stands_in_for_documents_and_says_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = examples.open_suite(load_suite_card(name), limit=3)
    assert (suite.origin, suite.name, suite.card.name, suite.card.task) == ("embedded", "pages", "pages", "docvqa_val")
    assert "`pages` stands in for it, and its scores are not those of " + name in suite.notice
    assert "lmms-lab-encoder/DocVQA is not in the cache" in suite.notice
    assert [example.question.endswith(f"\n{WORD}") for example in suite.examples] == [True] * 3
    assert suite.examples[0].images[0].startswith(b"\x89PNG")
    assert suite.examples[0].doc["answers"] == list(suite.examples[0].references)
    no_child(monkeypatch)
    own = examples.open_suite(load_suite_card("pages"), limit=3)
    assert (own.notice, own.digest, list(own.examples)) == ("", suite.digest, list(suite.examples))
    with pytest.raises(DataError, match="the suite pages is made by the program"):
        examples.open_suite(load_suite_card("pages"), "x")


def test_an_unreachable_hub_is_noticed_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(DataError, match=r"127\.0\.0\.1:9 cannot be reached"):
        examples.open_suite(load_suite_card("textvqa"))
    assert time.monotonic() - began < examples.PROBE_SECONDS + 1


@pytest.mark.usefixtures("quick")
def test_a_card_must_state_the_limit_that_its_task_does_not(tmp_path: Path) -> None:
    row = {"question": "what?", "question_id": 1, "answers": ["x"], "image": {"bytes": b"x", "path": None}}
    file = write(tmp_path / "t.parquet", [row])
    card = tmp_path / "mine.toml"
    card.write_text('title = "T"\ntask = "textvqa_val"\nmetric = "exact_match"\n')
    with pytest.raises(CardError, match="states no limit on answers; next: max_new_tokens"):
        examples.open_suite(load_suite_card(str(card)), str(file))
    assert examples.open_suite(load_suite_card("textvqa"), str(file)).examples[0].max_new_tokens == 32


@pytest.mark.usefixtures("quick")
def test_a_cards_own_limit_is_obeyed_and_said_to_be_another_than_the_tasks(charts: Path, tmp_path: Path) -> None:
    def limited(line: str) -> examples.Suite:
        card = tmp_path / "mine.toml"
        card.write_text(f'title = "T"\ntask = "chartqa"\nmetric = "relaxed_overall"\n{line}\n')
        return examples.open_suite(load_suite_card(str(card)), str(charts))

    longer = limited("max_new_tokens = 512")
    assert [example.max_new_tokens for example in longer.examples] == [512] * 4
    assert "answers have up to 512 tokens, as the card says; lmms-eval gives task chartqa 16" in longer.notice
    for line in ("max_new_tokens = 16", ""):
        same = limited(line)
        assert same.examples[0].max_new_tokens == 16
        assert "lmms-eval gives" not in same.notice
    with pytest.raises(CardError, match=r"suite mine: max_new_tokens = 0 in its card; next: give a number"):
        limited("max_new_tokens = 0")


@pytest.mark.parametrize(
    ("task", "metric", "told"),
    [
        (
            "corecognition_stage_formal_operational",
            "accuracy",
            "its table through process_docs_stage_",
        ),
        ("unig2u_chartqa100_visual_cot", "accuracy", "asks by generate_visual_cot"),
        ("vlms_are_biased", "bias_ratio", "of bias_ratio of task vlms_are_biased less is better"),
    ],
)
def test_what_lmms_eval_would_do_otherwise_is_refused_before_any_data_are_asked_for(
    task: str, metric: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_child(monkeypatch)
    card = tmp_path / "mine.toml"
    card.write_text(f'title = "T"\ntask = "{task}"\nmetric = "{metric}"\n')
    for data in (None, str(tmp_path / "nowhere.parquet")):
        with pytest.raises(DataError, match=rf"suite mine: .*task {task} .*next: ") as caught:
            examples.open_suite(load_suite_card(str(card)), data)
        assert told in str(caught.value)


# --- contracts ---

PNG = b"\x89PNG not really"


def page(question: Any = "What?", answers: Any = ("x",), **more: Any) -> dict[str, Any]:
    """Return a row in the columns of DocVQA."""
    answers = list(answers) if isinstance(answers, tuple) else answers
    return {"questionId": "7", "question": question, "answers": answers, "image": {"bytes": PNG, "path": None}, **more}


def opened(file: Path, suite: str = "docvqa", limit: int | None = None) -> examples.Suite:
    """Open a file as a suite's data."""
    return examples.open_suite(load_suite_card(suite), str(file), limit)


@pytest.mark.usefixtures("quick")
def test_a_bad_row_is_one_failed_example_named_by_its_row_and_column(tmp_path: Path) -> None:
    rows = [page(), page(question=None), page(question=""), page(answers=[]), page(image={"bytes": None, "path": None})]
    suite = opened(write(tmp_path / "d" / "mine.parquet", rows))
    assert [example.problem for example in suite.examples] == [
        "",
        "mine.parquet, row 1, column question: is null",
        "mine.parquet, row 2, column question: is empty",
        "mine.parquet, row 3, column answers: no references",
        "mine.parquet, row 4, column image: no picture",
    ]
    assert [example.id for example in suite.examples] == [f"{at}-7" for at in range(5)]
    assert suite.examples[4].images == ()
    assert "5 rows; 4 of 5 rows cannot be asked" in suite.notice
    assert suite.unscored == ""
    with pytest.raises(DataError, match=r"none of 2 rows can be asked: bad\.parquet, row 0, column question: is null"):
        opened(write(tmp_path / "bad.parquet", [page(question=None), page(question="")]))


@pytest.mark.usefixtures("quick")
def test_a_set_without_references_is_not_scored_and_says_so_before_the_run(tmp_path: Path) -> None:
    bare = [{name: value for name, value in page().items() if name != "answers"}] * 2
    for name, rows in {"column": bare, "null": [page(answers=None)] * 2, "empty": [page(answers=[""])] * 2}.items():
        suite = opened(write(tmp_path / f"{name}.parquet", rows))
        assert suite.unscored.startswith(f"not scored: no references ({name}.parquet, row 0, column answers: ")
        assert suite.unscored in suite.notice
        assert [example.problem for example in suite.examples] == ["", ""], "they can be timed"
    half = write(tmp_path / "half.parquet", [page(answers=None), page()])
    assert opened(half, limit=1).unscored
    assert not opened(half).unscored


@pytest.mark.usefixtures("quick")
def test_shards_whose_references_differ_in_shape_come_out_alike(tmp_path: Path) -> None:
    write(tmp_path / "d" / "validation-00000-of-00002.parquet", [page(answers=["x"])])
    write(tmp_path / "d" / "validation-00001-of-00002.parquet", [page(answers="x"), page(answers='["x"]')])
    suite = opened(tmp_path / "d")
    assert [example.doc["answers"] for example in suite.examples] == [["x"]] * 3
    assert [example.references for example in suite.examples] == [("x",)] * 3


@pytest.mark.usefixtures("quick")
def test_few_references_are_repeated_and_that_is_said(tmp_path: Path) -> None:
    row = {"question": "what?", "question_id": 1, "answers": ["Juneau"], "image": {"bytes": PNG, "path": None}}
    suite = opened(write(tmp_path / "t.parquet", [row]), "textvqa")
    assert suite.examples[0].doc["answers"] == ["Juneau"] * 10
    assert "1 questions have fewer than 4 references" in suite.notice
    nine = opened(write(tmp_path / "n.parquet", [{**row, "answers": [*"abcdefghi", None]}]), "textvqa")
    assert nine.examples[0].doc["answers"] == [*"abcdefghi"]
    assert "1 questions have 4 to 9 references" in nine.notice


@pytest.mark.parametrize(
    "picture",
    [
        {"bytes": PNG},
        [{"bytes": PNG, "path": None}],
        PNG,
        base64.b64encode(PNG).decode(),
        f"data:image/png;base64,{base64.b64encode(PNG).decode()}",
        "pictures/a.png",
        {"bytes": None, "path": "pictures/a.png"},
    ],
    ids=["bytes alone", "list of one", "bare bytes", "base64", "data address", "path", "struct with a path"],
)
@pytest.mark.usefixtures("quick")
def test_a_picture_is_read_in_every_form(tmp_path: Path, picture: Any) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(PNG)
    suite = opened(write(tmp_path / "d.parquet", [page(image=picture)]))
    assert suite.examples[0].images == (PNG,)


@pytest.mark.parametrize(
    ("picture", "told"),
    [
        ([[[0, 1, 2]]], "nested numbers are no picture file"),
        ([{"bytes": PNG}, {"bytes": PNG}], "2 pictures where the task shows one"),
        ({"bytes": None, "path": "https://example.org/a.png"}, "https://example.org/a.png is an address"),
        ("nowhere.png", "nowhere.png: no such file"),
    ],
)
@pytest.mark.usefixtures("quick")
def test_what_is_no_picture_is_refused_by_its_row(tmp_path: Path, picture: Any, told: str) -> None:
    with pytest.raises(DataError, match=rf"d\.parquet, row 0, column image: .*{told}"):
        opened(write(tmp_path / "d.parquet", [page(image=picture)]))


@pytest.mark.usefixtures("quick")
def test_pictures_beside_the_table_are_part_of_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("a.png", "b.png")
    rows = [page(image={"bytes": None, "path": name}) for name in names]
    file = write(tmp_path / "one" / "d.parquet", rows)
    (file.parent / "a.png").write_bytes(PNG)
    before = opened(file)
    assert [example.problem for example in before.examples][1].endswith(
        "b.png: no such file; next: put it there, relative to the table"
    )
    (file.parent / "b.png").write_bytes(PNG + b"b")
    after = opened(file)
    assert after.digest != before.digest
    assert [example.images for example in after.examples] == [(PNG,), (PNG + b"b",)]
    stat = (file.parent / "b.png").stat()
    (file.parent / "b.png").write_bytes(PNG + b"c")
    os.utime(file.parent / "b.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    repaired = opened(file)
    assert repaired.examples[1].images == (PNG + b"c",), "repaired with the same size and date"
    few = opened(file, limit=1)
    assert few.digest == repaired.digest, "a limit is no part of the digest"
    other = tmp_path / "two"
    other.mkdir()
    for name in ("d.parquet", *names):
        (other / name).write_bytes((file.parent / name).read_bytes())
    no_child(monkeypatch)
    assert opened(other / "d.parquet").digest == repaired.digest, "nor is the place"


@pytest.mark.usefixtures("quick")
def test_a_cell_that_cannot_be_read_costs_its_row_alone(tmp_path: Path) -> None:
    latin = pa.array([b"d\xe9j\xe0 vu?", b"What?"]).view(pa.string())
    table = pa.Table.from_pylist([page(), page()]).set_column(1, "question", latin)
    (tmp_path / "latin").mkdir()
    parquet.write_table(table, tmp_path / "latin" / "d.parquet")
    suite = opened(tmp_path / "latin" / "d.parquet")
    assert suite.examples[0].problem.startswith("d.parquet, row 0, column question: cannot be read: 'utf-8' codec")
    assert suite.examples[1].question == f"What?\n{WORD}"
    binary = table.set_column(1, "question", pa.array([b"Qui?", b"What?"]))
    parquet.write_table(binary, tmp_path / "latin" / "b.parquet")
    assert [one.question for one in opened(tmp_path / "latin" / "b.parquet").examples] == [
        f"Qui?\n{WORD}",
        f"What?\n{WORD}",
    ]


@pytest.mark.usefixtures("quick")
def test_whatever_a_tasks_code_raises_is_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.suites.task import Task

    question = Task.question

    def broken(task: Task, doc: Any) -> str:
        if doc["question"] == "boom":
            raise ZeroDivisionError("inside the task")
        return question(task, doc)

    monkeypatch.setattr(Task, "question", broken)
    suite = opened(write(tmp_path / "d.parquet", [page(), page("boom"), page()]))
    assert (
        suite.examples[1].problem
        == "d.parquet, row 1: task docvqa_val cannot read it: ZeroDivisionError: inside the task"
    )
    assert [bool(example.question) for example in suite.examples] == [True, False, True]


def test_examples_are_read_one_at_a_time(cache: Path) -> None:
    writer = builds.Writer()
    for at in range(3):
        line = builds.Line(id=str(at), index=at, question="Q?", references=("3",), doc={})
        writer.add([bytes([at]) * 10], line)
    build = builds.read(writer.finish("name", task="chartqa", source={}, complete=True))
    assert build
    taken = examples.Examples(build, 8, range(3), {1: "no"})
    (cache / "examples" / "name" / "images" / builds.image_digest(bytes([2]) * 10)).unlink()
    assert [taken[0].images, taken[1].images, taken[1].problem] == [(bytes(10),), (), "no"]
    with pytest.raises(DataError, match="next: delete"):
        taken[2]
