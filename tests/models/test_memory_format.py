"""Channels-last: the same answers, a trial that is kept, and a cell's key that names what took effect."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from harness import images
from harness.clock import Monotonic
from harness.errors import SettingError
from harness.machine import lock
from harness.measure import cell
from harness.measure.asked import Asked
from harness.models import memory_format, weights
from harness.models.card import load_model_card
from harness.models.engines import torch as engine
from harness.models.memory_format import Outcome, Subject
from harness.models.pipeline import VisionLanguageModel
from harness.models.protocol import Options, Piece, Request
from harness.models.weights import Source

ASKED = Asked(model="fastvlm-0.5b", suite="docvqa", res=256, device="cpu", weights="random", dtype="float32")


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache folder of this test's own."""
    monkeypatch.setenv("VLM_PARETO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def kept(asked: Asked, outcome: Outcome) -> None:
    """Write the outcome of a trial as an earlier process would have."""
    card = load_model_card(asked.model)
    subject = Subject(asked.model, card.digest, asked.res or 0, asked.device, asked.dtype or "", asked.threads, {})
    path = memory_format._path(asked.device)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({subject.entry: asdict(outcome)}))


def settings_of(asked: Asked) -> dict[str, object]:
    return dict(cell.settle(asked).settings)


def test_the_key_names_what_took_effect_and_never_auto() -> None:
    auto = replace(ASKED, settings={"channels_last": "auto"})
    kept(ASKED, Outcome(True, "trial: 0.6x"))
    settled = cell.settle(auto)
    assert settled.settings == settings_of(replace(ASKED, settings={"channels_last": True})) == {"channels_last": True}
    assert settled.decisions == ("channels_last=auto: true (trial: 0.6x)",)
    assert settled.asked.settings == {"channels_last": "auto"}  # who asks again, asks the same


def test_where_the_trial_says_no_the_cell_is_the_one_without_the_setting() -> None:
    kept(ASKED, Outcome(False, "trial: 1.1x"))
    settled = cell.settle(replace(ASKED, settings={"channels_last": "auto"}))
    assert (
        settled.settings == settings_of(replace(ASKED, settings={"channels_last": False})) == settings_of(ASKED) == {}
    )
    assert settled.decisions == ("channels_last=auto: false (trial: 1.1x)",)


@pytest.mark.parametrize(
    "other",
    [{"side": 512}, {"dtype": "bfloat16"}, {"threads": 7}, {"digest": "another"}, {"settings": {"tiles": 2}}],
)
def test_a_trial_counts_for_its_own_subject_alone(other: dict[str, Any]) -> None:
    subject = Subject("fastvlm-0.5b", "digest", 256, "cpu", "float32", None, {})
    assert subject.entry != replace(subject, **other).entry


def test_another_word_is_refused() -> None:
    with pytest.raises(SettingError, match="channels_last=yes: known: true, false, auto"):
        cell.settle(replace(ASKED, settings={"channels_last": "yes"}))


def test_a_trial_is_made_once_with_the_device_held(
    tiny_fastvlm: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = load_model_card(str(tiny_fastvlm.card))
    subject = Subject(str(tiny_fastvlm.card), card.digest, 64, "cpu", "float32", 1, {})
    held = []
    hold = lock.hold
    monkeypatch.setattr(lock, "hold", lambda device, wait: held.append(device) or hold(device, wait))
    found = memory_format.decide(subject)
    assert "encode" in found.how
    assert "pairs" in found.how
    assert memory_format.decide(subject) == memory_format.known(subject) == found
    assert held == ["cpu"]
    assert len(list((folder / "memory_formats").iterdir())) == 1


def test_a_trial_that_cannot_be_kept_decides_nothing(tiny_fastvlm: Any, folder: Path) -> None:
    folder.write_text("a file where the folder should be")
    card = load_model_card(str(tiny_fastvlm.card))
    subject = Subject(str(tiny_fastvlm.card), card.digest, 64, "cpu", "float32", 1, {})
    with pytest.raises(SettingError, match=r"channels_last=auto of .*the trial failed .*next: true or false"):
        memory_format.decide(subject)


def test_channels_last_is_taken_where_it_is_clearly_faster_in_every_pair() -> None:
    ms = 1_000_000
    assert memory_format._outcome([[(100 * ms, 60 * ms), (110 * ms, 70 * ms), (90 * ms, 60 * ms)]]).channels_last
    assert not memory_format._outcome([[(100 * ms, 97 * ms)] * 3]).channels_last
    assert not memory_format._outcome([[(100 * ms, 60 * ms), (100 * ms, 60 * ms), (100 * ms, 101 * ms)]]).channels_last
    two = memory_format._outcome([[(100 * ms, 50 * ms)] * 3, [(300 * ms, 350 * ms)] * 3])  # encoders are added up
    assert (two.channels_last, two.how) == (False, "trial: encode 1.000x (400.0 ms, contiguous 400.0 ms; 3 pairs)")


def test_features_that_differ_are_not_taken(tiny_fastvlm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    card = load_model_card(str(tiny_fastvlm.card))
    subject = Subject(str(tiny_fastvlm.card), card.digest, 64, "cpu", "float32", None, {})
    lay_out = VisionLanguageModel.lay_out

    def spoiled(model: VisionLanguageModel, channels_last: bool) -> None:
        lay_out(model, channels_last)
        if channels_last:
            next(model.parts["fastvithd"].parameters()).mul_(1.5)

    monkeypatch.setattr(VisionLanguageModel, "lay_out", spoiled)
    with torch.inference_mode():
        found = memory_format.trial(subject, Monotonic())
    assert not found.channels_last
    assert "features differ" in found.how


@pytest.mark.parametrize("kind", ["random", "local"])
def test_answers_are_the_same_and_the_log_says_which(tiny_fastvlm: Any, kind: str) -> None:
    card = load_model_card(str(tiny_fastvlm.card))
    source = Source("local", tiny_fastvlm.weights) if kind == "local" else weights.resolve(card, "random")
    noise = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    request = Request((images.png(Image.fromarray(noise)),), "What is the date?", 4, ignore_eos=True)
    said, logits = [], []
    for wish in (False, True):
        model = engine.load(card, source, Options(128, settings={**card.settings, "channels_last": wish}))
        assert isinstance(model, VisionLanguageModel)
        said.append([event for event in model.answer(request) if isinstance(event, Piece)])
        logits.append(torch.stack(model._largest))
        form = torch.channels_last if wish else torch.contiguous_format
        convolution = next(m for m in model.parts["fastvithd"].modules() if isinstance(m, torch.nn.Conv2d))
        assert convolution.weight.is_contiguous(memory_format=form)
        assert model.describe()["memory_format"] == ("channels_last" if wish else "contiguous")
    assert said[0] == said[1]
    assert (logits[0] - logits[1]).abs().max() < 1e-4


def test_a_transformer_is_refused_by_hand() -> None:
    card = load_model_card("llava-1.5-7b")
    options = Options(336, device="meta", settings={**card.settings, "channels_last": True})
    with pytest.raises(SettingError, match=r"channels_last=true: .* no convolutional encoder; next"):
        engine.load(card, Source("random"), options)
