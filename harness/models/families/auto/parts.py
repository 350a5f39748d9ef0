"""Where things are in a model that we did not write: its projector, its tower, the id that stands for an image."""

from torch import nn

PROJECTORS = (
    "multi_modal_projector",
    "multimodal_projector",
    "mm_projector",
    "vision_projector",
    "visual_projection",
    "embed_vision",
    "connector",
    "aligner",
    "merger",
    "language_projection",
    "projector",
    "adapter",
)
"""What families call the module between tower and language model; the first of these that a model has is taken."""

TOWERS = ("vision_tower", "visual", "vision_model", "vision_encoder", "image_tower")
"""What families call the vision encoder; transformers' own `get_encoder` looks for the same names."""

IMAGE_TOKENS = ("image_token_id", "image_token_index", "image_patch_id", "media_placeholder_token_id")


def image_token_id(config: object) -> int | None:
    """Return the id that stands for one visual token in the prompt, or None where the configuration names none."""
    for holder in (config, getattr(config, "vision_config", None)):
        for name in IMAGE_TOKENS:
            value = getattr(holder, name, None)
            if isinstance(value, int):
                return value
    return None


def named(model: nn.Module, names: tuple[str, ...]) -> tuple[str, nn.Module] | None:
    """Return path and module of the first of `names` that `model` has; of several with one name the outermost."""
    modules = [(path, module) for path, module in model.named_modules() if path]
    for name in names:
        found = [(path, module) for path, module in modules if path.rpartition(".")[2] == name]
        if found:
            return min(found, key=lambda one: (one[0].count("."), one[0]))
    return None


def projector(model: nn.Module, path: str = "") -> tuple[str, nn.Module] | None:
    """Return path and module of the projector: `path` where the card names it, else by its usual names.

    Raises `AttributeError` where the model has no module of that path.
    """
    return (path, model.get_submodule(path)) if path else named(model, PROJECTORS)


def tower(model: nn.Module) -> tuple[str, nn.Module] | None:
    """Return path and module of the vision encoder, or None."""
    return named(model, TOWERS)
