"""Whether channels-last is faster for a model's encoders here: one measured trial per machine and shape, kept.

Convolutions read an image either plane by plane (contiguous) or pixel by pixel (channels-last); which is faster depends
on processor, library, precision and size, so it is tried. The functions are the same, up to the order of sums.
"""

import hashlib
import json
import os
import statistics
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness import parent
from harness.clock import Clock, Monotonic
from harness.errors import SettingError
from harness.files import cache_folder, write_atomically
from harness.machine import backend, environment, lock
from harness.machine.device import Device
from harness.machine.devices.cpu import usable_cores
from harness.models.card import ModelCard

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models.pipeline import Prepared, VisionLanguageModel

MOST_PAIRS, FEWEST_PAIRS = 5, 3
LONG_ENOUGH_NS = 60_000_000_000
"""After so long no further pair is begun, once there are the fewest."""
WORTH_IT = 0.95
"""The ratio that must be undercut: less is within a machine's noise, and no reason to give a cell another name."""
MOST_DIFFERENCE = {"float32": 1e-4}
"""The norm of the features' difference over the features' norm; beyond it the two are not the same function."""
MOST_DIFFERENCE_OF_HALVES = 5e-2


@dataclass(frozen=True, slots=True)
class Subject:
    """What a trial is of: everything that its outcome may depend on."""

    model: str
    """As asked for: a card's name or path."""
    digest: str
    """The card's digest: a trial has random weights, so the weights have no part in it."""
    side: int
    device: str
    dtype: str
    threads: int | None
    settings: Mapping[str, str | int | float | bool]
    """The card's and the engine's that were changed, without channels_last."""

    @property
    def entry(self) -> str:
        """The name of the kept outcome; whoever takes torch's own number of threads has the same on the same cores."""
        own = f"{os.environ.get('OMP_NUM_THREADS', '')} of {usable_cores()}"
        of = {**asdict(self), "threads": self.threads or own, "model": ""}
        return hashlib.blake2b(json.dumps(of, sort_keys=True).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a trial found."""

    channels_last: bool
    how: str


def decide(subject: Subject, wait: bool = False) -> Outcome:
    """Return the outcome of the trial of `subject`, from the cache folder or measured now, with the device held.

    It runs in a process of its own, as this one may be about to time its first request. An outcome that cannot be kept
    is refused: the next process might find another one, under another name. Raises `SettingError` or `DeviceError`.
    """
    kept = known(subject)
    if kept:
        return kept
    code = "import sys; from harness.models import memory_format; memory_format.keep(sys.argv[1])"
    told = json.dumps({**asdict(subject), "settings": dict(subject.settings)})
    with lock.hold(subject.device, wait):
        run = subprocess.run(
            [*parent.python(), "-c", code, told],
            env=parent.surroundings(), capture_output=True, text=True, check=False,
        )  # fmt: skip
    kept = known(subject)
    if run.returncode or not kept:
        why = (run.stderr.strip().splitlines() or ["nothing was kept in the cache folder"])[-1]
        raise SettingError(f"channels_last=auto of {subject.model}: the trial failed ({why}); next: true or false")
    return kept


def known(subject: Subject) -> Outcome | None:
    """Return the outcome of an earlier trial of `subject` on this machine, without importing torch."""
    return _read(subject.device).get(subject.entry)


def keep(told: str) -> None:
    """Try the subject that `told` is (JSON) and write the outcome into the cache folder; in a process of its own."""
    subject = Subject(**json.loads(told))
    outcomes = {**_read(subject.device), subject.entry: trial(subject, Monotonic())}
    text = json.dumps({entry: asdict(outcome) for entry, outcome in outcomes.items()}, indent=1)
    write_atomically(_path(subject.device), text)


def trial(subject: Subject, clock: Clock) -> Outcome:
    """Time every convolutional encoder of the model in both formats, alternating, on random weights and pixels."""
    import torch

    from harness.models.engines import torch as engine
    from harness.models.pipeline import VisionLanguageModel
    from harness.models.protocol import Options
    from harness.models.synthesis import model_card
    from harness.models.weights import Source

    if subject.threads:
        torch.set_num_threads(subject.threads)
    card: ModelCard = model_card(subject.model, True)
    device = backend.of(subject.device).open(clock)
    settings = {**card.settings, **engine.SETTINGS, **subject.settings, "graphs": False}  # they hold weights' places
    pairs: list[list[tuple[int, int]]] = []
    for encoder in card.encoders:
        options = Options(subject.side, device.torch_name, subject.dtype, only=encoder.name, settings=settings)
        model = engine.load(card, Source("random"), options)
        if isinstance(model, VisionLanguageModel) and model.convolutional:
            with torch.inference_mode():
                difference = _difference(model, encoder.name, subject.side)
                most = MOST_DIFFERENCE.get(subject.dtype, MOST_DIFFERENCE_OF_HALVES)
                if not difference <= most:
                    return Outcome(False, f"{encoder.name}: features differ by {difference:.1e} of their norm")
                pairs.append(_pairs(model, encoder.name, subject.side, device, clock))
        model.close()
    return _outcome(pairs) if pairs else Outcome(False, "no convolutional encoder")


def _outcome(pairs: list[list[tuple[int, int]]]) -> Outcome:
    """Add up the encoders; channels-last is taken where it is clearly faster, and in every pair."""
    summed = [(sum(one[0] for one in each), sum(one[1] for one in each)) for each in zip(*pairs, strict=False)]
    ratios = [last / contiguous for contiguous, last in summed]
    ratio = statistics.median(ratios)
    before, after = (statistics.median(each) / 1e6 for each in zip(*summed, strict=True))
    how = f"trial: encode {ratio:.3f}x ({after:.1f} ms, contiguous {before:.1f} ms; {len(ratios)} pairs)"
    return Outcome(ratio < WORTH_IT and max(ratios) < 1, how)


def _pairs(model: "VisionLanguageModel", name: str, side: int, device: Device, clock: Clock) -> list[tuple[int, int]]:
    prepared = _noise(model, side)

    def timed(last: bool) -> int:
        model.lay_out(last)
        given = model.laid_out(prepared)
        model.encode(name, given)  # warm: the first pass in a format chooses kernels
        device.sync()
        start_ns = clock.now_ns()
        model.encode(name, given)
        device.sync()
        return clock.now_ns() - start_ns

    began_ns, found = clock.now_ns(), list[tuple[int, int]]()
    while len(found) < MOST_PAIRS and (len(found) < FEWEST_PAIRS or clock.now_ns() - began_ns < LONG_ENOUGH_NS):
        last_first = len(found) % 2 == 1  # ABBA: a drift of the machine falls on both
        first = timed(last_first)
        second = timed(not last_first)
        found.append((second, first) if last_first else (first, second))
    return found


def _difference(model: "VisionLanguageModel", name: str, side: int) -> float:
    prepared = _noise(model, side)
    features: list[Tensor] = []
    for last in (False, True):
        model.lay_out(last)
        features.append(model.encode(name, model.laid_out(prepared)).float())
    return float((features[1] - features[0]).norm() / features[0].norm())


def _noise(model: "VisionLanguageModel", side: int) -> "Prepared":
    import numpy as np
    from PIL import Image

    from harness import images

    levels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return model.prepare([images.Picture(Image.fromarray(levels), ())])


def _path(device: str) -> Path:
    versions = [f"{name}-{environment.installed(name)}" for name in ("torch", "timm", "transformers")]
    names = [environment.machine_name(device), device.replace(":", "-"), *versions]
    return cache_folder() / "memory_formats" / f"{'-'.join(names)}.json"


def _read(device: str) -> dict[str, Outcome]:
    try:
        return {entry: Outcome(**facts) for entry, facts in json.loads(_path(device).read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
