"""ConvLLaVA: the LLaVA-1.5 recipe on a five-stage ConvNeXt, whose stride of 64 makes few tokens of a large image.

Sources: arXiv:2405.15738, `llava/model/multimodal_encoder/convnext_encoder.py` of alibaba/conv-llava (commit 3e7ae574).
"""

from torch import Tensor, nn
from transformers import ConvNextConfig, ConvNextModel

from harness.models.card import ModelCard, with_settings
from harness.models.configuration import Comparison, Fields
from harness.models.families.llava import Llava
from harness.models.foreign import Network
from harness.models.loading import Target
from harness.models.pipeline import Prepared
from harness.models.protocol import Model, Options
from harness.models.weights import Source


class ConvLlava(Llava):
    """A ConvNeXt without its final norm and pooling in place of CLIP's transformer."""

    usual_layer = -1

    def obey_tower(self, card: ModelCard, vision: Fields, comparison: Comparison) -> ModelCard:
        """Refuse another ConvNeXt; its eps is that of the pooled output's norm, which is not used."""
        settings = card.encoders[0].settings
        for name, ours in (("depths", "depths"), ("hidden_sizes", "widths"), ("patch_size", "patch")):
            comparison.demand(f"vision {name}", vision.get(name), settings[ours])
        act = comparison.obey("vision hidden_act", vision.get("hidden_act"), settings.get("hidden_act", "gelu"))
        return with_settings(card, hidden_act=act)

    def check_feature(self, card: ModelCard, layer: object, feature: object, comparison: Comparison) -> None:
        """Refuse any feature but the last stage's map."""
        comparison.demand("feature layer", layer, -1)
        comparison.demand("feature", feature, "patch")

    def build_tower(self) -> nn.Module:
        encoder = self.card.encoders[0]
        config = ConvNextConfig(
            num_stages=len(encoder.settings["depths"]),
            depths=list(encoder.settings["depths"]),
            hidden_sizes=list(encoder.settings["widths"]),
            patch_size=encoder.settings["patch"],
            hidden_act=encoder.settings.get("hidden_act", "gelu"),
            layer_norm_eps=1e-12,
        )
        tower: Network = ConvNextModel(config)
        del (
            tower.layernorm
        )  # of the pooled output: never used, and misshapen in the released files (conv-llava issue 4)
        module: nn.Module = tower
        return module

    def rename_tower(self, name: str) -> Target:
        return None if name.startswith("layernorm.") else f"{self.tower_name}.{name}"

    def encode(self, name: str, prepared: Prepared) -> Tensor:
        """Return the last stage's map row by row: (1, height / 64 * width / 64, width)."""
        tower: Network = self.parts[name]
        grid: Tensor = tower.encoder(tower.embeddings(prepared.pixels[name])).last_hidden_state
        return grid.flatten(2).transpose(1, 2)

    def feature_shapes(self, prepared: Prepared) -> dict[str, tuple[int, ...]]:
        encoder = self.card.encoders[0]
        stride = encoder.settings["patch"] * 2 ** (len(encoder.settings["depths"]) - 1)
        height, width = prepared.pixels[self.tower_name].shape[-2:]
        return {self.tower_name: (1, (height // stride) * (width // stride), encoder.width)}

    def describe_tower(self) -> dict[str, str]:
        """Return what the log says of the features."""
        return {"features": "the last stage, no norm, no pooling", "attention": "sdpa (the tower has none)"}


def load(card: ModelCard, source: Source, options: Options) -> Model:
    """Return the model of `card`, ready to answer."""
    return ConvLlava(card, source, options)
