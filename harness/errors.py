"""What can go wrong, as a tree; only `cli` catches these and turns them into one line and an exit code.

HarnessError                 every error we foresee; its text names the file or cell, the value, and the next step
├── UnknownName              a model, suite, device, report ... that no card or plug-in has; guesses the near one
├── CardError                a card that cannot be read: file, field, value
├── SettingError             a setting the model or device cannot take (`--res 1000`): the nearest valid ones
├── WeightsError             a checkpoint that is not the model: every missing, unexpected, misshapen or NaN tensor
├── DataError                a suite whose data cannot be had or read
├── DeviceError              a device that is not here, or is held by another run
├── MissingPackage           an optional package is not installed: the exact command that installs it
├── ServerError              what a served model's server did instead of answering, in its own words
├── LogError                 a run log that is torn beyond resuming, from the future, or not ours
├── OutputError              a model whose output cannot be (logits that are not finite): a failure record
└── ExampleError             one example that cannot be measured (corrupt image ...): a failure record, never a score
"""

import difflib
import unicodedata
from collections.abc import Iterable


class HarnessError(Exception):
    """Every error we foresee."""

    exit_code = 2


class UnknownName(HarnessError):
    """A name that nothing here has."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        shown = name if len(name) <= 100 else f"{name[:100]}..."
        super().__init__(f"unknown {kind} {shown!r}{guess(name, self.known)}; known: {', '.join(self.known) or 'none'}")


class CardError(HarnessError):
    """A card that cannot be read."""


class SettingError(HarnessError):
    """A setting that the model, the suite or the device cannot take."""


class WeightsError(HarnessError):
    """A checkpoint that is not the model it is asked to be."""


class DataError(HarnessError):
    """A suite whose data cannot be had or read."""


class DeviceError(HarnessError):
    """A device that is not here, or is held by another run."""


class MissingPackage(HarnessError):
    """An optional package is not installed."""

    def __init__(self, package: str, purpose: str, extra: str | None = None) -> None:
        command = f"pip install 'vlm-pareto[{extra}]'" if extra else f"pip install {package}"
        super().__init__(f"{purpose} needs the package {package!r}, which is not installed; next: {command}")


class ServerError(HarnessError):
    """A server that did not answer as it should.

    `gone`: there is no connection to be had, so the run ends and can be resumed; `busy`: it asks to come back later;
    `cut`: the answer broke off.
    """

    def __init__(
        self, text: str, *, status: int | None = None, gone: bool = False, busy: bool = False, cut: bool = False
    ) -> None:
        self.status, self.gone, self.busy, self.cut = status, gone, busy, cut
        super().__init__(text)

    def saying(self, text: str) -> "ServerError":
        """Return the same error in other words."""
        return ServerError(text, status=self.status, gone=self.gone, busy=self.busy, cut=self.cut)


class LogError(HarnessError):
    """A run log that cannot be read or continued."""


class OutputError(HarnessError):
    """A model whose output cannot be: no answer, whatever the largest of its logits is."""

    def __init__(self, what: str, stage: str) -> None:
        self.failed_in = stage
        super().__init__(f"{what}; next: check the weights, or another --dtype (float16 ends at 65504)")


class ExampleError(HarnessError):
    """One example that cannot be measured; the run goes on and the log keeps a failure record."""


LESS_MEMORY = "--isolate-stages (one part at a time), a lower --res or a smaller model"
"""What to try when memory does not suffice; `backend.less_memory` adds a precision that the device has."""


NO_MEMORY = (
    "out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "bad_alloc",
    "failed to map segment",
)  # fmt: skip
"""How libraries say it, each in its own words."""


def out_of_memory(error: BaseException) -> bool:
    """Return whether memory did not suffice; torch says so in a `RuntimeError` of other words for each device."""
    if isinstance(error, MemoryError):
        return True
    told = isinstance(error, RuntimeError | OSError | ImportError)
    return told and any(word in str(error).lower() for word in NO_MEMORY)


PASSING = (
    "MemoryError", "OutOfMemoryError", "DeviceError", "LogError", "OSError", "BlockingIOError", "ConnectionError",
    "ConnectionResetError", "PermissionError", "TimeoutError",
)  # fmt: skip
"""Errors of the machine, by the class's name as a failure record has it: another night they may be gone."""


def passes(name: str, message: str) -> bool:
    """Return whether a failure is trouble that may pass (memory, a device, a disk), and not the content's own."""
    return name in PASSING or (name in ("RuntimeError", "ImportError") and any(w in message.lower() for w in NO_MEMORY))


HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories of what is not seen but does something: control characters, text directions, halves of pairs."""


def cleaned(text: str, lines: bool = False) -> str:
    """Return `text` with what a terminal would obey (newlines, escape codes, text directions) written out.

    Names of files, tensors and checkpoints come from elsewhere. With `lines` the text may have several.
    """
    keep = "\n\t" if lines else ""
    return "".join(
        letter if letter in keep or unicodedata.category(letter) not in HIDDEN else ascii(letter)[1:-1]
        for letter in text
    )


def guess(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest known name, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""
