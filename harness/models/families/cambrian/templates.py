"""Cambrian-1's chat templates: the text before the visual tokens, and the text after them, for one question.

Source: `cambrian/conversation.py`. They differ from the language models' own templates in their line breaks.
"""

from collections.abc import Callable

from harness.models import templates

SYSTEM = (
    "You are Cambrian, a highly intelligent multimodal AI trained by NYU Vision X. ",
    "As a multimodal AI, you have the ability to process and analyze images. Whenever an image is present in the "
    "conversation, very carefully examine it and consider its content when formulating your response. ",
    "You should give concise responses to very simple questions, but provide thorough responses to more complex and "
    "open-ended questions. ",
)


def llama_3(question: str) -> tuple[str, str]:
    """Return Cambrian's own llama_3 template: no blank line after a header, the system text broken and indented."""
    system = "\n    ".join([SYSTEM[0], SYSTEM[1].rstrip(), SYSTEM[2]])
    before = f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>{system}<|eot_id|>"
    before += "<|start_header_id|>user<|end_header_id|>"
    return before, f"\n{question}<|eot_id|><|start_header_id|>assistant<|end_header_id|>"


def chatml_direct(question: str) -> tuple[str, str]:
    """Return Cambrian's chatml_direct: no line break after `<|im_end|>`."""
    system = "".join(SYSTEM).rstrip()
    return (
        f"<|im_start|>system\n{system}<|im_end|><|im_start|>user\n",
        f"\n{question}<|im_end|><|im_start|>assistant\n",
    )


def phi3(question: str) -> tuple[str, str]:
    """Return Cambrian's phi3 template."""
    return (
        "<|system|>\nYou are a helpful AI assistant.<|end|>\n<|user|>\n",
        f"\n{question}<|end|>\n<|assistant|>\n",
    )


TEMPLATES: dict[str, Callable[[str], tuple[str, str]]] = {
    "llama_3": llama_3,
    "vicuna_v1": templates.vicuna_v1,
    "chatml_direct": chatml_direct,
    "phi3": phi3,
}
