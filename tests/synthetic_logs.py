"""Run logs made up for the tests of the reporting half: known times, known answers, as the harness writes them."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from harness.runlog.records import Counted, Failure, Footer, Header, Pass, Sample

TIMES_MS = {"preprocess": 5.0, "encode": 100.0, "project": 1.0, "prefill": 50.0}


def write(
    path: Path,
    *,
    model: str = "fastvlm-0.5b",
    resolution: int = 1024,
    suite: str = "pages",
    times_ms: dict[str, float] | None = None,
    n: int = 12,
    noise: float = 0.02,
    seed: int = 0,
    weights: str = "local",
    data: str = "local",
    protocol: str = "ttft",
    part: str | None = None,
    device: str = "cpu",
    machine: str = "box",
    repetition: int = 0,
    residual_ms: float = 0.5,
    visual_tokens: int | None = None,
    answers: list[str] | None = None,
    finished: bool = True,
    failures: int = 0,
    refused: int = 0,
    lost: int = 0,
    answered_only: int = 0,
    schema: int = 1,
    doc: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    effective: dict[str, Any] | None = None,
    rests_on: dict[str, float] | None = None,
    started_at: str = "2026-11-23T12:00:00.000+00:00",
    commit: str = "abc",
    harness: dict[str, str] | None = None,
    environment: dict[str, str] | None = None,
    of_device: dict[str, str] | None = None,
    of_cell: dict[str, Any] | None = None,
    data_digest: str = "d0",
    failed: Sequence[str] = (),
    error: str = "OutputError",
    stopped: str = "examples",
    images: int | None = None,
    energy_mj: dict[str, float] | None = None,
    repository: str = "",
    **about: Any,
) -> Path:
    """Write one log with log-normal noise on every stage; the medians are `times_ms` up to that noise.

    The first `refused` samples were refused once and measured again, the first `lost` were refused for good; so many
    as `answered_only` more examples were answered for their score alone. `of_cell` changes the header's cell.
    Two examples share an image, or all of them share so many `images`. `failed` are examples that fail with `error`;
    `about` is as `of_cell`.
    """
    rng = random.Random(f"{seed}-{model}-{resolution}-{part}-{repetition}-{protocol}")
    times_ms = TIMES_MS if times_ms is None else times_ms
    tokens = visual_tokens if visual_tokens is not None else (resolution // 64) ** 2
    cell = {
        "model": model, "model_digest": "m0", "weights": weights, "weights_digest": "w0", "suite": suite,
        "asked_suite": suite, "suite_digest": "s0", "data": data, "data_digest": data_digest, "resolution": resolution,
        "device": device, "engine": "torch", "dtype": "float32", "protocol": protocol, "seed": 0,
        "settings": settings or {}, "limit": None, "isolate": part is not None, "part": part,
        "repetition": repetition, "decode_tokens": 4, "threads": None, **(of_cell or {}), **about,
    }  # fmt: skip
    lines: list[Any] = [
        Header(
            schema=schema,
            cell=cell,
            key=path.stem,
            command="harness run",
            started_at=started_at,
            harness={"version": "0.1.0", "commit": commit, **(harness or {})},
            environment={"machine": machine, "cpu": "Two-Core 3000", **(environment or {})},
            device={"name": device, **(of_device or {})},
            requested={},
            effective=effective or {},
            cards={"model": "m0", "suite": "s0"},
            weights={"source": weights, "digest": "w0", "notice": ""}
            | ({"repository": repository} if repository else {}),
            data={"origin": data, "name": suite, "digest": "d0", "examples": str(n), "notice": ""},
        )
    ]
    for index in range(-1, n):
        stage_ns = {name: int(value * 1e6 * rng.lognormvariate(0, noise)) for name, value in times_ms.items()}
        first_ns = sum(value for name, value in stage_ns.items() if "." not in name) + int(residual_ms * 1e6)
        answered = protocol == "ttft" and part is None
        phase = "cold" if index < 0 else "timed"
        for attempt in range(1, 2 + (0 <= index < refused)):
            valid = not (0 <= index < lost or (0 <= index < refused and attempt == 1))
            lines.append(
                Sample(
                    example=f"e{max(index, 0)}",
                    index=max(index, 0),
                    attempt=attempt,
                    phase=phase,
                    at="2026-11-23T12:00:01.000+00:00",
                    clock="perf_counter_ns",
                    stages=Pass(
                        stage_ns=stage_ns,
                        piece_ns=(first_ns, first_ns + 10_000_000),
                        output_tokens=2,
                        stage_energy_mj=energy_mj or {},
                    ),
                    whole=Pass(ttft_ns=first_ns, total_ns=first_ns * 2, output_tokens=3) if answered else None,
                    original_px=(800, 1000),
                    processed_px=(resolution, resolution),
                    content_px=resolution * resolution * 4 // 5,
                    tiles=1,
                    visual_tokens=tokens,
                    text_tokens=20,
                    answer=(answers[index % len(answers)] if answers else "yes") if answered else None,
                    references=("yes",),
                    doc=doc or {},
                    image_ids=(f"i{max(index, 0) % images if images else max(index, 0) // 2}",),
                    valid=valid,
                    reasons=() if valid else ("load",),
                    memory={"rss_bytes": 1_000_000_000},
                )
            )
    for index in range(n, n + answered_only):
        lines.append(
            Sample(
                example=f"e{index}",
                index=index,
                attempt=1,
                phase="timed",
                at="2026-11-23T12:00:02.000+00:00",
                clock="perf_counter_ns",
                answer=answers[index % len(answers)] if answers else "yes",
                answer_tokens=3,
                references=("yes",),
                doc=doc or {},
                image_ids=(f"i{index // 2}",),
                counts=False,
            )
        )
    for index in range(failures):
        lines.append(
            Failure(
                example=f"f{index}",
                index=n + index,
                stage="preprocess",
                error="ExampleError",
                message="zero bytes",
                traceback="",
                at="2026-11-23T12:00:02.000+00:00",
            )
        )
    for index, example in enumerate(failed):
        failure: dict[str, Any] = {
            "stage": "prefill",
            "message": "logits that are not finite",
            "traceback": "",
            "at": "2026-11-23",
        }
        lines.append(Failure(example=example, index=n + failures + index, error=error, **failure))
    lines.append(
        Counted(visual_tokens=tokens, text_tokens=20, tiles=1, flops={"encode": 10**9}, weight_bytes={"encode": 10**6})
    )
    if finished:
        ended = Footer(ended_at="2026-11-23T12:01:00.000+00:00", samples=n, failures=failures, stopped=stopped)
        lines.append(msgspec.structs.replace(ended, rests_on=rests_on or {}))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    return path
