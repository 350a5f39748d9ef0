"""Whether the device computes the right thing: stage by stage against the CPU, twice the same, and finite.

Each stage is fed what the CPU gave the stage before, so an error is named where it arises. How far the device may lie
from the CPU in float32 is measured: four times as far as the CPU itself lies in the device's precision.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

from harness import images
from harness.errors import OutputError
from harness.measure.passes import failed_stage
from harness.measure.selftest.findings import Finding
from harness.measure.selftest.subject import Subject
from harness.models.foreign import Network
from harness.models.protocol import Model, Piece

TIMES_THE_CPUS = 4.0
"""Another order of sums gives another error of the same size; four times it is no longer the same size."""
LEAST = {"float32": 1e-4, "float16": 2e-3, "bfloat16": 1.6e-2}
"""The difference's norm over the norm that is always allowed: of float32, the bound of our parity tests; of the halves,
about two and four units of their last place."""
STAGES = ("preprocess", "encode", "project", "prefill", "decode")

Trace = Mapping[str, Any]
"""Each stage's output as a float32 tensor on the CPU, by the stage's name; `token`: the first token."""


def trace(model: Network, subject: Subject, given: Trace | None = None) -> Trace:
    """Run `model` stage by stage on `given`, the outputs of another model, or on its own."""
    import torch

    with torch.inference_mode():
        request = subject.request
        prepared = model.laid_out(model.prepare([images.decode(data) for data in request.images]))
        name = model.encoder_names[0]
        found: dict[str, Any] = {"preprocess": plain(prepared.pixels[name])}
        if given:
            pixels = given["preprocess"].to(prepared.pixels[name].device, prepared.pixels[name].dtype)
            prepared = model.laid_out(replace(prepared, pixels={name: pixels}))
        features = model.encode(name, prepared)
        found["encode"] = plain(features)
        if given:
            features = given["encode"].to(features.device, features.dtype)
        visual = model.project({name: features}, prepared)
        found["project"] = plain(visual)
        before, after = model.prompt(request.question)
        embeds = model.embed(visual, before, after)
        output = model.prefill(embeds, model.prefill_scope({name: features}, prepared, len(before)))
        found["prefill"] = plain(output.logits[0, -1])
        token = model.greedy(output)
        found["token"] = int(token)
        found["decode"] = plain(model.decode(token, output).logits[0, -1])
        model.verify()
    return found


def plain(value: Any) -> Any:
    """Return a tensor of torch, or an array of MLX, as float32 on the CPU."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().float().cpu()
    import mlx.core as mx
    import numpy as np

    return torch.from_numpy(np.array(value.astype(mx.float32)))


def apart(mine: Any, reference: Any) -> float:
    """Return the norm of the difference over the norm of the reference."""
    return float((mine - reference).norm() / reference.norm().clamp_min(1e-30))


def parity(subject: Subject) -> Iterator[Finding]:
    """Compare each stage with the CPU's in float32, in each precision."""
    if subject.backend.only_card:
        yield Finding("parity", "absent", f"{subject.card.name} computes nothing that could be compared")
        return
    with subject.model("float32", "cpu") as model:
        reference = trace(model, subject)
    for dtype in subject.precisions:
        with full(subject, dtype).model(dtype) as model:
            yield compare(trace(model, subject, reference), reference, expected(subject, dtype, reference), dtype)


def full(subject: Subject, dtype: str) -> Subject:
    """Return the subject with TF32 off where that is to be float32: torch has it on for convolutions by itself."""
    if dtype != "float32" or not subject.device.torch_name.startswith("cuda") or "tf32" in subject.settings:
        return subject
    return replace(subject, settings={**subject.settings, "tf32": False})


def expected(subject: Subject, dtype: str, reference: Trace) -> dict[str, float]:
    """Return how far each stage may lie from the reference: as far as the CPU does in this precision, four times."""
    least = LEAST[dtype]
    if dtype == "float32":
        return dict.fromkeys(STAGES, least)
    with subject.model(dtype, "cpu") as model:
        mine = trace(model, subject, reference)
    return {name: max(least, TIMES_THE_CPUS * apart(mine[name], reference[name])) for name in STAGES}


def compare(mine: Trace, reference: Trace, allowed: Mapping[str, float], dtype: str, what: str = "parity") -> Finding:
    """Return whether each stage lies within what is allowed."""
    same = mine["token"] == reference["token"]
    stages = STAGES if same else STAGES[:-1]  # after another token, decode is asked something else
    far = {name: apart(mine[name], reference[name]) for name in stages}
    figures: dict[str, float | str | bool] = {f"{name} differs by": value for name, value in far.items()}
    figures |= {f"{name} may differ by": allowed[name] for name in stages} | {"same first token": same, "dtype": dtype}
    wrong = [name for name in stages if not far[name] <= allowed[name]]  # NaN is not within anything
    told = ", ".join(f"{name} {far[name]:.1e}" for name in (wrong or stages) if far[name] or wrong) or "not a bit"
    if wrong:
        first = wrong[0]
        text = f"{dtype}: {told} away from the CPU in float32, allowed {allowed[first]:.1e} in {first}"
        step = (
            "TF32 or reduced-precision sums are on (see `effective` of a log), or this device computes something else"
            if dtype == "float32"
            else f"--dtype float32; if that passes, {dtype} is at fault on this device"
        )
        return Finding(what, "failed", text, step, figures)
    tokens = "" if same else "; the first token is another one (a near tie)"
    return Finding(
        what, "ok" if same else "doubt", f"{dtype}: {told} away from the CPU in float32{tokens}", "", figures
    )


def answer(model: Model, subject: Subject) -> str:
    """Return the answer's text; raises `OutputError` where it rests on what is not finite."""
    text = "".join(event.text for event in model.answer(subject.request) if isinstance(event, Piece))
    verify = getattr(model, "verify", None)
    if verify:
        verify()
    return text


def repeated(subject: Subject) -> Iterator[Finding]:
    """Answer the same request three times: the same text, and the same bits."""
    with subject.model() as model:
        texts = [answer(model, subject) for _ in range(3)]
        if len(set(texts)) > 1:
            text = f"the same request was answered {texts[0]!r} and {next(t for t in texts if t != texts[0])!r}"
            step = "CUBLAS_WORKSPACE_CONFIG=:4096:8; if that changes nothing, the device is at fault"
            yield Finding("determinism", "failed", text, step)
            return
        same = subject.backend.only_card or same_bits(model, subject)
    if same:
        yield Finding("determinism", "ok", "three answers, the same bits" if same is True else "three equal answers")
    else:
        text = "three equal answers, but logits differ in their last bits from run to run"
        yield Finding("determinism", "doubt", text, "scores of two runs may differ where two tokens are nearly tied")


def same_bits(model: Network, subject: Subject) -> bool:
    """Return whether two runs of all stages give the same bits."""
    import torch

    first, second = trace(model, subject), trace(model, subject)
    return all(torch.equal(first[name], second[name]) for name in STAGES)


def finite(subject: Subject) -> Iterator[Finding]:
    """See that the answer is finite, and that a planted NaN would be noticed."""
    with subject.model() as model:
        try:
            answer(model, subject)
        except OutputError as error:
            step = "--dtype float32; if that is finite, this precision overflows on this device"
            yield Finding("finite", "failed", f"in {failed_stage(error)}: {str(error).partition('; next: ')[0]}", step)
            return
        if subject.backend.only_card:
            yield Finding("finite", "ok", "the answer rests on finite numbers")
            return
        noticed = planted_nan_noticed(model, subject)
    if noticed:
        yield Finding("finite", "ok", "the answer rests on finite numbers; a planted NaN was noticed in prefill")
    else:
        text = "a weight was made NaN, and the answer passed for finite"
        yield Finding("finite", "failed", text, "this device's `isfinite` or `max` hides NaN: trust no answer of it")


def planted_nan_noticed(model: Network, subject: Subject) -> bool:
    """Make one weight of the language model NaN, and return whether the answer is refused for it."""
    import torch

    weight = cast("torch.nn.Parameter", next(iter(model.parts["llm"].parameters())))
    with torch.inference_mode():
        weight.fill_(float("nan"))
    try:
        answer(model, subject)
    except OutputError:
        return True
    return False
