"""Everything that a number depends on, changed one by one: the cell's key changes each time, or the run says what did.

What is found to have no part in any name is a silent fault: yesterday's number would be given for today's question.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import tiny_vlms
from conftest import TinyFastVlm
from pyarrow import parquet

from harness import cards
from harness.clock import Scripted
from harness.errors import DataError, LogError, WeightsError
from harness.machine import environment
from harness.measure import cell, conditions, job, request, run, sampling
from harness.measure.asked import Asked
from harness.models import weights
from harness.models.card import load_model_card
from harness.runlog import records
from harness.runlog.log import Writer
from harness.suites import builder, definitions, examples, pages
from harness.suites import cache as builds


@dataclass(frozen=True)
class World:
    """A checkpoint, its card, a suite's card and its data, all in one folder, and what is asked of them."""

    root: Path
    asked: Asked

    @property
    def key(self) -> str:
        """The name of the number."""
        return job.prepare(self.asked).cell.key


Change = Callable[[World], object]


def leave_log(asked: Asked) -> Path:
    """Write the finished log that a run of this cell would leave, without its samples."""
    made = job.prepare(asked)
    header = records.Header(
        schema=records.SCHEMA, cell=made.cell.as_dict(), key=made.cell.key, command="", started_at="now", harness={},
        environment={}, device={}, requested={"shard": asked.shard, "shards": asked.shards}, effective={},
        cards={"model": made.card.digest, "suite": made.suite_card.digest}, weights=made.source.as_dict(),
        data={"digest": made.suite.digest, "name": made.suite.name, "asked": made.suite_card.name},
        request=made.request,
    )  # fmt: skip
    with Writer(made.path) as writer:
        writer.open()
        writer.append(header)
        return writer.finish(records.Footer(ended_at="later", samples=0, failures=0, stopped="examples"))


def taken(asked: Asked) -> bool:
    """Return whether a host that submits jobs takes a log that is there for the one of this cell."""
    return bool(request.Logs([Path(asked.out)]).finished({request.of(asked): asked}))


def flip(path: Path) -> None:
    """Change one bit of a file and put its time back: neither size nor date tells."""
    before, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def write_rows(path: Path, questions: list[str], answers: list[str], picture: bytes | None = None) -> None:
    """Write rows of DocVQA whose pictures are named by path, or have these bytes."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pictures = pa.array([{"bytes": picture, "path": f"{at}.png"} for at in range(len(questions))], type=kind)
    columns: dict[str, Any] = {"questionId": [str(at) for at in range(len(questions))], "question": questions}
    parquet.write_table(pa.table(columns | {"answers": [[one] for one in answers], "image": pictures}), path)


@pytest.fixture
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, no Hub, and builds made in this process: a child imports lmms-eval anew."""
    monkeypatch.setenv("VLM_PARETO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def make(order: builds.Order) -> builds.Build:
        build = builds.read(builder.build(order))
        assert build
        return build

    monkeypatch.setattr(examples, "_make", make)


@pytest.fixture
def world(tmp_path: Path, tiny_fastvlm: TinyFastVlm, quiet: None) -> World:
    folder = tmp_path / "weights"
    shutil.copytree(tiny_fastvlm.weights, folder)
    shutil.copy(tiny_fastvlm.card, tmp_path / "model.toml")
    (folder / "sub").mkdir()
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "sub" / "model-00002-of-00002.safetensors")
    index = {"a": "model-00001-of-00002.safetensors", "b": "sub/model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    for name in ("tokenizer_config.json", "preprocessor_config.json", "generation_config.json"):
        (folder / name).write_text('{"a": 1}\n')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / weights.TEMPLATES).mkdir()
    (folder / weights.TEMPLATES / "other.jinja").write_text("{{ messages }}")
    (folder / weights.TOWER_FOLDER).mkdir()
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / weights.TOWER_FOLDER / "model.safetensors")
    shutil.copy(cards.ROOT / "suites" / "docvqa.toml", tmp_path / "suite.toml")
    data = tmp_path / "data"
    data.mkdir()
    write_rows(data / "validation.parquet", ["What?", "Who?"], ["this", "that"])
    for at in range(2):
        (data / f"{at}.png").write_bytes(b"\x89PNG not looked at")
    return World(
        tmp_path,
        Asked(
            model=str(tmp_path / "model.toml"), weights=str(folder), suite=str(tmp_path / "suite.toml"),
            data=str(data), res=64, device="cpu", offline=True, out=str(tmp_path / "out"),
        ),
    )  # fmt: skip


def bit(name: str) -> Change:
    return lambda world: flip(world.root / name)


def text(name: str, old: str, new: str) -> Change:
    def change(world: World) -> None:
        path = world.root / name
        before = path.read_text()
        assert old in before
        path.write_text(before.replace(old, new))

    return change


def rows(questions: list[str], answers: list[str]) -> Change:
    return lambda world: write_rows(world.root / "data" / "validation.parquet", questions, answers)


def second_table(world: World) -> None:
    write_rows(world.root / "data" / "validation-more.parquet", ["Where?"], ["here"])


def other_file(world: World) -> None:
    (world.root / "weights" / "added_tokens.json").write_text("{}")


ON_DISK: dict[str, Change] = {
    "a question": rows(["What?", "Why?"], ["this", "that"]),
    "a reference": rows(["What?", "Who?"], ["this", "those"]),
    "the order of rows": rows(["Who?", "What?"], ["that", "this"]),
    "one more table": second_table,
    "a picture named by path": bit("data/1.png"),
    "the suite's card: how it is scored": text("suite.toml", 'metric = "', 'metric = "x'),
    "the suite's card: length of answers": text("suite.toml", "title", "max_new_tokens = 7\ntitle"),
    "the model's card: prompt": text("model.toml", 'prompt = "qwen_2"', 'prompt = "qwen_1_5"'),
    "the model's card: resolution": text("model.toml", "[resolution]", "[resolution] # other"),
    "the first shard": bit("weights/model-00001-of-00002.safetensors"),
    "a shard in a folder": bit("weights/sub/model-00002-of-00002.safetensors"),
    "the index": text("weights/model.safetensors.index.json", '"a"', '"c"'),
    "the tower beside": bit(f"weights/{weights.TOWER_FOLDER}/model.safetensors"),
    "the tokenizer": text("weights/tokenizer.json", "version", "Version"),
    "the tokenizer's configuration": text("weights/tokenizer_config.json", "1", "2"),
    "added tokens": other_file,
    "the configuration": text("weights/config.json", "{", '{"x": 1, '),
    "the preprocessor": text("weights/preprocessor_config.json", "1", "2"),
    "what ends an answer": text("weights/generation_config.json", "1", "2"),
    "the chat template": bit("weights/chat_template.jinja"),
    "another chat template": bit(f"weights/{weights.TEMPLATES}/other.jinja"),
}


@pytest.mark.parametrize("name", ON_DISK)
def test_whatever_lies_on_the_disk_is_in_the_key(world: World, name: str) -> None:
    before = world.key
    assert world.key == before, "nothing changed"
    leave_log(world.asked)
    assert taken(world.asked)
    ON_DISK[name](world)
    assert world.key != before
    assert not taken(world.asked), "a queue's host sees it too, and knows no key"


@pytest.mark.parametrize("change", ["tensors", "nothing"])
def test_the_log_of_another_checkpoint_in_the_same_folder_is_not_taken(
    tmp_path: Path, quiet: None, change: str
) -> None:
    """`--model FOLDER`: its tensors are written anew, and no configuration tells."""
    folder = tiny_vlms.write(tmp_path / "checkpoint", "smolvlm")
    asked = Asked(
        model=str(folder), suite="pages", limit=1, device="cpu", offline=True, out=str(tmp_path / "out"),
    )  # fmt: skip
    leave_log(asked)
    assert taken(asked)
    if change == "tensors":
        flip(folder / "model.safetensors")
    assert taken(asked) is (change == "nothing")


def test_a_tower_that_only_the_jobs_host_has_hides_no_log_and_no_change(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = weights.Source("cache", digest="c" * 40, repository=f"some/tower@{'c' * 40}")
    with monkeypatch.context() as there:
        there.setattr(weights, "find_towers", lambda *_: {"fastvithd": tower})
        leave_log(world.asked)
    monkeypatch.setattr(weights, "find_towers", lambda *_: {})
    assert taken(world.asked)
    flip(world.root / "weights" / "model-00001-of-00002.safetensors")
    assert not taken(world.asked)


def test_what_a_host_does_not_see_tells_it_nothing(world: World) -> None:
    leave_log(world.asked)
    for name in ("weights", "data"):
        (world.root / name).rename(world.root / f"not {name}")
    assert taken(world.asked)


def test_what_stands_in_is_not_taken_where_that_was_refused(tmp_path: Path, quiet: None) -> None:
    asked = Asked(model="fastvlm-nano", suite="docvqa", limit=1, device="cpu", offline=True, out=str(tmp_path))
    leave_log(replace(asked, suite="pages"))
    assert taken(replace(asked, suite="pages", no_stand_in=True))
    leave_log(asked)
    assert taken(asked)
    assert not taken(replace(asked, no_stand_in=True))
    (tmp_path / "random").mkdir()
    random = replace(asked, model="fastvlm-0.5b", suite="pages", out=str(tmp_path / "random"))
    leave_log(random)
    assert taken(random)
    assert not taken(replace(random, no_stand_in=True))


WISHES: dict[str, object] = {
    "model": "fastvlm-1.5b", "suite": "infovqa", "res": 128, "device": "fake", "dtype": "bfloat16",
    "weights": "random", "data": "another", "limit": 1, "protocol": "paper", "seed": 1, "settings": {"tiles": 4},
    "isolate": True, "part": "llm", "repetition": 1, "decode_tokens": 3, "threads": 1, "minimum_samples": 3,
    "minimum_seconds": 1.0, "maximum_samples": 90, "maximum_seconds": 7.0, "precision": 0.5,
}  # fmt: skip
SERVED: dict[str, object] = {"endpoint": "http://localhost:2/v1", "concurrency": 2, "load": "1,2", "weights": "weights"}
NO_NUMBER = {"offline", "wait", "out", "shards", "shard", "skip_energy", "no_stand_in"}
"""Where files come from and go to, whether to wait, who answers what is only scored, what is left out after timing."""
ELSEWHERE = {"engine"}
"""The others need a Mac: that this field of a cell is in the key is shown in test_cell.py."""


def test_every_wish_is_looked_at_here() -> None:
    assert {*WISHES, *SERVED, *NO_NUMBER, *ELSEWHERE} == {field.name for field in fields(Asked)}


@pytest.mark.parametrize("name", WISHES)
def test_every_wish_is_in_the_key(world: World, name: str) -> None:
    value = WISHES[name]
    if name == "data":
        value = str(shutil.copytree(world.root / "data", world.root / "another"))
        flip(world.root / "another" / "0.png")
    if name == "model":  # its weights would have to be others too
        world = replace(world, asked=replace(world.asked, weights="random"))
    assert replace(world, asked=replace(world.asked, **{name: value})).key != world.key  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SERVED)
def test_every_wish_of_a_served_model_is_in_the_key(world: World, name: str) -> None:
    asked = Asked(model="served", endpoint="http://localhost:1/v1", suite="pages", limit=1, offline=True)
    served, value = replace(world, asked=asked), SERVED[name]
    if name == "weights":
        value = str(world.root / "weights")
    other = replace(served, asked=replace(asked, **{name: value}))  # type: ignore[arg-type]
    assert other.key != served.key
    if name == "weights":
        before = other.key
        flip(world.root / "weights" / "model-00001-of-00002.safetensors")
        assert other.key != before


LENT = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "preprocessor_config.json", "config.json"]


@pytest.mark.parametrize("name", LENT)
@pytest.mark.parametrize("given", [None, "random"])
def test_a_folder_of_any_family_is_what_its_files_say(
    tmp_path: Path, quiet: None, name: str, given: str | None
) -> None:
    """Random weights have the folder's tokenizer and template: how long the question is, so how long prefill takes."""
    folder = tiny_vlms.write(tmp_path / "checkpoint", "smolvlm")
    for lacking in {"chat_template.jinja", "preprocessor_config.json"} - set(os.listdir(folder)):
        (folder / lacking).write_text('{"a": 1}')
    asked = Asked(
        model=str(folder), weights=given, suite="pages", limit=1, device="cpu", offline=True, out=str(tmp_path / "out")
    )
    before = World(tmp_path, asked).key
    leave_log(asked)
    assert taken(asked)
    path = folder / name
    path.write_text(
        path.read_text() + " \n" if path.suffix == ".jinja" else path.read_text().replace("{", '{"x": 1, ', 1)
    )
    assert World(tmp_path, asked).key != before
    assert not taken(asked)


def snapshot(home: Path, kind: str, repo: str, commit: str) -> Path:
    """Return a snapshot's folder in the Hub's cache, which `refs/main` names."""
    root = home / "hub" / f"{kind}s--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(commit)
    folder = root / "snapshots" / commit
    folder.mkdir(parents=True)
    return folder


def test_revisions_of_weights_and_of_data_are_in_the_key(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "huggingface"
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
    card = load_model_card("fastvlm-0.5b")
    asked = Asked(model=card.name, suite="docvqa", limit=1, device="cpu", offline=True)
    keys = []
    assert card.hub
    for repo, kind in ((card.hub.repo, "model"), (definitions.find("docvqa_val").repo, "dataset")):
        for commit in ("a" * 40, "b" * 40):
            folder = snapshot(home, kind, repo, commit)
            if kind == "model":
                shutil.copy(world.root / "weights" / "tokenizer.json", folder)
                shutil.copy(world.root / "weights" / "model-00001-of-00002.safetensors", folder / "model.safetensors")
            else:
                (folder / "DocVQA").mkdir()
                write_rows(folder / "DocVQA" / "validation-00000-of-00001.parquet", ["What?"], ["this"], b"\x89PNG")
            keys.append(World(tmp_path, asked).key)
    assert len(set(keys)) == 4, "pages stood in for the data at first"


@pytest.mark.parametrize(("owner", "name"), [(pages, "VERSION"), (builds, "BUILDER_OF_EMBEDDED"), (cell, "SCHEMA")])
def test_versions_of_ours_are_in_the_key(
    tmp_path: Path, quiet: None, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    world = World(tmp_path, Asked(model="fake", device="fake", suite="pages", limit=1))
    before = world.key
    monkeypatch.setattr(owner, name, getattr(owner, name) + 1)
    assert world.key != before


def test_lmms_evals_version_the_builders_and_the_drawing_are_in_the_key(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = world.key
    with monkeypatch.context() as patch:
        patch.setattr(builds, "BUILDER", builds.BUILDER + 1)
        assert world.key != before
    assert world.key == before
    monkeypatch.setattr(definitions, "release", lambda: "0.0.0")
    assert world.key != before
    named = job.prepare(world.asked).cell
    assert named.sampling == sampling.VERSION
    assert replace(named, sampling="another").key != named.key
    assert records.SCHEMA == cell.SCHEMA


# --- what no key holds is said ---

FAKE = Asked(model="fake", device="fake", suite="pages", limit=2, precision=0, minimum_seconds=0, decode_tokens=2)


def measured(root: Path, stop_after: int = 1000) -> job.Job:
    """Measure the fake model, or break off after so many records."""
    made = job.prepare(replace(FAKE, out=str(root / "out")))
    for number, _ in enumerate(run.run_job(made, lambda _: None, Scripted())):
        if number >= stop_after:
            break
    return made


CONDITIONS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "OMP_NUM_THREADS none → 7": lambda patch: patch.setenv("OMP_NUM_THREADS", "7"),
    "torch ": lambda patch: patch.setattr(environment, "installed", lambda _: "0.0"),
    "cpu_quota_cores none → 0.5": lambda patch: patch.setattr(environment, "cpu_quota_cores", lambda: 0.5),
}


@pytest.mark.parametrize("said", CONDITIONS)
def test_a_log_of_other_conditions_is_told_and_not_gone_on_with(
    tmp_path: Path, quiet: None, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(environment, "cpu_quota_cores", lambda: None)
    finished, torn = measured(tmp_path / "a"), measured(tmp_path / "b", stop_after=3)
    assert finished.finished
    assert not torn.finished
    assert finished.since() == ""
    CONDITIONS[said](monkeypatch)
    assert said in finished.since()
    with pytest.raises(LogError, match="begun under other conditions"):
        list(run.run_job(torn, lambda _: None, Scripted()))


def test_another_harness_is_told(tmp_path: Path, quiet: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "harness", lambda: {"version": "1", "commit": "aaa"})
    finished, torn = measured(tmp_path / "a"), measured(tmp_path / "b", stop_after=3)
    monkeypatch.setattr(conditions, "harness", lambda: {"version": "1", "commit": "bbb"})
    assert finished.since() == "harness commit aaa → bbb"
    said: list[str] = []
    list(run.run_job(torn, said.append, Scripted()))
    assert any("harness commit aaa → bbb" in line for line in said)


# --- what changes between its digest and its use is refused ---


def test_weights_that_change_before_they_are_loaded_are_refused(world: World) -> None:
    made = job.prepare(world.asked)
    weights.check_unchanged(made.source)
    flip(world.root / "weights" / "sub" / "model-00002-of-00002.safetensors")
    with pytest.raises(WeightsError, match=r"model-00002-of-00002\.safetensors changed while it was read"):
        weights.check_unchanged(made.source)


def test_a_run_looks_whether_its_weights_changed(
    tmp_path: Path, tiny_fastvlm: TinyFastVlm, quiet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer writes on while we load: the model is of neither digest."""
    folder = tmp_path / "weights"
    shutil.copytree(tiny_fastvlm.weights, folder)
    asked = Asked(model=str(tiny_fastvlm.card), weights=str(folder), suite="pages", limit=1, res=64, device="cpu",
                  offline=True, out=str(tmp_path / "out"))  # fmt: skip
    made = job.prepare(asked)
    flip(folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"model\.safetensors changed while it was read"):
        next(run.run_job(made, lambda _: None))
    assert not list((tmp_path / "out").rglob("*.jsonl"))
    assert not any(part.stat().st_size for part in (tmp_path / "out").rglob("*.part"))


@pytest.mark.parametrize("name", ["validation.parquet", "1.png"])
def test_data_that_change_while_they_are_read_are_refused(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    real = builder.Reader.facts

    def facts(reader: builder.Reader) -> Any:
        path = world.root / "data" / name
        if path.suffix == ".png":
            flip(path)
        else:
            write_rows(path, ["What?", "Who else?"], ["this", "that"])
        return real(reader)

    monkeypatch.setattr(builder.Reader, "facts", facts)
    with pytest.raises(DataError, match="the data changed while they were read"):
        job.prepare(world.asked)
    assert not list((builds.cache_folder() / "examples").glob("[!.]*"))
