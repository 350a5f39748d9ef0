"""Text to ids and back: the checkpoint's own tokenizer, or a stated stand-in for timing random weights without one."""

import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from harness.errors import WeightsError

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Any of these in a folder means that it has a tokenizer; read in this order."""


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
    """The tokenizer in a checkpoint's folder, through transformers and never with remote code.

    `tokenizer.json` is read as it is; `vocab.json` with `merges.txt` by the class that `tokenizer_config.json` names.
    The model's `config.json` is not asked: its type is often one that only remote code knows ("llava_qwen2").
    """

    def __init__(self, folder: Path) -> None:
        import transformers

        whole = (folder / "tokenizer.json").is_file()
        try:
            name = "PreTrainedTokenizerFast" if whole else _class_name(folder)
            self._tokenizer = getattr(transformers, name).from_pretrained(folder, local_files_only=True)
        except Exception as error:
            raise _unreadable(folder, error) from error
        self.name = f"{type(self._tokenizer).__name__} of {folder.name}"
        self.words = int(self._tokenizer.vocab_size)
        """Size of the vocabulary without added tokens; `size` is one more than the largest id, of added ones too."""
        self.size = max(self.words, 1 + max(self._tokenizer.added_tokens_decoder, default=0))

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )  # cleaning up takes back spaces that a stream has said already
        return text


class SentencePiece:
    """A bare `tokenizer.model` (Vicuna, LLaVA-1.5, ConvLLaVA), through the sentencepiece library itself.

    Not through transformers: its reader needs a protobuf newer than other packages here allow. Control symbols ("</s>")
    and `added_tokens.json` are special tokens; every stretch of text between them gets the model's leading space.
    """

    def __init__(self, folder: Path) -> None:
        import sentencepiece

        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
            added = folder / "added_tokens.json"
            special: dict[str, int] = json.loads(added.read_text()) if added.is_file() else {}
        except Exception as error:
            raise _unreadable(folder, error) from error
        self._size = self._model.get_piece_size()
        special |= {self._model.id_to_piece(i): i for i in range(self._size) if self._model.is_control(i)}
        self._special = special
        self._pattern = re.compile("(" + "|".join(map(re.escape, sorted(special, key=len, reverse=True))) + ")")
        self.name = f"sentencepiece of {folder.name}"
        self.words = self._size
        self.size = max(self.words, 1 + max(special.values(), default=0))

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for stretch in self._pattern.split(text) if self._special else [text]:
            if stretch in self._special:
                ids.append(self._special[stretch])
            elif stretch:
                ids.extend(self._model.encode(stretch))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        special = set(self._special.values())
        text: str = self._model.decode([int(i) for i in ids if i not in special and i < self._size])
        return text


class StandIn:
    """Makes about as many ids as a byte-pair vocabulary does: one per special token, word piece of up to ten letters,
    digit or sign (FastVLM's template with "What are these?": 24, as with its own tokenizer). Ids are hashes, so
    they mean nothing: only for timing random weights."""

    pattern = re.compile(r"<\|?[\w/]+\|?>| ?[^\W\d_]{1,10}|\d|\s|[^\w\s]|_")

    def __init__(self, vocab: int) -> None:
        self.name = "stand-in (pieces of up to 10 letters, hashed ids)"
        self._vocab = vocab

    def encode(self, text: str) -> list[int]:
        return [zlib.crc32(piece.encode()) % self._vocab for piece in self.pattern.findall(text)]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(f" ‹{i}›" for i in ids)


def find(folder: Path | None, vocab: int, trained: bool = False) -> Tokenizer:
    """Return the tokenizer in `folder`, or the stand-in where there is no folder or no tokenizer in it.

    With `trained` weights there is no stand-in: raises `WeightsError`, for its ids would mean nothing to the model.
    """
    if folder:
        for name in FILES:
            if (folder / name).is_file():
                return SentencePiece(folder) if name == "tokenizer.model" else Own(folder)
    if trained:
        raise WeightsError(
            f"{folder}: the checkpoint has no tokenizer (none of {', '.join(FILES)}); next: copy the model's tokenizer "
            "files into that folder"
        )
    return StandIn(vocab)


PADDED = 4096
"""Rows that a small vocabulary's embedding may have beyond twice its words."""

SPECIAL = re.compile(r"<\|[^|<>]+\|>")
"""How the templates' special tokens are written."""

USUAL = "What is the date of the letter?\nAnswer the question using a single word or phrase. 0123456789"


def check(tokenizer: Tokenizer, folder: Path, vocab: int, template: str, eos: Sequence[int]) -> None:
    """Raise `WeightsError` where the tokenizer is not the model's: its ids would mean something else, or nothing.

    `vocab` is the number of rows of the embedding, `template` the chat template's text, `eos` what the checkpoint's
    configuration says ends an answer.
    """
    if not isinstance(tokenizer, (Own, SentencePiece)):
        return
    wrong = ""
    if tokenizer.words > vocab:
        wrong = f"has {tokenizer.words} words, the embedding has {vocab} rows"
    elif 2 * tokenizer.words + PADDED < vocab:
        wrong = f"has only {tokenizer.words} words, the embedding has {vocab} rows"
    special = dict.fromkeys(SPECIAL.findall(template))
    ids = {word: tokenizer.encode(word) for word in special}
    broken = [word for word, made in ids.items() if len(made) != 1]
    beyond = [word for word, made in ids.items() if made and max(made) >= vocab]
    if broken:
        wrong = wrong or f"makes {len(ids[broken[0]])} tokens of the template's {broken[0]}"
    elif beyond:
        wrong = wrong or f"gives {beyond[0]} the id {ids[beyond[0]][0]}, the embedding has {vocab} rows"
    elif (highest := max(tokenizer.encode(USUAL), default=0)) >= vocab:
        wrong = wrong or f"gives a usual question ids up to {highest}, the embedding has {vocab} rows"
    elif eos and min(eos) >= tokenizer.size:
        wrong = wrong or f"has {tokenizer.size} tokens, and none at the ids that end an answer ({min(eos)})"
    if wrong:
        raise WeightsError(
            f"{folder}: its tokenizer is not this model's: it {wrong}; next: put the tokenizer files of the model "
            "itself into that folder"
        )


def _class_name(folder: Path) -> str:
    name = json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"]
    return str(name).removesuffix("Fast")


def _unreadable(folder: Path, error: Exception) -> WeightsError:
    return WeightsError(
        f"{folder}: its tokenizer cannot be read: {type(error).__name__}: {error}; next: fetch the folder anew"
    )


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
