"""Train `fastvlm-nano`: `python -m training.train --out runs/nano`; the same command goes on where it was stopped.

What is trained, on what and for how long stands in `training/fastvlm-nano.toml`. Every batch is a function of the seed
and the step, so a run that was stopped and one that was not see the same pages.
"""

import functools
import itertools
import json
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import msgspec
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from harness.models.card import ModelCard, load_model_card
from training import lessons, vocabulary
from training.exercises import IGNORED, PLACES, Exercise, exercise, in_cells
from training.network import LOOKING, STRIDES, Form, Network, export

LOSSES = {
    "letters": ("stage2",),
    "stages": ("stage3", "stage4", "stage5", "words"),
    "answers": ("stage3", "stage4", "stage5", "words", "starts", "answer", "point", "place", "column"),
}
"""What a phase trains: the encoder's first two stages, to name letters; the other three and the projector, each to pack
what the one before it gives; or those and the language model, to answer."""


class Phase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Steps with the same kinds of lesson, which take turns."""

    steps: int
    kinds: list[str]
    trains: Form
    rates: tuple[float, float]
    """Learning rates: after the warm-up, and at the end"""
    over: int = 0
    """of so many steps, if the phase was cut short; 0: of all its steps."""
    warmup: int = 0
    """Steps in which the learning rate rises."""
    halves: bool = False
    """Whether each core takes half of a batch, in place of half of every multiplication."""


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`fastvlm-nano.toml`."""

    model: str
    seed: int
    vocabulary_pages: int
    threads: int
    settled_share: float
    """What of the learning rate encoder and projector have once the language model learns too."""
    weight_decay: float
    clip: float
    keep_every: int
    """Steps between the checkpoints that are kept as nightlies."""
    weights: dict[str, float]
    kinds: dict[str, lessons.Kind]
    phases: list[Phase]

    @property
    def steps(self) -> int:
        """All steps."""
        return sum(phase.steps for phase in self.phases)

    def at(self, step: int) -> tuple[Phase, int]:
        """Return the phase of a step, and how many of its steps come before."""
        for phase in self.phases:
            if step < phase.steps:
                return phase, step
            step -= phase.steps
        raise ValueError("the plan has ended")

    def kind(self, step: int) -> lessons.Kind:
        """Return the kind of lesson of a step."""
        phase, before = self.at(step)
        return self.kinds[phase.kinds[before % len(phase.kinds)]]

    def rate(self, step: int) -> float:
        """Return the learning rate: after the warm-up of a phase half a cosine goes down."""
        phase, before = self.at(step)
        highest, lowest = phase.rates
        share = max(0, before - phase.warmup) / max(1, (phase.over or phase.steps) - phase.warmup)
        falling = lowest + (highest - lowest) * (0.5 + 0.5 * math.cos(math.pi * share))
        return falling * min(1, (before + 1) / max(1, phase.warmup))


def losses(
    network: Network, batch: Exercise, wanted: Sequence[str], weights: Mapping[str, float]
) -> tuple[Tensor, dict[str, float]]:
    """Return the weighted sum of the losses, and what is worth writing down."""
    if not len(batch.owners):  # nothing on these pieces is asked for
        wanted = [name for name in wanted if name not in ("answer", "point", "place", "column")]
    given = {name: logits.float() for name, logits in network(batch, wanted).items()}
    total, told = torch.zeros(()), dict[str, float]()
    for name in wanted:
        if name == "answer":
            loss, more = answer_loss(given[name], batch)
        elif name == "point":
            loss, more = point_loss(given[name], batch)
        elif name == "place":
            rows, columns = given[name].split(PLACES, dim=-1)
            places = batch.places[batch.labels != IGNORED]
            loss = F.cross_entropy(rows, places[:, 0], ignore_index=IGNORED)
            loss, more = loss + F.cross_entropy(columns, places[:, 1], ignore_index=IGNORED), {}
        elif name == "column":
            loss, right = letter_loss(given[name], batch.columns[batch.labels != IGNORED])
            more = {"column_right": right}
        elif name in ("words", "starts"):
            target = batch.words if name == "words" else batch.starts
            loss = F.binary_cross_entropy_with_logits(given[name], target, reduction="sum")
            loss, more = loss / target.sum().clamp(min=32), {}  # 32: a batch that asks little weighs little
        else:
            stride = STRIDES[int(name.removeprefix("stage")) - 2]
            loss, right = letter_loss(given[name], batch.letters if name == "stage2" else in_cells(batch.spots, stride))
            more = {f"{name}_right": right}
        total, told = total + weights[name] * loss, {**told, name: loss.item(), **more}
    return total, told


def answer_loss(given: Tensor, batch: Exercise) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of spelling answers, and how many letters were right, given those before."""
    asked = batch.labels != IGNORED
    labels, fields = batch.labels[asked], batch.fields[asked]
    right = (given.argmax(-1) == labels).float()
    told = {"lines_right": right[~fields].mean().item(), "fields_right": right[fields].mean().item()}
    return F.cross_entropy(given, labels), told


def point_loss(given: Tensor, batch: Exercise) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of looking where the text goes on, and how often the last layer did.

    In the last two layers there is a head for each column of spots. Of the last layer only the head of the next
    letter's column looks, at its token, and brings what lies there; the others look at the prompt. In the layer before,
    only that of the letter just written, to find it again by what it is; before the first letter all look at its token.
    """
    asked = batch.labels != IGNORED
    first = batch.first[asked]
    points, columns = batch.points[asked], batch.places[asked][:, 1]
    earlier, earlier_columns = batch.points.roll(1)[asked], batch.places.roll(1, 0)[asked][:, 1]
    here, before = _classes(points), _classes(earlier)
    targets = (
        here.expand(-1, LOOKING[1]),
        torch.where(first[:, None], here, _one_head(before, earlier_columns)),
        _one_head(here, columns),
    )
    layers = given.split(list(LOOKING.values()), dim=1)
    loss = torch.zeros(())
    for scores, target in zip(layers, targets, strict=True):
        each = F.cross_entropy(scores.transpose(1, 2), target, ignore_index=IGNORED, reduction="none")
        for chosen in (target > 0, target == 0):
            loss = loss + (each * chosen).sum() / chosen.sum().clamp(min=1) / len(LOOKING)
    looked = layers[-1].softmax(-1)[..., 1:]
    found, column = looked.sum(1).argmax(-1) == points, looked.sum(2).argmax(-1) == columns
    printed, fields = points != IGNORED, batch.fields[asked]
    kinds = {"found": first & fields & printed, "followed": ~first & printed}
    told = {name: found[chosen].float().mean().item() for name, chosen in kinds.items()}
    return loss, {**told, "aligned": column[fields & printed & found].float().mean().item()}


def _classes(points: Tensor) -> Tensor:
    """Return (L, 1): the class of each token among those that a head may look at, where it is known."""
    return torch.where(points == IGNORED, IGNORED, points + 1)[:, None]


def _one_head(classes: Tensor, columns: Tensor) -> Tensor:
    """Return (L, columns): the class of the token for the head of the letter's column, 0 (the prompt) for others."""
    chosen = columns[:, None] == torch.arange(PLACES[1])
    return torch.where(chosen | (classes == IGNORED), classes, 0)


def letter_loss(given: Tensor, target: Tensor) -> tuple[Tensor, float]:
    """Return the loss of naming characters, and how many were right; places without one are easy, and count little."""
    importance = torch.ones(given.shape[-1])
    importance[0] = 0.2
    loss = F.cross_entropy(given.flatten(0, -2), target.flatten(), importance, ignore_index=IGNORED)
    printed = target > 0
    return loss, (given[printed].argmax(-1) == target[printed]).float().mean().item()


def learn(
    network: Network, batch: Sequence[lessons.Lesson], phase: Phase, plan: Plan, tokenizer: Tokenizer
) -> dict[str, float]:
    """Fill the parameters' gradients from one batch; return what is worth writing down.

    Many operations of a language model this small do not spread over two cores: a thread for each half of a batch takes
    four pages in the time of three. Gradients are added in a fixed order, so that it stays reproducible; and without
    autocast's cache, which threads share: whether two uses of a weight share one rounded copy, and add their gradients
    in half precision, would depend on which thread ends first.
    """

    def half(pieces: Sequence[lessons.Lesson]) -> tuple[Sequence[Tensor | None], dict[str, float]]:
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
            loss, told = losses(network, exercise(pieces, tokenizer), LOSSES[phase.trains], plan.weights)
        gradients = torch.autograd.grad(loss / len(parts), parameters, allow_unused=True)
        return gradients, {"loss": loss.item(), **told}

    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    count = plan.threads if phase.halves else 1
    size = -(-len(batch) // count)
    parts = [batch[start : start + size] for start in range(0, len(batch), size)]
    if len(parts) == 1:
        done = [half(batch)]
    else:
        torch.set_num_threads(1)
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            done = list(pool.map(half, parts))
        torch.set_num_threads(plan.threads)
    for number, parameter in enumerate(parameters):
        given = [gradient for gradients, _ in done if (gradient := gradients[number]) is not None]
        parameter.grad = functools.reduce(torch.add, given) if given else None
    told = [told for _, told in done]
    names = dict.fromkeys(name for one in told for name in one)
    return {name: statistics.fmean(one[name] for one in told if name in one) for name in names}


def _make(job: tuple[lessons.Kind, int, int]) -> list[lessons.Lesson]:
    return lessons.batch(*job)


def drawn(plan: Plan, first: int) -> Iterator[list[lessons.Lesson]]:
    """Yield the lessons of each step, drawn ahead by another process."""
    jobs = ((plan.kind(step), plan.seed, step) for step in range(first, plan.steps))
    with multiprocessing.get_context("spawn").Pool(1, initializer=os.nice, initargs=(5,)) as pool:
        waiting = [pool.apply_async(_make, (job,)) for job in itertools.islice(jobs, 6)]
        while waiting:
            ready = waiting.pop(0).get()
            waiting += [pool.apply_async(_make, (job,)) for job in itertools.islice(jobs, 1)]
            yield ready


def _tokenizer(plan: Plan, card: ModelCard, out: Path) -> Tokenizer:
    """Return the tokenizer of the run in `out`, made when it begins; refuse one that the card does not describe."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "tokenizer.json").is_file():
        vocabulary.save(vocabulary.build(plan.seed, plan.vocabulary_pages), out)
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert card.llm
    if tokenizer.get_vocab_size() != card.llm.vocab or tokenizer.token_to_id("<|im_end|>") not in card.llm.eos:
        end = [tokenizer.token_to_id(text) for text in ("<|im_end|>", "<|endoftext|>")]
        raise click.ClickException(
            f"{plan.model}: the tokenizer has {tokenizer.get_vocab_size()} ids and ends with {end}; "
            "next: say so in the card"
        )
    return tokenizer


@click.command()
@click.option("--plan", "path", type=click.Path(path_type=Path), default=Path(__file__).with_name("fastvlm-nano.toml"))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for log, state and checkpoints.")
@click.option("--stop-at", type=int, default=None, help="Stop after this step (to compare two runs' first steps).")
def main(path: Path, out: Path, stop_at: int | None) -> None:
    """Train, or go on training."""
    plan = msgspec.toml.decode(path.read_bytes(), type=Plan)
    torch.set_num_threads(plan.threads)
    card = load_model_card(plan.model)
    tokenizer = _tokenizer(plan, card, out)
    network = Network(card, plan.seed)
    step = 0
    optimisers = _optimisers(network, plan)
    if (out / "state.pt").is_file():
        state = torch.load(out / "state.pt", weights_only=True)
        network.settle(state["form"])
        optimisers = _optimisers(network, plan)
        step = _resume(state, network, optimisers)
    _cut(out / "log.jsonl", step)
    last = min(plan.steps, stop_at or plan.steps)
    with (out / "log.jsonl").open("a") as log:
        for batch in drawn(plan, step):
            start = time.perf_counter()
            phase, _ = plan.at(step)
            if phase.trains != network.form:
                network.settle(phase.trains)
                optimisers = _optimisers(network, plan)
            network.train()
            for optimiser in optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = plan.rate(step) * group.get("share", 1.0)
                optimiser.zero_grad(set_to_none=True)
            told = learn(network, batch, phase, plan, tokenizer)
            norm = nn.utils.clip_grad_norm_(network.parameters(), plan.clip)
            for optimiser in optimisers:
                optimiser.step()
            step += 1
            line = {"step": step, "side": batch[0].pixels.shape[0], **told, "norm": norm.item()}
            line["seconds"] = time.perf_counter() - start
            log.write(json.dumps({k: round(v, 6) for k, v in line.items() if not math.isnan(v)}) + "\n")
            if step % 20 == 0:
                log.flush()
            if step % plan.keep_every == 0 or step == plan.steps:
                checkpoint = out / f"step-{step:06d}"
                export(network, checkpoint)
                vocabulary.save(tokenizer, checkpoint)
            if step % 200 == 0 or step == last:
                _save(out, step, network, optimisers)
            if step == last:
                break


def _optimisers(network: Network, plan: Plan) -> list[torch.optim.Optimizer]:
    """Return Muon for the language model's matrices, and AdamW for all else: matrices decay, biases and scales do not.

    Muon (PyTorch 2.9 and later) gives every direction of a matrix the same step, scaled here to AdamW's. What pictures
    pass before the language model takes smaller steps once it learns with it.
    """
    turned, others = [], dict[tuple[bool, bool], list[nn.Parameter]]()
    for name, parameter in network.named_parameters():
        if ".llm.model.layers." in f".{name}" and parameter.ndim == 2:
            turned.append(parameter)
        elif parameter.requires_grad:
            settled = network.form == "answers" and name.startswith(network.before_llm)
            others.setdefault((settled, parameter.squeeze().ndim >= 2), []).append(parameter)
    kinds = [
        {
            "params": parameters,
            "share": plan.settled_share if settled else 1.0,
            "weight_decay": plan.weight_decay if is_matrix else 0.0,
        }
        for (settled, is_matrix), parameters in sorted(others.items())
    ]
    return [
        torch.optim.AdamW(kinds, lr=0.0, betas=(0.9, 0.98), fused=True),
        torch.optim.Muon(turned, lr=0.0, weight_decay=plan.weight_decay, adjust_lr_fn="match_rms_adamw"),
    ]


def _save(out: Path, step: int, network: Network, optimisers: Sequence[torch.optim.Optimizer]) -> None:
    state = {"step": step, "form": network.form, "network": network.state_dict()}
    torch.save({**state, "optimisers": [optimiser.state_dict() for optimiser in optimisers]}, out / "state.new")
    (out / "state.new").replace(out / "state.pt")


def _resume(state: Mapping[str, Any], network: Network, optimisers: Sequence[torch.optim.Optimizer]) -> int:
    """Take up a saved state; return the steps done."""
    network.load_state_dict(state["network"])
    for optimiser, kept in zip(optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(kept)
    return int(state["step"])


def _cut(log: Path, step: int) -> None:
    """Shorten the log to the steps that the state knows."""
    lines = log.read_text().splitlines()[:step] if log.is_file() else []
    log.write_text("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main()
