"""Chat templates that several families share: the text before the visual tokens, and the text after them."""

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def vicuna_v1(question: str) -> tuple[str, str]:
    r"""Return LLaVA's `vicuna_v1` (also named `v1`) for one question about one image, cut where the image goes.

    The halves are tokenized apart, as LLaVA does (a sentencepiece vocabulary gives another id where they meet), after
    one BOS; the image has its own line before the question. Source: `llava/conversation.py` of LLaVA-1.5.
    """
    return f"{VICUNA_SYSTEM} USER: ", f"\n{question} ASSISTANT:"


def qwen_2(question: str) -> tuple[str, str]:
    r"""Return LLaVA's `qwen_2` for one question about one image, cut where the image goes; no BOS.

    Source: `llava/conversation.py` of ml-fastvlm and LLaVA-NeXT; the image has its own line before the question.
    """
    return (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        f"\n{question}<|im_end|>\n<|im_start|>assistant\n",
    )
