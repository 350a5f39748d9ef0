"""What is compiled is what an answer calls, however a family runs its encoder; the features stay the same."""

import re
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from harness import images
from harness.errors import SettingError
from harness.models import compiling
from harness.models.card import Encoder, ModelCard, Resolution, load_model_card
from harness.models.engines import torch as engine
from harness.models.pipeline import VisionLanguageModel
from harness.models.protocol import Options
from harness.models.weights import Source

PICTURE = images.decode(
    images.png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)))
)


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trace and guard as torch.compile does, but leave out the C++ compiler: that takes minutes."""
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    yield
    torch._dynamo.reset()


def vit(feature: str) -> ModelCard:
    settings = {"feature": feature, "unused": ["head."], "arguments": {"img_size": 64, "depth": 2}}
    tower = Encoder(
        name="vit", library="timm", architecture="vit_tiny_patch16_224", width=192, side=64, settings=settings
    )
    rule = Resolution(rule="fixed", default=64)
    return ModelCard(title="vit", adapter="encoder", license="none", resolution=rule, encoders=(tower,), name="vit")


def llava(name: str, width: int, tower: dict[str, object], **settings: str) -> ModelCard:
    """Return a shipped card of LLaVA's recipe at small widths."""
    card = load_model_card(name)
    assert card.llm
    encoder = msgspec.structs.replace(card.encoders[0], width=width, settings=tower)
    llm = msgspec.structs.replace(card.llm, hidden=32, layers=1, heads=4, kv_heads=4, ffn=48, vocab=400, positions=1024)
    return msgspec.structs.replace(card, encoders=(encoder,), llm=llm, settings={**card.settings, **settings})


CONVNEXT = {"depths": [1, 1, 1, 1, 1], "widths": [8, 8, 8, 8, 16], "patch": 4}
CLIP = {"layers": 3, "heads": 2, "ffn": 24, "patch": 14}
CARDS = {
    "a method of timm's": (vit("last_patches"), 64, "vit by"),
    "piece by piece": (vit("penultimate_patches"), 64, r"vit \(\d modules\) by"),
    "two modules": (llava("convllava-7b-768", 16, CONVNEXT), 128, r"convnext-l-5 \(2 modules\), projector by"),
    "the module itself": (llava("llava-1.5-7b", 16, CLIP), 336, "clip-vit-l-336, projector by"),
}


def built(card: ModelCard, side: int, **settings: object) -> VisionLanguageModel:
    model = engine.load(card, Source("random"), Options(side, settings={**card.settings, **settings}))  # type: ignore[dict-item]
    assert isinstance(model, VisionLanguageModel)
    return model


@torch.inference_mode()
def features(model: VisionLanguageModel) -> torch.Tensor:
    prepared = model.look([PICTURE])
    return model.encode(model.encoder_names[0], prepared)


@pytest.mark.parametrize("how", CARDS)
def test_what_an_answer_calls_is_compiled(how: str) -> None:
    card, side, told = CARDS[how]
    frames = torch._dynamo.utils.counters["frames"]
    frames.clear()
    compiled = built(card, side, compile=True)
    assert frames["ok"] >= 1, "nothing of it went through the compiler"
    torch.testing.assert_close(features(compiled), features(built(card, side)), atol=1e-4, rtol=1e-4)
    assert re.match(told, compiled.describe()["compiled"])


def test_a_part_that_no_answer_calls_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    card, side, _ = CARDS["two modules"]
    monkeypatch.setattr(VisionLanguageModel, "projector_by_shape", True)
    monkeypatch.setattr(
        "harness.models.families.llava.Llava.project", lambda self, features, prepared: features[self.tower_name][0]
    )
    with pytest.raises(SettingError, match="no answer of convllava-7b-768 calls its projector"):
        built(card, side, compile=True)


def test_a_model_that_looks_inside_its_encoder_is_not_compiled() -> None:
    card = llava("llava-1.5-7b", 16, CLIP, reduction="prumerge")
    with pytest.raises(SettingError, match="looks inside its encoder"):
        built(card, 336, compile=True)
