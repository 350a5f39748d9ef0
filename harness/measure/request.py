"""A request: what was asked of one cell, as a short digest. It finds the cell's log where nobody here can name its key.

A cell's key holds the digests of weights and data, which the host that submits a job need not have. What it asked is
in the log's header instead, and a log whose request is the same one is the log of that cell.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TypeVar, cast

import msgspec

from harness import cards, files
from harness.errors import HarnessError
from harness.measure import sampling
from harness.measure.asked import Asked
from harness.models import weights
from harness.models.card import ModelCard
from harness.models.synthesis import model_card
from harness.runlog.log import find, find_shards, read
from harness.runlog.records import SCHEMA, Header
from harness.suites.card import load_suite_card
from harness.suites.examples import open_suite

Made = TypeVar("Made")

JOBS = "jobs"
"""The folder beside the logs with what belongs to jobs."""
PLACES = ("out", "wait", "offline", "no_stand_in")
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
        self._here = _Here()

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
                if self._here.same(header, wanted[meant[header.request]]) and _finished(path):
                    self._found[header.request] = path
        found = {request: self._found.get(wholes.get(request, ""), self._found.get(request)) for request in wanted}
        found = {request: path or self._noted(wanted[request]) for request, path in found.items()}
        return {request: path for request, path in found.items() if path}

    def _noted(self, asked: Asked) -> Path | None:
        """Return the log that a job has noted as the one of what was asked (see `note`)."""
        try:
            path = Path(_note(Path(asked.out), of(asked)).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        header = self._header(path)
        return path if header is not None and self._here.same(header, asked) and _finished(path) else None

    def _header(self, path: Path) -> Header | None:
        if path not in self._headers:
            self._headers[path] = first_line(path)
        return self._headers[path]


def _note(out: Path, request: str) -> Path:
    return out / JOBS / "measured" / request


def note(asked: Asked, log: Path) -> None:
    """Note which log is the one of what a job was asked, where its header says another request.

    The same cell may have been asked for in other words (`--dtype` of the device's own), or by an older harness. The
    job knows it by its key, and whoever submitted the job cannot.
    """
    header, request = first_line(log), of(asked)
    if header is not None and header.request != request and files.is_folder(Path(asked.out, JOBS)):
        files.write_atomically(_note(Path(asked.out), request), str(log.resolve()))


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


def _stands_in(header: Header, asked: Asked) -> bool:
    """Return whether a log is of random weights or of generated pages that nobody asked for."""
    random = header.weights.get("source") == "random" and asked.weights != "random" and asked.model != "fake"
    return random or header.data.get("name") != header.data.get("asked")


def _resized_by_default(header: Header, asked: Asked) -> bool:
    """Return whether a log of family `auto` was asked for `image_backend` when that did nothing there yet."""
    settings = header.cell.get("settings")
    obeyed = isinstance(settings, dict) and "image_backend" in settings
    wanted = asked.settings.get("image_backend", "default") != "default"
    return wanted and header.effective.get("route") == "auto" and not obeyed


class _Here:
    """What this host sees of what was asked. A checkpoint has many gigabytes, so each digest is made once."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], object] = {}

    def same(self, header: Header, asked: Asked) -> bool:
        """Return whether a log is of the same cards, weights and data, drawn alike; what is not here tells nothing."""
        if header.schema != SCHEMA or header.cell.get("sampling") != sampling.VERSION:
            return False
        if asked.no_stand_in and _stands_in(header, asked):
            return False
        if _resized_by_default(header, asked):
            return False
        for kind, digest in (("model", _model_digest(asked)), ("suite", _suite_digest(asked))):
            if digest and header.cards.get(kind) != digest:
                return False
        data = self._once(("data", asked.suite, asked.data, asked.limit), lambda: _data_digest(asked))
        return (not data or header.data.get("digest") == data) and self._same_weights(header, asked)

    def _same_weights(self, header: Header, asked: Asked) -> bool:
        try:
            card = None if asked.endpoint else model_card(asked.model, offline=True)
            folder = _folder(asked, card) if card else None
            if card is None or folder is None or not files.is_folder(folder):
                return True
            lent = header.weights.get("source") == "random"  # known by the tokenizer that the folder lends them
            digest = self._once(("weights", folder, lent), lambda: weights.digest(folder, lent))
            key = ("towers", folder, card.name, json.dumps(dict(asked.settings), sort_keys=True))
            towers = {} if lent else _told(header) | self._once(key, lambda: _inside(card, folder, asked))
        except (HarnessError, OSError):
            return True
        return header.weights.get("digest") == weights.with_towers(digest, towers)

    def _once(self, what: tuple[object, ...], make: Callable[[], Made]) -> Made:
        if what not in self._known:
            self._known[what] = make()
        return cast("Made", self._known[what])


def _folder(asked: Asked, card: ModelCard) -> Path | None:
    """Return the checkpoint's folder that was asked for, by whatever flag; None where caches decide."""
    if asked.weights not in (None, "random"):
        return Path(str(asked.weights)).expanduser()
    if card.folder:
        return Path(card.folder)
    return cards.ROOT / "models" / card.shipped if card.shipped else None


def _told(header: Header) -> dict[str, str]:
    """Return the digests of the Hub's towers, as the log's host had them: its cache decides, and not this host's."""
    told = {name.removeprefix("tower_"): text for name, text in header.weights.items() if name.startswith("tower_")}
    return {name: text.rpartition(" (")[2].removesuffix(")") for name, text in told.items() if "@" in text}


def _inside(card: ModelCard, folder: Path, asked: Asked) -> dict[str, str]:
    """Return the digests of the towers that lie in the checkpoint's folder."""
    found = weights.find_towers(card, folder, True, asked.settings)
    return {name: tower.digest for name, tower in found.items() if tower.kind == "local"}


def _data_digest(asked: Asked) -> str:
    """Return the digest of the examples of `--data`; empty where it is not on this host."""
    if asked.data is None or not _exists(Path(asked.data).expanduser()):
        return ""
    try:
        return open_suite(load_suite_card(asked.suite), asked.data, asked.limit, offline=True).digest
    except HarnessError as error:
        return f"none: {error}"  # a job would not measure it either: no log is of these data


def _exists(path: Path) -> bool:
    return files.is_file(path) or files.is_folder(path)


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
