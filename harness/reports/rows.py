"""One run log → tidy rows: a row per sample (attempt), units in the column names, nothing computed away."""

from typing import Any

from harness.runlog.log import Log
from harness.runlog.records import Pass, Sample

CELL = (
    "model", "model_digest", "weights", "weights_digest", "suite", "asked_suite", "data", "data_digest", "resolution",
    "device", "engine", "dtype", "protocol", "seed", "settings", "limit", "isolate", "part", "repetition",
    "decode_tokens", "threads",
)  # fmt: skip
"""What a row says of its cell (`resolution` in pixels of a side, as requested)."""


def of_samples(log: Log, name: str) -> list[dict[str, Any]]:
    """Return a row for every sample of `log`, which is called `name`, in the log's order."""
    facts = of_log(log, name)
    kept = {key: facts[key] for key in ("log", "machine", "trained", "emulated", *CELL)}
    return [{**kept, **_of_sample(sample)} for sample in log.samples]


def of_log(log: Log, name: str) -> dict[str, Any]:
    """Return what is true of the whole log: cell, machine, weights, data, whether it is finished or torn."""
    header = log.header
    cell = {key: header.cell.get(key) for key in CELL}
    settings = header.cell.get("settings") or {}
    cell["settings"] = " ".join(f"{k}={v}" for k, v in sorted(settings.items())) if isinstance(settings, dict) else ""
    cell["isolate"] = bool(cell["isolate"])
    cell["repetition"] = cell["repetition"] or 0
    environment, device = header.environment, header.device
    machine = environment.get("machine") or log.path.parent.name or "unknown"
    return {
        "log": name,
        "key": header.key,
        "machine": machine,
        "started_at": header.started_at,
        "command": header.command,
        "finished": log.finished,
        "torn": not log.finished or log.torn_bytes > 0,
        "resumed": len(log.resumed),
        "stopped": log.footer.stopped if log.footer else None,
        "failures": len(log.lasting),
        "trained": header.weights.get("source", header.weights.get("kind", cell["weights"])) != "random",
        "emulated": emulation(log),
        "weights_notice": header.weights.get("notice", ""),
        "data_notice": header.data.get("notice", ""),
        **cell,
        **{f"harness_{key}": value for key, value in header.harness.items()},
        **{f"machine_{key}": value for key, value in environment.items() if key != "machine"},
        **{f"device_{key}": value for key, value in device.items()},
    }


def emulation(log: Log) -> str:
    """Return why the times are not a real machine's ("fake device", "predicted" ...), or nothing."""
    header = log.header
    if str(header.cell.get("device", "")).partition(":")[0] == "fake":
        return "fake device"
    for source in (header.device, header.effective, header.requested):
        for word in ("predicted", "emulated"):
            if str(source.get(word, "")).lower() not in ("", "false", "none", "no"):
                return word
    if any(sample.clock == "scripted" for sample in log.samples):
        return "scripted clock"
    return ""


def _of_sample(sample: Sample) -> dict[str, Any]:
    row: dict[str, Any] = {
        "example": sample.example,
        "index": sample.index,
        "attempt": sample.attempt,
        "phase": sample.phase,
        "at": sample.at,
        "clock": sample.clock,
        "valid": sample.valid,
        "reasons": "; ".join(sample.reasons),
        "original_width_px": sample.original_px[0] if sample.original_px else None,
        "original_height_px": sample.original_px[1] if sample.original_px else None,
        "processed_width_px": sample.processed_px[0] if sample.processed_px else None,
        "processed_height_px": sample.processed_px[1] if sample.processed_px else None,
        "content_px": sample.content_px,
        "tiles": sample.tiles,
        "visual_tokens": sample.visual_tokens,
        "text_tokens": sample.text_tokens,
        "conversions": "; ".join(sample.conversions),
        "note": sample.note,
        "answer": sample.answer,
        "image_ids": " ".join(sample.image_ids),
        "has_stages": sample.stages is not None,
    }
    if sample.stages:
        row |= _of_stages(sample.stages)
    if sample.whole:
        row |= {
            "ttft_ns": sample.whole.ttft_ns,
            "ttft_cpu_ns": sample.whole.cpu_ns,
            "total_ns": sample.whole.total_ns,
            "output_tokens": sample.whole.output_tokens,
        }
    for key, value in sample.memory.items():
        row[key if key.endswith("_bytes") else f"{key}_bytes"] = value
    return row


def _of_stages(stages: Pass) -> dict[str, Any]:
    row: dict[str, Any] = {f"{stage}_ns": value for stage, value in stages.stage_ns.items()}
    row |= {f"{stage}_device_ns": value for stage, value in stages.device_ns.items()}
    row |= {f"{stage}_cpu_ns": value for stage, value in stages.stage_cpu_ns.items() if stage != "first token"}
    row |= {f"{stage}_peak_bytes": value for stage, value in stages.stage_peak_bytes.items()}
    row |= {f"{stage}_energy_mj": value for stage, value in stages.stage_energy_mj.items()}
    row["stages_ns"] = sum(v for stage, v in stages.stage_ns.items() if "." not in stage and stage != "decode")
    if len(stages.piece_ns) > 1:
        row["tpot_ns"] = (stages.piece_ns[-1] - stages.piece_ns[0]) / (len(stages.piece_ns) - 1)
    return row
