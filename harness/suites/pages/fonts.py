"""The type faces the pages are set in: those that matplotlib and Pillow ship, opened without importing matplotlib."""

import functools
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

from harness.errors import MissingPackage

AILERON = "Aileron-Regular"
"""Pillow's own default face (CC0); it lies in the package as code, not as a file."""


@dataclass(frozen=True, slots=True)
class Family:
    """One family: the face (a file stem) for each weight; a family without a bold or an italic repeats its regular."""

    name: str
    regular: str
    bold: str
    italic: str


SEEN = (
    Family("DejaVu Sans", "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique"),
    Family("DejaVu Serif", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic"),
    Family("DejaVu Sans Mono", "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique"),
    Family("Computer Modern Roman", "cmr10", "cmb10", "cmr10"),  # cmti10 prints a pound sign for the dollar
    Family("Computer Modern Sans", "cmss10", "cmss10", "cmss10"),
)
"""Families that training pages may be set in."""

UNSEEN = (
    Family("STIX General", "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic"),
    Family("Aileron", AILERON, AILERON, AILERON),
    Family("Computer Modern Typewriter", "cmtt10", "cmtt10", "cmtt10"),
)
"""Families that only the suite uses: what a model trained on these pages has never seen."""

UNSAFE = '"<>\\_{|}^`~'
"""ASCII that the Computer Modern faces draw as something else: no page prints any of it."""


@functools.cache
def folder() -> Path:
    """Return where matplotlib keeps its TrueType files."""
    spec = find_spec("matplotlib")  # finds the package without running it
    path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" if spec and spec.origin else None
    if path is None or not path.is_dir():
        raise MissingPackage("matplotlib", "the embedded suite `pages` is set in the fonts of matplotlib and")
    return path


@functools.lru_cache(maxsize=256)
def load(face: str, em_px: float) -> ImageFont.FreeTypeFont:
    """Open `face` at `em_px` pixels to the em, with Pillow's own layout: libraqm is not in every build."""
    if face == AILERON:
        font = ImageFont.load_default(em_px)
        assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
        return font
    return ImageFont.truetype(str(folder() / f"{face}.ttf"), em_px, layout_engine=ImageFont.Layout.BASIC)


@dataclass(frozen=True, slots=True)
class Proportions:
    """Heights over the em: of a lower-case x, of capitals and ascenders, and of what hangs below the line."""

    x_height: float
    ascent: float
    descent: float


@functools.cache
def proportions(face: str) -> Proportions:
    """Measure `face` at 1000 pixels to the em, where hinting no longer matters."""
    font = load(face, 1000.0)
    return Proportions(
        x_height=-font.getbbox("x", anchor="ls")[1] / 1000,
        ascent=-font.getbbox("Hdl0$", anchor="ls")[1] / 1000,
        descent=font.getbbox("gpqy,$", anchor="ls")[3] / 1000,
    )
