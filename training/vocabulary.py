"""The tokenizer of `fastvlm-nano`: one id a byte, and one for every word that a question on a training page has.

Answers are spelled letter by letter, which suits copying from a picture; questions are short to read.
"""

import itertools
import re
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from harness.suites import pages

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SUFFIX = "\nAnswer the question using a single word or phrase."
"""What lmms-eval's DocVQA task appends to a question."""
READ_ON = "Read the line that begins with"
"""Asked in training only."""
PHRASES = (
    "system\nYou are a helpful assistant.",
    "user\n",
    "assistant\n",
    SUFFIX,
    READ_ON,
)
"""What every prompt repeats, an id each."""


def build(seed: int, count: int) -> Tokenizer:
    """Return the tokenizer for the questions that `count` training pages allow."""
    found = {
        word
        for page in itertools.islice(pages.documents(seed), count)
        for field in page.fields
        for word in re.findall(r" ?[A-Za-z]{2,}", field.question)
    }
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (*PHRASES, *sorted(found))])
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    return tokenizer


def spell(text: str, tokenizer: Tokenizer) -> list[int]:
    """Return one id for each letter, as answers are trained, also where the letters make a word of a question."""
    return [i for letter in text for i in tokenizer.encode(letter, add_special_tokens=False).ids]


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json`, which is all that a reader needs."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
