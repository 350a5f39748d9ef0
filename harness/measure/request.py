"""A request: what was asked of one cell, as a short digest. It finds the cell's log where nobody here can name its key.

A cell's key holds the digests of weights and data, which the host that submits a job need not have. What it asked is
in the log's header instead, and a log whose request is the same one is the log of that cell.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path

import msgspec

from harness import files
from harness.errors import HarnessError
from harness.measure import sampling
from harness.measure.asked import Asked
from harness.models import weights
from harness.models.synthesis import model_card
from harness.runlog.log import find, find_shards, read
from harness.runlog.records import SCHEMA, Header
from harness.suites.card import load_suite_card

PLACES = ("out", "wait", "offline")
"""Wishes that say where and how to go about it, and nothing of the number."""


def of(asked: Asked) -> str:
    """Return the digest of what was asked."""
    told = {field.name: getattr(asked, field.name) for field in fields(asked) if field.name not in PLACES}
    told["settings"] = dict(asked.settings)
    if asked.shards == 1:  # the digest of a run in one piece is as it was
        del told["shards"], told["shard"]
    return hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=8).hexdigest()


def title(asked: Asked) -> str:
    """Return a readable name of what was asked."""
    special: list[str] = [asked.protocol] if asked.protocol != "ttft" else []
    special += [f"part {asked.part}"] if asked.part else []
    special += [f"process {asked.repetition + 1}"] if asked.repetition else []
    special += [f"{name}={value}" for name, value in sorted(asked.settings.items())]
    special += [f"shard {asked.shard}/{asked.shards}"] if asked.shard else []
    side = [f"{asked.res}px"] if asked.res else []
    model = Path(asked.model).name if "/" in asked.model else asked.model
    return " ".join([asked.suite, model, *side, asked.device, *([asked.dtype] if asked.dtype else []), *special])


class Logs:
    """The finished logs below some folders, by request; the first line of each is read once."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folders = sorted(set(folders))
        self._headers: dict[Path, Header | None] = {}
        self._found: dict[str, Path] = {}

    def finished(self, wanted: Mapping[str, Asked]) -> dict[str, Path]:
        """Return the finished log of each request that has one, whatever folder its machine's name has made.

        A shard has its own log, or that of the whole cell.
        """
        meant = {request: request for request in wanted}
        wholes = {request: of(replace(one, shard=0, shards=1)) for request, one in wanted.items() if one.shard}
        meant |= {whole: request for request, whole in wholes.items()}
        for folder in self._folders:
            for path in (*find(folder), *find_shards(folder)) if folder.is_dir() else ():
                header = self._header(path) if path.suffix != ".part" else None
                if header is None or header.request not in meant or path == self._found.get(header.request):
                    continue
                if _same(header, wanted[meant[header.request]]) and _finished(path):
                    self._found[header.request] = path
        found = {request: self._found.get(wholes.get(request, ""), self._found.get(request)) for request in wanted}
        return {request: path for request, path in found.items() if path}

    def _header(self, path: Path) -> Header | None:
        if path not in self._headers:
            self._headers[path] = first_line(path)
        return self._headers[path]


def first_line(path: Path) -> Header | None:
    """Return a log's header; None for what has none."""
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.readline(1 << 24), type=Header)
    except (OSError, ValueError, RecursionError, msgspec.MsgspecError):
        return None


def _finished(path: Path) -> bool:
    try:
        log = read(path)
    except HarnessError:
        return False
    return log.finished and not log.cut_short


def _same(header: Header, asked: Asked) -> bool:
    """Return whether the log is of the same cards, drawn alike; a card or weights that are not here tell nothing."""
    cell = header.cell
    if header.schema != SCHEMA or cell.get("sampling") != sampling.VERSION:
        return False
    for kind, digest in (("model", _model_digest(asked)), ("suite", _suite_digest(asked))):
        if digest and header.cards.get(kind) != digest:
            return False
    weights_digest = _weights_digest(asked)
    return not weights_digest or header.weights.get("digest") == weights_digest


def _weights_digest(asked: Asked) -> str:
    """Return the digest of a checkpoint's folder that is here too; empty for one that is not."""
    if asked.weights in (None, "random") or not files.is_folder(Path(str(asked.weights)).expanduser()):
        return ""
    try:
        return weights.resolve(model_card(asked.model, offline=True), asked.weights, True, asked.settings).digest
    except HarnessError:
        return ""


def _model_digest(asked: Asked) -> str:
    try:
        return "" if asked.endpoint else model_card(asked.model, offline=True).digest
    except HarnessError:
        return ""


def _suite_digest(asked: Asked) -> str:
    try:
        return load_suite_card(asked.suite).digest
    except HarnessError:
        return ""


def looked_for(asked: Asked, folder: Path) -> list[str]:
    """Say what a job will look for, and where: nothing of it need be on the host that submits."""
    where = {
        None: "weights: the job's Hub cache (HF_HOME there), then the Hub, else random weights, which its log says",
        "random": "weights: random, made in the job",
    }.get(asked.weights, f"weights: the folder {asked.weights} on the job's host")
    caches = "the job's caches (VLM_PARETO_CACHE, HF_HOME there)"
    data = f"data: the suite {asked.suite} from {caches}, then the Hub, else pages, which its log says"
    if asked.data:
        data = f"data: {asked.data} on the job's host"
    return [
        f"device: {asked.device}, opened in the job",
        where,
        data,
        f"run logs: {Path(asked.out).resolve()}/<the node's machine name>/, which every node must reach",
        f"the jobs' own messages: {folder.resolve()}",
    ]
