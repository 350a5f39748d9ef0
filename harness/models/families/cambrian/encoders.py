"""Cambrian-1's four encoders on transformers' classes, made to compute what the originals (open_clip, timm,
transformers 4.37) do, and the names of their tensors in the four repositories that publish them.

Where stock classes differ: SigLIP's GELU is exact, DINOv2 interpolates its positions by the older rule, the ConvNeXt's
norms have eps 1e-5. Source: `cambrian/model/multimodal_encoder/`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import sqrt

import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings

from harness import images
from harness.models.card import Encoder
from harness.models.foreign import Network
from harness.models.loading import Target

RGB = tuple[float, float, float]
IMAGENET_MEAN: RGB = (0.485, 0.456, 0.406)
IMAGENET_STD: RGB = (0.229, 0.224, 0.225)
HALF: RGB = (0.5, 0.5, 0.5)


@dataclass(frozen=True, slots=True)
class Tower:
    """What is particular to one encoder.

    `build` takes the card's encoder; `run` the module, pixels (1, 3, side, side) and the grid's side, and gives
    features (1, grid x grid, width); `rename` maps the published name of a tensor to the module's. `padding` is the
    mean whose colour fills the square: CLIP's for SigLIP too, which is the released behaviour.
    """

    build: Callable[[Encoder], nn.Module]
    run: Callable[[Network, Tensor, int], Tensor]
    rename: Callable[[str], Target]
    padding: RGB
    mean: RGB
    std: RGB
    act: str = ""
    """The activation, where the repository's configuration states one."""

    def stated(self, encoder: Encoder) -> dict[str, object]:
        """Return what the encoder's own configuration must say, by the names of transformers' classes."""
        settings = encoder.settings
        told = {
            "hidden_size": encoder.width,
            "num_hidden_layers": settings.get("layers"),
            "num_attention_heads": settings.get("heads"),
            "intermediate_size": settings.get("ffn"),
            "patch_size": settings.get("patch"),
            "image_size": settings.get("trained_side", encoder.side),
            "hidden_act": self.act,
        }
        return told if self.act else {}


def on_grid(tokens: Tensor, side: int) -> Tensor:
    """Resample tokens (1, n x n, width) to (1, side x side, width) as maps; left alone where n is `side`."""
    grid = int(sqrt(tokens.shape[1]))
    if grid == side:
        return tokens
    return resample(tokens.transpose(1, 2).unflatten(2, (grid, grid)), side).flatten(2).transpose(1, 2)


def resample(maps: Tensor, side: int) -> Tensor:
    """Resample maps (1, width, n, n) to (1, width, side, side): bilinear, in float32."""
    size = (side, side)
    return nn.functional.interpolate(maps.float(), size=size, mode="bilinear", align_corners=False).to(maps.dtype)


# --- SigLIP SO400M/14 at 384, published for open_clip with timm's names ---


def _siglip(encoder: Encoder) -> nn.Module:
    model = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=encoder.width,
            num_hidden_layers=encoder.settings["layers"],
            num_attention_heads=encoder.settings["heads"],
            intermediate_size=encoder.settings["ffn"],
            patch_size=encoder.settings["patch"],
            image_size=encoder.side or 0,
            hidden_act="gelu",  # timm's is exact; transformers' default is the tanh form: 1e-4 apart
            vision_use_head=False,
        )
    )
    return _inner(model)


def _run_siglip(model: Network, pixels: Tensor, grid: int) -> Tensor:
    return on_grid(model(pixels).last_hidden_state, grid)


def _rename_siglip(name: str) -> Target:
    if not name.startswith("visual.trunk.") or name.startswith("visual.trunk.attn_pool."):
        return None  # text tower, temperature, attention pooling
    name = name.removeprefix("visual.trunk.")
    if name == "pos_embed":
        return [("embeddings.position_embedding.weight", lambda tensor: tensor[0])]
    if ".attn.qkv." in name:
        stem, kind = name.replace("blocks.", "encoder.layers.").split(".attn.qkv.")
        return [(f"{stem}.self_attn.{part}_proj.{kind}", partial(_chunk, 3, i)) for i, part in enumerate("qkv")]
    for old, new in (
        ("patch_embed.proj.", "embeddings.patch_embedding."),
        ("blocks.", "encoder.layers."),
        (".attn.proj.", ".self_attn.out_proj."),
        (".norm1.", ".layer_norm1."),
        (".norm2.", ".layer_norm2."),
    ):
        name = name.replace(old, new)
    return f"post_layernorm.{name.removeprefix('norm.')}" if name.startswith("norm.") else name


# --- CLIP ViT-L/14 at 336, published for transformers ---


def _clip(encoder: Encoder) -> nn.Module:
    model = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=encoder.width,
            num_hidden_layers=encoder.settings["layers"],
            num_attention_heads=encoder.settings["heads"],
            intermediate_size=encoder.settings["ffn"],
            patch_size=encoder.settings["patch"],
            image_size=encoder.side or 0,
        )
    )
    return _inner(model)


def _run_clip(model: Network, pixels: Tensor, grid: int) -> Tensor:
    # the last layer but one; the original computes the last one too, so its time belongs to the measurement
    return on_grid(model(pixels, output_hidden_states=True).hidden_states[-2][:, 1:], grid)


def _rename_clip(name: str) -> Target:
    if not name.startswith("vision_model.") or name.endswith(".position_ids"):
        return None
    return name.removeprefix("vision_model.")


# --- DINOv2 giant at 378, published for transformers under its older names ---


class OlderEmbeddings(Dinov2Embeddings):  # type: ignore[misc]  # transformers is untyped
    """DINOv2's embeddings with the position interpolation of transformers 4.37, which Cambrian-1 was trained with.

    It scales by (27 + 0.1) / 37 where newer versions ask for 27 x 27 cells: 0.65 % (rms) apart.
    """

    def interpolate_pos_encoding(self, embeddings: Tensor, height: int, width: int) -> Tensor:
        """Return positions (1, 1 + cells, width) for an image of `height` x `width` pixels."""
        positions: Tensor = self.position_embeddings
        trained = int(sqrt(positions.shape[1] - 1))
        patch = self.patch_embeddings.patch_size[0]
        rows, cols = height // patch, width // patch
        if rows == cols == trained:
            return positions
        maps = positions[:, 1:].transpose(1, 2).unflatten(2, (trained, trained))
        scale = ((rows + 0.1) / trained, (cols + 0.1) / trained)
        maps = nn.functional.interpolate(maps.float(), scale_factor=scale, mode="bicubic", align_corners=False)
        return torch.cat([positions[:, :1], maps.to(positions.dtype).flatten(2).transpose(1, 2)], 1)


def _dinov2(encoder: Encoder) -> nn.Module:
    config = Dinov2Config(
        hidden_size=encoder.width,
        num_hidden_layers=encoder.settings["layers"],
        num_attention_heads=encoder.settings["heads"],
        mlp_ratio=4,
        patch_size=encoder.settings["patch"],
        image_size=encoder.settings["trained_side"],
        use_swiglu_ffn=True,
    )
    model: nn.Module = Dinov2Model(config)
    model.embeddings = OlderEmbeddings(config)
    return model


def _run_dinov2(model: Network, pixels: Tensor, grid: int) -> Tensor:
    return on_grid(model(pixels).last_hidden_state[:, 1:], grid)


def _rename_dinov2(name: str) -> Target:
    if ".mlp.weights_in." in name:
        stem, kind = name.split(".mlp.weights_in.")
        halves = (("gate_proj", 0), ("up_proj", 1))
        return [(f"{stem}.mlp.{half}.{kind}", partial(_chunk, 2, index)) for half, index in halves]
    for old, new in (
        (".attention.attention.query.", ".attention.q_proj."),
        (".attention.attention.key.", ".attention.k_proj."),
        (".attention.attention.value.", ".attention.v_proj."),
        (".attention.output.dense.", ".attention.o_proj."),
        (".mlp.weights_out.", ".mlp.down_proj."),
    ):
        name = name.replace(old, new)
    return name


# --- ConvNeXt-XXL at 1024, published for open_clip with timm's names ---


def _convnext(encoder: Encoder) -> nn.Module:
    model: nn.Module = ConvNextModel(
        ConvNextConfig(depths=encoder.settings["depths"], hidden_sizes=encoder.settings["widths"])
    )
    model.layernorm = nn.Identity()  # only its pooled output would pass here, and the released names have none
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5  # timm's xxlarge; transformers writes 1e-6 into the class
    return model


def _run_convnext(model: Network, pixels: Tensor, grid: int) -> Tensor:
    maps, stages = model.embeddings(pixels), []
    for stage in model.encoder.stages:
        maps = stage(maps)
        stages.append(resample(maps, grid))
    return torch.cat(stages, 1).flatten(2).transpose(1, 2)


def _rename_convnext(name: str) -> Target:
    if not name.startswith("visual.trunk.") or name.startswith(("visual.trunk.head.", "visual.trunk.norm_pre.")):
        return None  # text tower, temperature, pooled head
    name = name.removeprefix("visual.trunk.")
    for old, new in (
        ("stem.0.", "embeddings.patch_embeddings."),
        ("stem.1.", "embeddings.layernorm."),
        ("stages.", "encoder.stages."),
        (".downsample.", ".downsampling_layer."),
        (".blocks.", ".layers."),
        (".conv_dw.", ".dwconv."),
        (".mlp.fc1.", ".pwconv1."),
        (".mlp.fc2.", ".pwconv2."),
        (".norm.", ".layernorm."),
    ):
        name = name.replace(old, new)
    return f"{name.removesuffix('gamma')}layer_scale_parameter" if name.endswith(".gamma") else name


def _inner(model: nn.Module) -> nn.Module:
    """Return the tower itself: some versions of transformers keep it one level down."""
    inner: nn.Module = getattr(model, "vision_model", model)
    return inner


def _chunk(parts: int, index: int, tensor: Tensor) -> Tensor:
    return tensor.chunk(parts)[index]


CLIP_MEAN, CLIP_STD = images.OPENAI_CLIP_MEAN, images.OPENAI_CLIP_STD
TOWERS = {
    "SiglipVisionModel": Tower(_siglip, _run_siglip, _rename_siglip, CLIP_MEAN, HALF, HALF),
    "CLIPVisionModel": Tower(_clip, _run_clip, _rename_clip, CLIP_MEAN, CLIP_MEAN, CLIP_STD, "quick_gelu"),
    "Dinov2Model": Tower(_dinov2, _run_dinov2, _rename_dinov2, IMAGENET_MEAN, IMAGENET_MEAN, IMAGENET_STD, "gelu"),
    "ConvNextModel": Tower(_convnext, _run_convnext, _rename_convnext, CLIP_MEAN, CLIP_MEAN, CLIP_STD),
}
"""By the `architecture` of the card's encoder."""
