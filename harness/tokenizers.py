"""Text to ids and back: the checkpoint's own tokenizer, or a stated stand-in for timing random weights without one."""

import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from harness.errors import WeightsError

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


class Tokenizer(Protocol):
    """What an adapter needs of a tokenizer."""

    name: str

    def encode(self, text: str) -> list[int]:
        """Return ids; special tokens written out in `text` are recognised, none is added."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` without special tokens."""
        ...


class Own:
    """The tokenizer in a checkpoint's folder, through transformers and never with remote code."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        try:
            if (
                folder / "tokenizer.json"
            ).is_file():  # the family's config.json may name a class that only remote code has
                self._tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(folder)
            else:
                self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:
            raise WeightsError(
                f"{folder}: its tokenizer cannot be read: {error}; next: fetch the folder anew"
            ) from error
        self.name = f"{type(self._tokenizer).__name__} of {folder.name}"

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text


class StandIn:
    """A stand-in that makes about as many ids as a byte-pair vocabulary does: one per special token, word piece of up to
    six letters, digit group or sign. Ids are hashes, so they mean nothing: only for timing random weights."""

    pattern = re.compile(r"<\|?[\w/]+\|?>| ?[^\W\d_]{1,6}|\d{1,3}|\s|[^\w\s]|_")

    def __init__(self, vocab: int) -> None:
        self.name = "stand-in (pieces of up to 6 letters, hashed ids)"
        self._vocab = vocab

    def encode(self, text: str) -> list[int]:
        return [zlib.crc32(piece.encode()) % self._vocab for piece in self.pattern.findall(text)]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(f" ‹{i}›" for i in ids)


def find(folder: Path | None, vocab: int) -> Tokenizer:
    """Return the tokenizer in `folder`, or the stand-in where there is no folder or no tokenizer in it."""
    if folder and any((folder / name).is_file() for name in FILES):
        return Own(folder)
    return StandIn(vocab)


class Stream:
    """Turns ids into pieces of text as they come; a character that is cut in two waits for its other half."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._said = ""

    def add(self, token: int) -> str:
        """Return what `token` adds to the text; may be empty."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        if text.endswith("\ufffd"):
            return ""
        piece, self._said = text[len(self._said) :], text
        return piece
