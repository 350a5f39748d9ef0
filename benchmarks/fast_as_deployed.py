"""Ours against transformers' own `generate(1)`: one interleaved run, the same random weights, the same page.

    python benchmarks/fast_as_deployed.py [--model fastvlm-0.5b] [--res 1024] [--dtype bfloat16] [--pairs 20]

Three arms: `transformers` (its class and processor, `generate(max_new_tokens=1)`), `ours` and, of a convolutional
encoder, `channels_last`, each from a PNG file's bytes to the first token on the host. `--set` adds arms: `compile`
(channels-last and compiled), `graphs` (CUDA graphs of encoder and decode, static cache), `torchvision` (its resize:
other pixels, so its logits may differ), `all` (compiled, and torchvision's resize). Every round runs all, in changing
order; what slowed a round cancels in its ratio. Before anything is timed, the arms' first logits are compared. Needs a
quiet machine.

Each round also times one large matrix product. `least_possible` is what all floating-point operations of an answer
would take at its speed, over transformers: no arm that does these operations in this precision can be much below it.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import permutations
from typing import Any

import torch

from harness import stats
from harness.clock import Monotonic
from harness.machine import backend, environment
from harness.machine.device import Device
from harness.models import deployment
from harness.models.card import ModelCard, load_model_card
from harness.models.engines import torch as engine
from harness.models.protocol import Options, Piece, Request, Seen
from harness.models.weights import Source
from harness.suites import examples
from harness.suites.card import load_suite_card

CLOSE = {"float32": 1e-3}
"""The largest difference of first logits, over the largest logit; below the error of the precision itself."""
CLOSE_OF_HALVES = 5e-2
ARMS: dict[str, dict[str, str | bool]] = {
    "compile": {"compile": True},
    "graphs": {"graphs": True},
    "torchvision": {"image_backend": "torchvision"},
    "all": {"compile": True, "image_backend": "torchvision"},
}
PRODUCT = "matrix product"
WARM = 2
BEGAN_S = time.perf_counter()


def main() -> None:
    """Build the arms, compare their logits, time them in rounds and print the ratios."""
    asked = arguments()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    device = backend.of(asked.device).open(Monotonic())
    card = load_model_card(asked.model)
    request = page(asked.question)
    arms, differences, flops = build(card, asked, device.torch_name, request)
    side = 2048 if device.torch_name == "cpu" else 8192
    left, right = (torch.randn(side, side).to(device.torch_name, getattr(torch, asked.dtype)) for _ in range(2))
    arms[PRODUCT] = partial(torch.matmul, left, right)
    for _ in range(WARM):
        for run in arms.values():
            run()
    say("warm")
    times = rounds(arms, asked.pairs, device, asked.seconds)
    floor = [ns * flops / (2 * side**3) for ns in times.pop(PRODUCT)]
    told = {
        "machine": environment.machine_name(asked.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": environment.installed("transformers"),
        **{name: getattr(asked, name) for name in ("model", "res", "dtype", "device", "pairs")},
        "median_ms": {name: round(stats.spread(ns).median / 1e6, 1) for name, ns in times.items()},  # type: ignore[operator]
        "first_logits_differ_by": differences,
        "ratio_to_transformers": {
            name: ratio(times[name], times["transformers"]) for name in arms if name in differences
        },
        "least_possible": f"{ratio(floor, times['transformers'])}: {flops / 1e9:,.0f} GFLOP as one matrix product runs",
    }
    sys.stdout.write(json.dumps(told) + "\n" if asked.json else "".join(f"{k:24}{v}\n" for k, v in told.items()))


def arguments() -> argparse.Namespace:
    """Return what was asked for on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="fastvlm-0.5b")
    parser.add_argument("--res", type=int, default=1024)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--pairs", type=int, default=20, help="rounds; below 6 there is no interval")
    parser.add_argument("--set", dest="settings", action="append", default=[], choices=list(ARMS), help="a further arm")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no round after so many, building included")
    parser.add_argument("--question", default="What is the date?", help="the question of every request")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def page(question: str) -> Request:
    """Return one generated page and a question of it, to be answered with one token."""
    suite = examples.open_suite(load_suite_card("pages"), None, 1, True)
    return Request(suite.examples[0].images, question, max_new_tokens=1, ignore_eos=True)


def build(
    card: ModelCard, asked: argparse.Namespace, device: str, request: Request
) -> tuple[dict[str, Callable[[], Any]], dict[str, float], int]:
    """Return what each arm runs, how far our first logits lie from those of transformers, and an answer's FLOPs.

    Exits where the logits lie too far apart.
    """

    def model(**settings: str | bool) -> Any:
        options = Options(asked.res, device, asked.dtype, settings={**card.settings, **settings})
        return engine.load(card, Source("random"), options)

    ours = model()
    say("built ours")
    theirs = model(route="auto")
    say("built transformers'")
    copy_weights(ours, theirs.model)
    mine = {"ours": ours} | ({"channels_last": in_channels_last(ours)} if ours.convolutional else {})
    for name in asked.settings:
        mine[name] = in_channels_last(ours) if "compile" in ARMS[name] else in_its_format(ours)
        deployment.deploy(mine[name], ARMS[name])
    before, after = ours.prompt(
        request.question
    )  # its processor tokenizes the question, in its own time, and has no template

    def generate(**more: bool) -> Any:
        inputs, seen = theirs.prepare(request)
        ids = torch.tensor([before + [theirs.image_token_id] * seen.visual_tokens + after], device=device)
        inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.inference_mode():
            told = theirs.model.generate(
                **inputs, max_new_tokens=1, min_new_tokens=1, do_sample=False, num_beams=1, eos_token_id=None, **more
            )
        if more:
            return told.logits[0][0].float()
        return theirs.tokenizer.decode([int(told[0, -1])])

    def first(one: Any) -> str:
        return next(event.text for event in one.answer(request) if isinstance(event, Piece))

    say("built")
    wanted = generate(return_dict_in_generate=True, output_logits=True)
    say("transformers' first logits")
    differences = {}
    for name, one in mine.items():
        seen: list[torch.Tensor] = []
        hook = one.parts["llm"].register_forward_hook(
            lambda module, given, output, seen=seen: seen.append(output.logits)
        )
        first(one)
        hook.remove()
        differences[name] = apart(seen[0][0, -1].float(), wanted)
        other_pixels = "image_backend" in ARMS.get(name, {})
        if not other_pixels and not differences[name] <= CLOSE.get(asked.dtype, CLOSE_OF_HALVES):
            sys.exit(f"{name}: the first logits differ from transformers' by {differences[name]:.1e} of the largest")
    seen_of_it = next(event for event in ours.answer(request) if isinstance(event, Seen))
    work = ours.work(seen_of_it)
    flops = sum(work[stage].flops for stage in ("encode", "project", "prefill") if stage in work)
    return {"transformers": generate, **{name: partial(first, one) for name, one in mine.items()}}, differences, flops


def in_channels_last(ours: Any) -> Any:
    """Return the same model with encoders of its own, channels-last; projector and language model are shared."""
    other = in_its_format(ours)
    other.lay_out(True)
    return other


def in_its_format(ours: Any) -> Any:
    """Return the same model with encoders of its own; projector and language model are shared."""
    other = copy.copy(ours)
    parts = {name: copy.deepcopy(part) if name in ours.encoder_names else part for name, part in ours.parts.items()}
    other.parts = torch.nn.ModuleDict(parts)
    return other


def apart(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the largest difference of the logits that both have, over the largest logit."""
    common = theirs[: len(mine)]
    return float((mine - common).abs().max() / common.abs().max())


@torch.inference_mode()
def copy_weights(ours: Any, theirs: torch.nn.Module) -> None:
    """Fill transformers' model with our weights, by the names under which a checkpoint would be read."""
    mine = ours.parts.state_dict(keep_vars=True)
    for name, tensor in theirs.state_dict(keep_vars=True).items():
        own = ours.rename(name)
        if own is None:  # what no answer uses, as a tower's last norm
            continue
        given = mine[own]
        into = tensor[: len(given)] if tensor.dim() else tensor
        into.copy_(given)  # theirs may have further rows: one for the image's token


def say(text: str) -> None:
    """Say on stderr how far we are."""
    sys.stderr.write(f"{time.perf_counter() - BEGAN_S:6.0f} s  {text}\n")


def rounds(arms: dict[str, Callable[[], Any]], pairs: int, device: Device, seconds: float) -> dict[str, list[int]]:
    """Time every arm once a round, in all orders one after another; nanoseconds. Stop early when time is up."""
    orders, times = list(permutations(arms)), {name: list[int]() for name in arms}
    step = len(orders) // pairs or 1  # neighbours in the list differ in their last arms alone
    for number in range(pairs):
        if time.perf_counter() - BEGAN_S > seconds:
            break
        for name in orders[number * step % len(orders)]:
            device.sync()
            start_ns = time.perf_counter_ns()
            arms[name]()
            device.sync()
            times[name].append(time.perf_counter_ns() - start_ns)
    return times


def ratio(top: Sequence[float], bottom: Sequence[float]) -> str:
    """Return the median of the pairs' ratios with its interval."""
    found = stats.ratio_of_medians(top, bottom, pairs=True)
    interval = (
        "no interval below 6 pairs" if found.low is None else f"95 % interval {found.low:.3f} to {found.high:.3f}"
    )
    return f"{found.value:.3f}x ({interval}; {found.n} pairs)"


if __name__ == "__main__":
    main()
