"""A server that speaks OpenAI's chat completions: the model is whatever it serves, timed from the client's side.

`endpoint.py` says where it is, `body.py` what is sent, `salt.py` how each picture gets other bytes, `client.py` keeps
the connection, `stream.py` reads the answer, `metrics.py` the server's own clock, `probes.py` asks what the server does
with requests before anything is measured, and `model.py` puts all of it behind the seam.
"""

import hashlib
import re
from pathlib import Path

from harness.errors import SettingError
from harness.models.card import ModelCard, Resolution
from harness.models.engines.openai import endpoint
from harness.models.protocol import Model, Options
from harness.models.weights import Source, digest

SETTINGS: dict[str, str | int | float | bool] = {"timeout_s": 600}
"""`timeout_s`: how long to wait for the next part of an answer."""

FIRST_ANSWER_S = 20.0

ELSEWHERE = "served"
"""The device of a served model; on this machine with the port behind it, "served:8000", where the gate watches."""


def place(device: str) -> str:
    """Return the device as it is: the endpoint has said which one (`device_of`)."""
    if device.partition(":")[0] != ELSEWHERE:
        raise SettingError(f"--device {device}: a server has devices of its own; next: leave --device out")
    return device


def device_of(url: str) -> str:
    """Return the device's name for a server at `url`."""
    parsed = endpoint.parse(url)
    return f"{ELSEWHERE}:{parsed.port}" if parsed.here else ELSEWHERE


def url(text: str) -> str:
    """Return the URL in one spelling, without anything secret."""
    return endpoint.parse(text).url


def only_model(text: str) -> str:
    """Return the one model that the server names; where there are more or none, one has to be named."""
    from harness.models.engines.openai import client, probes

    asked = client.Client(endpoint.parse(text), endpoint.key(), FIRST_ANSWER_S)
    try:
        names = probes.models(asked)
    finally:
        asked.close()
    if len(names) != 1:
        raise SettingError(
            f"--endpoint {url(text)}: next: --model NAME; the server lists: {', '.join(names) or 'none'}"
        )
    return names[0]


def card(name: str) -> ModelCard:
    """Return a card for the served model `name`: nothing is known of it but its name."""
    short = re.sub(r"[^A-Za-z0-9.+-]+", "-", name.rstrip("/").rpartition("/")[2]).strip("-")
    if not short:
        raise SettingError(f"--model {name!r}: no name of a served model; next: one of those at ENDPOINT/models")
    return ModelCard(
        name=short,
        digest=hashlib.blake2b(name.encode(), digest_size=8).hexdigest(),
        title=name,
        adapter="served",
        license="the server's own",
        resolution=Resolution(rule="any", default=0, minimum=0, maximum=16384),
    )


def source(name: str, url: str, asked: str | None) -> Source:
    """Return where the weights are, as far as is known: `--weights`, or a folder's name served from this machine."""
    if asked == "random":
        raise SettingError("--weights random: a server has weights of its own; next: leave --weights out")
    folder = Path(asked if asked is not None else name).expanduser()
    if folder.is_dir() and (asked is not None or endpoint.parse(url).here):
        return Source("served", folder, digest=digest(folder))
    if asked is not None:
        raise SettingError(f"--weights {asked}: no such folder; next: the checkpoint that the server serves")
    return Source("served")


def load(card: ModelCard, source: Source, options: Options) -> Model:
    """Return the served model; it is not asked anything yet (`examine`)."""
    from harness.models.engines.openai.model import ServedModel

    return ServedModel(card, source, options)
