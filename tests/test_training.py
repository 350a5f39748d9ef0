"""The training of `fastvlm-nano`: what the lessons say is on the page, what is trained is what the adapter runs."""

import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tokenizers import Tokenizer

from harness.models.card import load_model_card
from harness.models.families import fastvlm
from harness.models.protocol import Options
from harness.models.weights import Source
from harness.suites import pages
from training import exercises, lessons, network, nightlies, train, vocabulary

ROOT = Path(__file__).parent.parent
PLAN = msgspec.toml.decode((ROOT / "training" / "fastvlm-nano.toml").read_bytes(), type=train.Plan)
SMALL = lessons.Kind(sides=(704, 1152), window=256, pages=2, windows=2, readable_px=3, repeats=1, fields=3, lines=2)
CARD = load_model_card("fastvlm-nano")
SHIPPED = ROOT / "models" / CARD.shipped


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))


@pytest.fixture(scope="module")
def untrained() -> network.Network:
    made = network.Network(CARD, seed=3)
    with torch.no_grad():  # let the norms see something, or folding them into the convolutions would do nothing
        made.train()
        made.encoder(torch.rand(2, 3, 128, 128))
    return made.eval()


@pytest.mark.parametrize("phase", range(len(PLAN.phases)))
def test_the_learning_rate_rises_then_falls(phase: int) -> None:
    first = sum(before.steps for before in PLAN.phases[:phase])
    highest, lowest = PLAN.phases[phase].rates
    rates = [PLAN.rate(first + step) for step in range(PLAN.phases[phase].steps)]
    top = max(PLAN.phases[phase].warmup - 1, 0)
    assert max(rates) == pytest.approx(highest, rel=1e-3)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top + 1 :] == sorted(rates[top + 1 :], reverse=True)
    if not PLAN.phases[phase].over:
        assert rates[-1] == pytest.approx(lowest, rel=0.01)


def test_every_batch_is_a_function_of_seed_and_step() -> None:
    first, again, other = (lessons.batch(SMALL, 5, step) for step in (9, 9, 10))
    assert [piece.tasks for piece in first] == [piece.tasks for piece in again]
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a.pixels, b.pixels) for a, b in zip(first, other, strict=True))


def test_characters_lie_where_the_ink_is() -> None:
    """Boxes of letters vary in brightness; the same boxes, moved a page's height away, do not."""
    contrast = []
    for piece in lessons.batch(SMALL, 5, 0):
        grey = piece.pixels.mean(axis=2)
        for character in piece.characters:
            x0, y0, x1, y1 = (round(edge) for edge in character.box)
            if min(x0, y0) >= 0 and max(x1, y1) <= 256 and x1 > x0 and y1 > y0 and chr(character.code).isalnum():
                contrast.append(float(np.ptp(grey[y0:y1, x0:x1])))
    assert len(contrast) > 100
    assert np.mean(np.array(contrast) > 60) > 0.98


def test_letters_are_near_where_the_page_itself_has_them() -> None:
    """The quick boxes against `Run.characters`, which measures every beginning of the text."""
    page = pages.document(3, 5)
    for run in page.runs:
        exact = run.characters()
        quick = list(lessons._boxes(run))
        assert [mark for mark, _ in exact] == [mark for mark, _ in quick]
        for (_, (x0, _, x1, _)), (_, (left, _, right, _)) in zip(exact, quick, strict=True):
            assert abs((x0 + x1) / 2 - (left + right) / 2) <= max(2.0, 0.1 * run.style.em_px)


def test_a_question_is_asked_only_where_label_and_answer_are_shown() -> None:
    for piece in lessons.batch(SMALL, 7, 2):
        for task in piece.tasks:
            x0, y0, x1, y1 = task.box
            assert 0 <= x0 < x1 <= 256
            assert 0 <= y0 < y1 <= 256


@given(st.integers(0, 40))
@settings(deadline=None)  # the time of a page is the machine's
def test_training_never_sees_a_page_of_the_suite(index: int) -> None:
    page, asked = pages.document(index, PLAN.seed), pages.document(index, PLAN.seed, "suite")
    assert not page.unseen
    assert {field.answers for field in page.fields} != {field.answers for field in asked.fields}


def test_the_tokenizer_spells_answers_and_knows_the_questions_words(tokenizer: Tokenizer) -> None:
    page = pages.document(2, 11, "suite")
    for field in page.fields:
        ids = tokenizer.encode(field.answers[0], add_special_tokens=False).ids
        assert tokenizer.decode(ids) == field.answers[0]
        assert len(tokenizer.encode(field.question, add_special_tokens=False).ids) < len(field.question) / 2


def test_the_tokenizer_is_rebuilt_from_its_seed(tokenizer: Tokenizer) -> None:
    made = vocabulary.build(PLAN.seed, 40)
    words = {word for word in made.get_vocab() if word.startswith(" ")}
    assert words
    assert words <= set(tokenizer.get_vocab())


def test_each_question_gets_what_transformers_says_of_it_alone(
    tokenizer: Tokenizer, untrained: network.Network
) -> None:
    """Many questions about two pieces at once, against the language model's own forward pass, question by question."""
    pieces = [piece for piece in lessons.batch(SMALL, 5, 0) if any(task.asked for task in piece.tasks)][:2]
    together = exercises.exercise(pieces, tokenizer)
    llm = untrained.llm
    with torch.no_grad():
        logits = untrained(together, ("answer",))["answer"]
        features = untrained.encoder.forward_features(together.pixels)
        visual = untrained.projector(features.flatten(2).transpose(1, 2))
        alone = []
        for owner, task in ((i, task) for i, piece in enumerate(pieces) for task in piece.tasks if task.asked):
            work = exercises.exercise([lessons.Lesson(pieces[0].pixels, (), (task,))], tokenizer)
            embed = llm.get_input_embeddings()
            embeds = torch.cat([embed(work.before), visual[owner], embed(work.ids)])
            said = llm(inputs_embeds=embeds[None]).logits[0, -len(work.ids) :]
            alone.append(said[work.labels != exercises.IGNORED])
    assert len(alone) >= 4
    assert torch.allclose(logits, torch.cat(alone), atol=1e-4)


def test_letters_are_where_the_model_is_told_to_look(tokenizer: Tokenizer) -> None:
    """The place of each letter of an answer, against the map of all printed characters."""
    kind = dataclasses.replace(SMALL, readable_px=8, window=512)
    right = []
    for lesson in lessons.batch(kind, 5, 1):
        work = exercises.exercise([lesson], tokenizer)
        printed = exercises.in_cells(work.spots, 64)[0]
        for label, point, (row, column) in zip(
            work.labels.tolist(), work.points.tolist(), work.places.tolist(), strict=True
        ):
            if point != exercises.IGNORED and (letter := tokenizer.decode([label])) != " ":
                right.append(chr(max(int(printed[point, row * 8 + column]), 0)) == letter)
        for label, column, (row, _) in zip(work.labels.tolist(), work.columns, work.places.tolist(), strict=True):
            if row != exercises.IGNORED and (letter := tokenizer.decode([label])) != " ":
                right.append(chr(max(int(column[row]), 0)) == letter)
    assert len(right) > 200
    assert np.mean(right) > 0.95  # neighbours may share a spot


def test_values_start_where_the_first_letter_is(tokenizer: Tokenizer) -> None:
    for lesson in lessons.batch(SMALL, 5, 1):
        work = exercises.exercise([lesson], tokenizer)
        starts = {
            (int(y // 64) * 4 + int(x // 64), int(y % 64 // 16) * 8 + int(x % 64 // 8))
            for x, y in (task.centres[0] for task in lesson.tasks if task.is_field)
        }
        assert {(token, spot) for token, spot in work.starts[0].nonzero().tolist()} == starts


def test_heads_that_look_where_they_should_lose_nothing(tokenizer: Tokenizer) -> None:
    """Scores as the docstring asks for them, label by label; then the last layer's heads in each other's place."""
    work = exercises.exercise([piece for piece in lessons.batch(SMALL, 5, 0) if piece.tasks][:2], tokenizer)
    asked = [t for t, label in enumerate(work.labels.tolist()) if label != exercises.IGNORED]
    scores = torch.zeros(len(asked), 2 + 8 + 8, 1 + 16)
    for i, t in enumerate(asked):
        point, column = int(work.points[t]), int(work.places[t, 1])
        before = (None, None) if work.first[t] else (int(work.points[t - 1]), int(work.places[t - 1, 1]))
        for head in range(18):
            if head < 2 or (head < 10 and work.first[t]):
                looked = 1 + point
            elif head < 10:
                looked = 1 + before[0] if head - 2 == before[1] else 0
            else:
                looked = 1 + point if head - 10 == column else 0
            scores[i, head, max(looked, 0)] = 40.0
    loss, told = train.point_loss(scores, work)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert told == pytest.approx({"found": 1, "followed": 1, "aligned": 1})
    loss, told = train.point_loss(torch.cat([scores[:, :10], scores[:, 10:].flip(1)], dim=1), work)
    assert loss.item() > 10
    assert told == pytest.approx({"found": 1, "followed": 1, "aligned": 0})


def test_what_is_exported_is_what_was_trained(tmp_path: Path, tokenizer: Tokenizer, untrained: network.Network) -> None:
    """Features and the first answered token, by the network in training and by the adapter that users run."""
    network.export(untrained, tmp_path, torch.float32)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    model = fastvlm.FastVlm(CARD, Source("local", tmp_path), Options(256))
    piece = next(piece for piece in lessons.batch(SMALL, 5, 0) if any(task.asked for task in piece.tasks))
    task = next(task for task in piece.tasks if task.asked)
    work = exercises.exercise([lessons.Lesson(piece.pixels, piece.characters, (task,))], tokenizer)
    with torch.no_grad():
        trained = untrained.encoder.forward_features(work.pixels)
        features = model.parts["fastvithd"].forward_features(work.pixels)
        visual = model.parts["projector"](features.flatten(2).transpose(1, 2))[0]
        before, after = model.prompt(task.question + exercises.SUFFIX)
        answered = model.prefill(model.embed(visual, before, after), model.prefill_scope({}, None, 0)).logits  # type: ignore[arg-type]
        logits = untrained(work, ("answer",))["answer"][0]
    assert torch.allclose(features, trained, atol=1e-4)
    assert torch.allclose(answered[0, -1], logits, atol=1e-4)


def test_slots_hold_the_character_that_covers_them(tokenizer: Tokenizer) -> None:
    character = lessons.Character(ord("k"), (70.0, 36.0, 77.0, 44.0))
    work = exercises.exercise([lessons.Lesson(np.zeros((128, 128, 3), np.uint8), (character,), ())], tokenizer)
    rows = work.letters.view(16, 32)  # slots of 8 x 4 pixels
    assert {(y, x) for y, x in rows.nonzero().tolist()} == {(4, 18), (5, 18)} or rows.nonzero().tolist() == [[4, 18]]
    assert set(work.letters.unique().tolist()) == {0, ord("k")}


def test_spots_are_of_the_cell_they_lie_in() -> None:
    """Of a map of 8 x 16 spots (128 x 128 pixels), one spot; its cell and its number there are counted by hand."""
    spots = torch.zeros(1, 8, 16, dtype=torch.long)
    spots[0, 5, 9] = 7  # pixels 80 to 95 from the top, 72 to 79 from the left
    found = [exercises.in_cells(spots, stride)[0].nonzero().tolist() for stride in (16, 32, 64)]
    assert found == [[[5 * 8 + 4, 1]], [[2 * 4 + 2, 1 * 4 + 1]], [[1 * 2 + 1, 1 * 8 + 1]]]


def plan(tmp_path: Path) -> Path:
    """The shipped plan with three phases that are over in a few seconds."""
    head = (ROOT / "training" / "fastvlm-nano.toml").read_text().partition("[kinds]")[0]
    head = head.replace(f"threads = {PLAN.threads}", "threads = 1")  # two test processes share two cores
    kind = "{ sides = [704, 704], window = 128, pages = 1, windows = 2, repeats = 1, "
    kind += "readable_px = 3, fields = 2, lines = 1 }"
    phase = '[[phases]]\nsteps = 2\nkinds = ["tiny"]\ntrains = "{}"\nwarmup = 1\nrates = [1e-3, 1e-4]\nhalves = {}\n'
    path = tmp_path / "plan.toml"
    path.write_text(
        f"{head}[kinds]\ntiny = {kind}\n"
        + "".join(phase.format(name, str(name == "answers").lower()) for name in train.LOSSES)
    )
    return path


def trained(plan: Path, out: Path, *options: str) -> list[dict[str, float]]:
    out.mkdir(exist_ok=True)
    (out / "tokenizer.json").write_bytes((SHIPPED / "tokenizer.json").read_bytes())
    done = CliRunner().invoke(train.main, ["--plan", str(plan), "--out", str(out), *options])
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.mark.slow
def test_training_is_deterministic_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(plan: train.Plan, first: int) -> Iterator[list[lessons.Lesson]]:
        """The lessons as the other process draws them, without that process: its start costs more than the steps."""
        return (lessons.batch(plan.kind(step), plan.seed, step) for step in range(first, plan.steps))

    monkeypatch.setattr(train, "drawn", drawn)
    # Muon's five iterations are in bfloat16, which a CPU without it emulates: nine tenths of this test's time.
    monkeypatch.setattr(torch.optim, "Muon", functools.partial(torch.optim.Muon, ns_steps=1))
    path = plan(tmp_path)
    whole = trained(path, tmp_path / "whole")
    assert [line["step"] for line in whole] == [1, 2, 3, 4, 5, 6]
    trained(path, tmp_path / "parts", "--stop-at", "5")
    assert trained(path, tmp_path / "parts") == whole
    assert (tmp_path / "parts" / "step-000006" / "model.safetensors").is_file()


def test_threads_that_race_give_the_same_gradients_every_time(tokenizer: Tokenizer) -> None:
    made = network.Network(CARD, seed=3)
    made.settle("answers")
    pieces = lessons.batch(dataclasses.replace(SMALL, window=128, pages=1), 5, 0)
    phase = next(phase for phase in PLAN.phases if phase.halves)
    threads = torch.get_num_threads()
    seen = []
    for _ in range(8):
        train.learn(made.train(), pieces, phase, PLAN, tokenizer)
        seen.append(torch.cat([p.grad.flatten() for p in made.parameters() if p.grad is not None]))
    torch.set_num_threads(threads)
    assert all(torch.equal(seen[0], other) for other in seen[1:])


@given(arrays.arrays(np.float16, (3, 50), elements=st.floats(-2, 2, width=16)), st.integers(0, 9))
def test_a_nightly_comes_back_to_half_a_step(value: np.ndarray, seed: int) -> None:
    base = np.random.default_rng(seed).normal(size=(3, 50)).astype(np.float16)
    back = nightlies.unpack(nightlies.pack(value, base), base)
    difference = np.abs(value.astype(np.float32) - base.astype(np.float32))
    assert np.abs(back.astype(np.float32) - value.astype(np.float32)).max() <= difference.max() / 6 * 1.01 + 4e-3


def test_windows_hold_what_they_are_placed_for() -> None:
    draw = Random(1)
    for _ in range(200):
        first = draw.uniform(0, 900)
        last = first + draw.uniform(5, 200)
        start = lessons._place(draw, first, last, 256, 1152)
        assert 0 <= start <= 1152 - 256
        assert start <= first
        assert last <= start + 256
