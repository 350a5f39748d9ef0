"""Train `fastvlm-nano`: `python -m training.train --out runs/nano`; the same command goes on where it was stopped.

What is trained, on what and for how long stands in `training/fastvlm-nano.toml`. Every batch is a function of the seed
and the step, so a run that was stopped and one that was not see the same pages.
"""

import itertools
import json
import math
import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import click
import msgspec
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from harness import cards
from training import lessons, vocabulary
from training.exercises import IGNORED, Exercise, exercise
from training.network import Network, export

LOSSES = {
    "letters": ("stage2",),
    "stages": ("stage2", "stage3", "stage4", "stage5", "words"),
    "answers": ("stage5", "words", "answer"),
}
"""What a phase trains: the encoder's first two stages, to name letters; all five, each to pack what the one before it
gives; or language model and projector with the last three. From then on the encoder has its inference form, its norms
stay as they are, and so do its first two stages: they are most of a step, and can read."""


class Phase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Steps with the same kinds of lesson, which take turns."""

    steps: int
    kinds: list[str]
    trains: Literal["letters", "stages", "answers"]


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`fastvlm-nano.toml`."""

    model: str
    seed: int
    vocabulary_pages: int
    threads: int
    learning_rate: float
    weight_decay: float
    warmup_steps: int
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
        """Return the learning rate: half a cosine down to a fiftieth; each phase, with its new parts, warms up."""
        warm = min(1, (self.at(step)[1] + 1) / self.warmup_steps)
        share = max(0, step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * warm * (0.51 + 0.49 * math.cos(math.pi * share))


def losses(
    network: Network, batch: Exercise, wanted: Sequence[str], weights: Mapping[str, float]
) -> tuple[Tensor, dict[str, float]]:
    """Return the weighted sum of the losses, and what is worth writing down."""
    given = {name: logits.float() for name, logits in network(batch, wanted).items()}
    total, told = torch.zeros(()), dict[str, float]()
    for name in wanted:
        if name == "answer":
            loss, more = answer_loss(given[name], batch)
        elif name == "words":
            loss = F.binary_cross_entropy_with_logits(given[name], batch.words, reduction="sum")
            loss, more = loss / batch.words.sum().clamp(min=1), {}
        else:
            loss, more = letter_loss(name, given[name], batch.letters)
        total, told = total + weights[name] * loss, {**told, name: loss.item(), **more}
    return total, told


def answer_loss(given: Tensor, batch: Exercise) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of spelling answers, and how many letters were right, given those before."""
    asked = batch.labels != IGNORED
    labels, fields = batch.labels[asked], batch.fields[asked]
    right = (given.argmax(-1) == labels).float()
    told = {"letters_right": right.mean().item()}
    if fields.any():
        told["field_letters_right"] = right[fields].mean().item()
    return F.cross_entropy(given, labels), told


def letter_loss(name: str, given: Tensor, target: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of naming characters; slots without one are many and easy, and count for little."""
    importance = torch.ones(given.shape[-1])
    importance[0] = 0.2
    loss = F.cross_entropy(given.flatten(0, -2), target.flatten(), importance, ignore_index=IGNORED)
    printed = target > 0
    right = (given[printed].argmax(-1) == target[printed]).float().mean().item()
    return loss, {f"{name}_right": right}


def groups(network: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Return the optimiser's parameter groups: matrices are decayed; biases, norms and scales are not."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.squeeze().ndim >= 2], "weight_decay": decay},
        {"params": [p for p in parameters if p.squeeze().ndim < 2], "weight_decay": 0.0},
    ]


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


@click.command()
@click.option("--plan", "path", type=click.Path(path_type=Path), default=Path(__file__).with_name("fastvlm-nano.toml"))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for log, state and checkpoints.")
@click.option("--stop-at", type=int, default=None, help="Stop after this step (to compare two runs' first steps).")
def main(path: Path, out: Path, stop_at: int | None) -> None:
    """Train, or go on training."""
    plan = msgspec.toml.decode(path.read_bytes(), type=Plan)
    torch.set_num_threads(plan.threads)
    card = cards.model(plan.model)
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
    network = Network(card, plan.seed)
    optimiser = _optimiser(network, plan)
    step = 0
    if (out / "state.pt").is_file():
        state = torch.load(out / "state.pt", weights_only=True)
        if state["fused"]:
            network.fuse()
            optimiser = _optimiser(network, plan)
        step = _resume(state, network, optimiser)
    _cut(out / "log.jsonl", step)
    last = min(plan.steps, stop_at or plan.steps)
    with (out / "log.jsonl").open("a") as log:
        for batch in drawn(plan, step):
            start = time.perf_counter()
            phase, _ = plan.at(step)
            if phase.trains == "answers" and not network.fused:
                network.fuse()
                optimiser = _optimiser(network, plan)
            network.train()
            for group in optimiser.param_groups:
                group["lr"] = plan.rate(step)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss, told = losses(network, exercise(batch, tokenizer), LOSSES[phase.trains], plan.weights)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(network.parameters(), plan.clip)
            optimiser.step()
            step += 1
            line = {"step": step, "side": batch[0].pixels.shape[0], "loss": loss.item(), "norm": norm.item(), **told}
            line["seconds"] = time.perf_counter() - start
            log.write(json.dumps({k: round(v, 6) for k, v in line.items()}) + "\n")
            if step % 20 == 0:
                log.flush()
            if step % plan.keep_every == 0 or step == plan.steps:
                checkpoint = out / f"step-{step:06d}"
                export(network, checkpoint)
                vocabulary.save(tokenizer, checkpoint)
            if step % 200 == 0 or step == last:
                _save(out, step, network, optimiser)
            if step == last:
                break


def _optimiser(network: Network, plan: Plan) -> torch.optim.AdamW:
    kinds = groups(network, plan.weight_decay)
    return torch.optim.AdamW(kinds, lr=plan.learning_rate, betas=(0.9, 0.98), fused=True)


def _save(out: Path, step: int, network: Network, optimiser: torch.optim.Optimizer) -> None:
    state = {"step": step, "fused": network.fused, "network": network.state_dict()}
    torch.save({**state, "optimiser": optimiser.state_dict()}, out / "state.new")
    (out / "state.new").replace(out / "state.pt")


def _resume(state: Mapping[str, Any], network: Network, optimiser: torch.optim.Optimizer) -> int:
    """Take up a saved state; return the steps done."""
    network.load_state_dict(state["network"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])


def _cut(log: Path, step: int) -> None:
    """Shorten the log to the steps that the state knows."""
    lines = log.read_text().splitlines()[:step] if log.is_file() else []
    log.write_text("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main()
