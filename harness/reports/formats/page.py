"""The frame of our static pages: style for light and dark, and the script that sorts, filters and folds tables."""

from functools import cache
from html import escape
from pathlib import Path


def frame(title: str, body: str) -> str:
    """Return a whole page around `body`."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_beside('page.css')}</style>\n</head>\n<body>\n"
        f'<a class="skip" href="#content">Skip to the content</a>\n<main id="content">\n{body}\n</main>\n'
        f"<script>{_beside('page.js')}</script>\n</body>\n</html>\n"
    )


@cache
def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
