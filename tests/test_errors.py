"""What a terminal would obey is written out; what memory says in its many words is one thing."""

import pytest

from harness.errors import cleaned, out_of_memory, passes


def test_names_from_elsewhere_command_no_terminal() -> None:
    assert cleaned("a\n::error::b\x1b[31m\u202ec") == "a\\n::error::b\\x1b[31m\\u202ec"
    assert cleaned("é † – 日本 😀") == "é † – 日本 😀"
    assert cleaned("a\nb\x1b", lines=True) == "a\nb\\x1b"


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried to allocate"), True),
        (ImportError("libtorch.so: failed to map segment: Cannot allocate memory"), True),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_memory_that_does_not_suffice(error: BaseException, memory: bool) -> None:
    assert out_of_memory(error) is memory


def test_only_the_machines_trouble_passes() -> None:
    assert passes("OutOfMemoryError", "")
    assert passes("RuntimeError", "DefaultCPUAllocator: can't allocate memory")
    assert not passes("RuntimeError", "size mismatch")
    assert not passes("WeightsError", "not the weights of this model")
