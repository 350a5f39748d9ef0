"""What the checks are made on: one device, one small model with fixed weights that ships with the package, one page."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property

from harness.clock import Clock
from harness.machine import backend
from harness.machine.backend import Backend
from harness.machine.device import Device
from harness.measure import cell
from harness.measure.passes import Bench
from harness.models import weights
from harness.models.card import ModelCard, load_model_card
from harness.models.protocol import Model, Options, Request
from harness.models.weights import Source
from harness.suites import pages
from harness.suites.examples import Example

SIDE = 512
SEED = 0
TOKENS = 8


@dataclass(frozen=True)
class Subject:
    """One device, opened, and what is needed to build models on it."""

    backend: Backend
    device: Device
    clock: Clock
    card: ModelCard
    source: Source
    dtype: str
    side: int = SIDE
    fault: str = ""
    engine: str = "torch"
    settings: dict[str, str | int | float | bool] = field(default_factory=dict)

    @property
    def bench(self) -> Bench:
        """What passes are run with."""
        return Bench(self.device, self.clock)

    @cached_property
    def examples(self) -> tuple[Example, ...]:
        """Two generated pages with a question each."""
        return tuple(_example(index) for index in range(2))

    @cached_property
    def request(self) -> Request:
        """The first page's question, to be answered at its natural length."""
        return Request(self.examples[0].images, self.examples[0].question, TOKENS)

    @contextmanager
    def model(self, dtype: str = "", device: str = "") -> Iterator[Model]:
        """Build the model on the device (or on the torch device named), and free it at the end."""
        engine = cell.engine(self.engine)
        options = Options(
            side=self.side,
            device=device or self.device.torch_name,
            dtype=dtype or self.dtype,
            settings={**self.card.settings, **engine.SETTINGS, **self.settings},
        )
        model: Model = engine.load(self.card, self.source, options)
        try:
            yield model
        finally:
            model.close()

    @property
    def precisions(self) -> tuple[str, ...]:
        """The device's own precision, and float32 beside it."""
        return tuple(dict.fromkeys((self.dtype, "float32")))


@cache
def _example(index: int) -> Example:
    page = pages.document(index, SEED, "suite")
    asked = page.asked[0]
    data = pages.png(page.image)
    return Example(page.key, index, (data,), asked.question, TOKENS, asked.answers, (page.key,), {})


def subject(device: str, dtype: str | None, side: int, fault: str) -> Subject:
    """Open the device and find the model. Raises `DeviceError` or `SettingError`."""
    asked = backend.of(device)
    clock = asked.trial_clock()
    opened = asked.open(clock)
    asked.plant(fault)
    card = load_model_card(asked.only_card or weights.SHIPPED_MODEL)
    source = weights.resolve(card, "random" if asked.only_card else None, offline=True)
    return Subject(asked, opened, clock, card, source, dtype or asked.dtype(), side, fault)
