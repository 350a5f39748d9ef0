"""A card for what people have: a checkpoint's folder or a Hub repository, without a card written by hand.

`--model` takes a card's name, a card file, a folder, or a Hub id. A folder whose architecture a family of ours knows
runs by that family's own card; any other by family `auto`, on a card made of its `config.json` and processor's files.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from harness import cards, files, hub
from harness.errors import SettingError, WeightsError, guess
from harness.models import configuration
from harness.models.card import Hub, ModelCard, Resolution, load_model_card

CONFIGURATION_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "README.md")
"""What is fetched of a Hub repository to make a card of it."""

OWN_FAMILIES = {
    "llava_qwen2": ("fastvlm",),
    "fast_vlm": ("fastvlm",),
    "llava_qwen": ("fastvlm", "llava_onevision"),
    "llava_onevision": ("llava_onevision",),
    "llava": ("llava", "llava_onevision"),
    "llava_llama": ("llava", "convllava", "fastvlm"),
    "cambrian_llama": ("cambrian",),
    "cambrian_phi3": ("cambrian",),
}
"""Our families by the `model_type` of a checkpoint's `config.json`."""

IN_TRANSFORMERS = ("fastvlm", "llava", "llava_onevision")
"""Our families whose architecture transformers has a class for (see `families.auto.known`)."""

LARGEST_SIDE = 4096


def model_card(text: str, offline: bool = False) -> ModelCard:
    """Return the card that `--model` names: a card's name or file, a checkpoint's folder, or a Hub id.

    Raises `UnknownName` or `SettingError` for none of these, and `WeightsError` for a folder that nothing here can run.
    """
    if text in cards.names("models") or text.endswith(".toml"):
        return load_model_card(text)
    if files.is_folder(folder := _expanded(text)):
        return of_folder(folder)
    if is_repo(text):
        return _of_repo(text, offline)
    if "/" in text:
        raise SettingError(f"--model {text}: no such folder; next: a card's name, a card file, a folder, or a Hub id")
    return load_model_card(text)


def is_repo(text: str) -> bool:
    """Return whether a text that is no folder here has the form of a Hub id: `OWNER/NAME`."""
    return text.count("/") == 1 and not text.startswith((".", "/", "~")) and not text.endswith("/")


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # `~nobody`
        return Path(text)


def routes(card: ModelCard) -> list[str]:
    """Return by which code a card runs: our family's adapter ("own"), transformers' own classes ("auto"), or either."""
    if card.adapter == "auto":
        return ["auto"]
    one_tile = card.settings.get("tiles", 1) == 1 and len(card.encoders) == 1
    return ["own", "auto"] if card.adapter in IN_TRANSFORMERS and card.llm and one_tile else ["own"]


def _of_repo(repo: str, offline: bool) -> ModelCard:
    own = [card for card in map(load_model_card, cards.names("models")) if card.hub and card.hub.repo == repo]
    if own:
        return min(own, key=lambda card: len(card.name))
    folder, reason = _fetched(repo, CONFIGURATION_FILES, offline)
    if folder is None:
        names = guess(repo, cards.names("models"))
        raise SettingError(f"--model {repo}: no folder of that name here, and {reason}{names}; next: give a folder")
    card = of_folder(folder, repo)
    return msgspec.structs.replace(
        card, folder="", hub=Hub(repo=repo, files=(*CONFIGURATION_FILES, *Hub(repo="").files))
    )


def _fetched(repo: str, patterns: Sequence[str], offline: bool) -> tuple[Path | None, str]:
    """Return the folder with these files of a model's repository, fetched if need be; or None, and why."""
    kept = hub.cached_model(repo, None, patterns)
    return (kept, "") if kept else hub.fetch_model(repo, None, patterns, offline)


def of_folder(folder: Path, name: str = "") -> ModelCard:
    """Return the card of a checkpoint's folder: one of ours that fits it, else one made for family `auto`."""
    if not (folder / "config.json").is_file():
        raise WeightsError(
            f"{folder}: no config.json in it, so nothing says which model it is; next: copy it there, or --model CARD "
            f"--weights {folder}"
        )
    found = configuration.read(folder)
    own = _own_card(found)
    if own:
        return msgspec.structs.replace(own, folder=str(folder))
    return _made(folder, found, name or folder.resolve().name)


def _own_card(found: configuration.Configuration) -> ModelCard | None:
    """Return the shipped card whose language model has this checkpoint's size; the shortest name of several."""
    adapters = OWN_FAMILIES.get(str(found.model.get("model_type")), ())
    wanted = [found.text.get(name) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")]
    fitting = []
    for card in map(load_model_card, cards.names("models")) if adapters else ():
        llm = card.llm
        if llm and card.hub and card.adapter in adapters and [llm.hidden, llm.layers, llm.heads] == wanted:
            fitting.append(card)
    tower = str(found.model.get("mm_vision_tower", ""))
    exact = [card for card in fitting if tower and card.encoders[0].repo == tower]
    return min(exact or fitting, key=lambda card: len(card.name), default=None)


def _made(folder: Path, found: configuration.Configuration, name: str) -> ModelCard:
    model_type = str(found.model.get("model_type") or "")
    architectures = found.model.get("architectures")
    told = ", ".join(map(str, architectures)) if isinstance(architectures, list) else "none named"
    if not _runs(model_type):
        raise WeightsError(f"{folder}: {_unknown(model_type, told, found.model)}")
    from harness.models.families.auto import kinds, resolution

    family = _family(model_type, found)
    kind = kinds.kind_of(family)
    looked_at = "" if family in kinds.KINDS else " (a family that nobody has looked at here)"
    return ModelCard(
        name=name,
        digest=_digest(folder, found),
        title=f"{name} ({family})",
        adapter="auto",
        license=_licence(folder),
        resolution=_resolution(kind.rule, resolution.own_side(found.preprocessor, found.vision)),
        settings={"projector": ""},
        folder=str(folder),
        notes=f"made from {folder / 'config.json'}: {told}, family {family}{looked_at}",
    )


def _family(model_type: str, found: configuration.Configuration) -> str:
    return "pixtral" if model_type == "llava" and found.vision.get("model_type") == "pixtral" else model_type


def _resolution(rule: str, own: int) -> Resolution:
    if rule == "fixed":
        return Resolution(rule="fixed", default=own)
    if rule == "square":
        return Resolution(rule="multiple", of=64, minimum=64, maximum=LARGEST_SIDE, default=1024)
    return msgspec.convert({"rule": rule, "default": 1024, "minimum": 28, "maximum": LARGEST_SIDE}, Resolution)


def _runs(model_type: str) -> bool:
    """Return whether transformers has a vision-language model of that type, without remote code."""
    from transformers.models.auto import modeling_auto

    return model_type in modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES


def _unknown(model_type: str, told: str, fields: Mapping[str, object]) -> str:
    if model_type in OWN_FAMILIES:
        ours = " or ".join(OWN_FAMILIES[model_type])
        return (
            f"architecture {told} ({model_type}) is read by family {ours}, but no shipped card has a language model of "
            "this size; next: write a card (docs/models.md) and give --model CARD.toml --weights FOLDER"
        )
    from transformers.models.auto import modeling_auto

    known = modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
    remote = " and brings code of its own, which is never run" if "auto_map" in fields else ""
    what = f"architecture {told} (model_type {model_type or 'not stated'}{guess(model_type, known)})"
    return (
        f"{what} is none of our {len({one for ours in OWN_FAMILIES.values() for one in ours})} families nor of the "
        f"{len(known)} multimodal ones of transformers{remote}; next: `harness list models` shows what runs"
    )


def _digest(folder: Path, found: configuration.Configuration) -> str:
    """Return the digest of what decides how the model is built and fed: configuration, processor, chat template."""
    template = folder / "chat_template.jinja"
    told = [found.model, found.preprocessor, template.read_text() if template.is_file() else ""]
    return files.digest_bytes(json.dumps(told, sort_keys=True).encode(), size=8)


def _licence(folder: Path) -> str:
    """Return the licence that the folder's README states in its front matter."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return NOT_STATED
    if not text.startswith("---"):
        return NOT_STATED
    import yaml

    try:
        fields = yaml.safe_load(text.split("---", 2)[1])
    except yaml.YAMLError:
        return NOT_STATED
    if not isinstance(fields, dict):
        return NOT_STATED
    named = str(fields.get("license_name") or fields.get("license") or "").strip()
    return f"{named} (the checkpoint's own README)" if named else NOT_STATED


NOT_STATED = "not stated in the checkpoint's folder"
