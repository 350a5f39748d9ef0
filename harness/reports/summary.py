"""A row per measured cell: medians with 95 % intervals, residual, tokens, memory, accuracy, and every mark and doubt.

Fresh processes of one cell (repetitions) are one row; so are the parts of an isolated cell, whose medians are added up.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness import stats
from harness.errors import HarnessError
from harness.models.card import load_model_card
from harness.models.protocol import STAGES
from harness.reports import checks
from harness.reports.frame import Frame
from harness.reports.rows import CELL
from harness.stats import Estimate

CONFIGURATION = ("machine", *(name for name in CELL if name not in ("part", "repetition")))
"""What must be equal for logs to be one cell's."""

MARKS = {
    "random": ("†", "random weights of the exact architecture: times are real, answers mean nothing"),
    "embedded": ("‡", "data embedded in this package (generated pages), no public benchmark"),
    "isolated": ("§", "stages loaded and timed one after the other and added up, not one run"),
    "paper": ("¶", "the FastVLM paper's protocol: encoder and prefill of the visual tokens, timed apart and added up"),
    "emulated": ("◇", "predicted or emulated time, not a measurement of this machine"),
    "torn": ("⚠", "the run did not finish: fewer samples than planned"),
    "refused": ("!", "the validity gate refused every sample: shown, but not to be quoted"),
    "published": ("*", "as printed by others, not measured here"),
}
"""Symbol and meaning of every mark, in the order they are printed."""


def summary(frame: Frame, accuracies: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """Return a row per cell of `frame`, in a stable order.

    Times are columns `<stage>_ns`, `<stage>_low_ns`, `<stage>_high_ns` (median and its 95 % interval), likewise `ttft`.
    `accuracies` maps the row's `cell` to a `scoring.Accuracy` (`scoring.of`). Columns `marks` and `doubts` are tuples.
    """
    out = []
    for facts, logs in groups(frame):
        name = cell_name(facts)
        row = {**facts, "cell": name, "logs": tuple(logs["log"]), **_counts(logs)}
        mine = frame.samples[frame.samples["log"].isin(logs["log"])]
        row |= _times(facts, mine)
        row |= _shape(mine)
        row |= _memory(mine, logs)
        row |= _accuracy(facts, (accuracies or {}).get(name))
        row["marks"] = marks(row)
        row["mark"] = "".join(MARKS[mark][0] for mark in row["marks"])
        row["doubts"] = doubts(row, frame, logs)
        out.append(row)
    return pd.DataFrame(out)


def groups(frame: Frame) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """Return the cells of `frame`: what they are, and their rows of `frame.logs`."""
    found: dict[tuple[Any, ...], list[int]] = {}
    for position, log in enumerate(frame.logs.to_dict("records")):
        found.setdefault(tuple(_plain(log[name]) for name in CONFIGURATION), []).append(position)
    cells_ = [(dict(zip(CONFIGURATION, key, strict=True)), frame.logs.iloc[where]) for key, where in found.items()]
    return sorted(cells_, key=lambda pair: tuple((value is None, str(type(value)), value) for value in order(pair[0])))


def order(facts: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what rows are sorted by: machine, suite, model, resolution, then everything else."""
    first = ("machine", "suite", "model", "resolution", "device", "dtype", "protocol", "isolate")
    rest = (name for name in CONFIGURATION if name not in first)
    return tuple(facts[name] if name == "resolution" else str(facts[name] or "") for name in (*first, *rest))


def cell_name(facts: Mapping[str, Any]) -> str:
    """Return the row's unique, readable name."""
    parts = [f"{facts[name]}" for name in ("machine", "suite", "model")] + [f"{facts['resolution']}px"]
    parts += [
        str(facts[name])
        for name in ("device", "engine", "dtype", "protocol", "weights", "weights_digest")
        if facts[name]
    ]
    parts += ["isolated"] if facts["isolate"] else []
    parts += [str(facts["settings"])] if facts["settings"] else []
    named = ("limit", "seed", "threads", "decode_tokens", "data_digest", "model_digest")
    return " ".join([*parts, *(f"{name}={facts[name]}" for name in named if facts[name])])


def timed(samples: pd.DataFrame) -> pd.DataFrame:
    """Return the samples that count for times: timed, valid, and with a stage pass (later ones were only scored).

    Where the gate refused every one, those are returned all the same: `doubts` then says that no figure may be quoted.
    """
    measured = samples[(samples["phase"] == "timed") & samples["has_stages"].astype(bool)]
    good = measured[measured["valid"].astype(bool)]
    return good if len(good) else measured


def estimate(values: Sequence[float] | pd.Series) -> Estimate | None:
    """Return the median with its interval, or None where there is no value."""
    present = [float(value) for value in values if not pd.isna(value)]
    return stats.median_interval(present) if present else None


def _plain(value: Any) -> Any:
    if value is None or (not isinstance(value, str | bool) and pd.isna(value)):
        return None
    return (
        int(value)
        if isinstance(value, float) and value.is_integer()
        else value.item()
        if hasattr(value, "item")
        else value
    )


def _counts(logs: pd.DataFrame) -> dict[str, Any]:
    return {
        "trained": bool(logs["trained"].all()),
        "emulated": next((text for text in logs["emulated"] if text), ""),
        "torn": bool(logs["torn"].any()),
        "failures": int(logs["failures"].sum()),
        "processes": int(logs["repetition"].nunique()),
        "stopped": ", ".join(sorted({text for text in logs["stopped"] if isinstance(text, str)})),
        "weights_notice": next((text for text in logs["weights_notice"] if text), ""),
        "data_notice": next((text for text in logs["data_notice"] if text), ""),
        "clock": _said(logs, "device_clock"),
        "sync": _said(logs, "device_sync"),
    }


def _said(logs: pd.DataFrame, column: str) -> str:
    """Return what the first log says of its device, or nothing."""
    return str(logs[column].iloc[0]) if column in logs and isinstance(logs[column].iloc[0], str) else ""


def _times(facts: Mapping[str, Any], samples: pd.DataFrame) -> dict[str, Any]:
    good = timed(samples)
    additive = bool(facts["isolate"]) or facts["protocol"] == "paper"
    row: dict[str, Any] = {
        "additive": additive,
        "n": len(good) if not facts["isolate"] else min((len(part) for _, part in good.groupby("part")), default=0),
        "examples": int(samples.loc[samples["phase"] == "timed", "example"].nunique()) if len(samples) else 0,
        "valid": int((samples["valid"].astype(bool) & (samples["phase"] == "timed")).sum()),
        "refused": int((~samples["valid"].astype(bool) & (samples["phase"] == "timed")).sum()),
    }
    wanted = ("encode", "prefill") if facts["protocol"] == "paper" else STAGES
    series = {stage: stage_values(good, stage, bool(facts["isolate"])) for stage in STAGES}
    for stage, parts in series.items():
        row |= _columns(stage, _added(parts))
    names = [name.removesuffix("_ns") for name in good.columns if name.endswith("_ns") and "." in name]
    for name in sorted(name for name in names if not name.endswith(("_device", "_cpu"))):
        row |= _columns(name, estimate(good[f"{name}_ns"]))
    if additive:
        missing = _missing_parts(facts, good) + [
            f"stage {stage}" for stage in wanted if not series[stage] and stage != "project"
        ]
        row["missing"] = ", ".join(missing)
        row |= _columns("ttft", None if missing else _added([part for stage in wanted for part in series[stage]]))
    else:
        row["missing"] = ""
        row |= _columns("ttft", estimate(good["ttft_ns"]) if "ttft_ns" in good else None)
        if "ttft_ns" in good and "stages_ns" in good and len(good):
            both = good.dropna(subset=["ttft_ns", "stages_ns"])
            share = estimate(100 * (both["ttft_ns"] - both["stages_ns"]) / both["ttft_ns"])
            row["residual_percent"] = share.value if share else None
        if "ttft_ns" in good and len(good):
            for q in (90, 95, 99):
                at = stats.percentile(good["ttft_ns"].dropna().tolist(), q / 100)
                row |= {f"ttft_p{q}_ns": at.value, f"ttft_p{q}_bound_ns": at.bound, f"ttft_p{q}_reason": at.reason}
    cold = samples[samples["phase"] == "cold"]
    row |= _columns("cold_ttft", estimate(cold["ttft_ns"]) if "ttft_ns" in cold else None)
    row |= _columns("tpot", estimate(good["tpot_ns"]) if "tpot_ns" in good else None)
    row["between_process_percent"] = _between_processes(good, wanted if additive else ("ttft",), bool(facts["isolate"]))
    for stage in STAGES:
        energy = estimate(good[f"{stage}_energy_mj"]) if f"{stage}_energy_mj" in good else None
        row[f"{stage}_energy_mj"] = energy.value if energy else None
    return row


def stage_values(good: pd.DataFrame, stage: str, isolate: bool) -> list[list[float]]:
    """Return the samples of one stage, a list for each part that is to be added up."""
    column = f"{stage}_ns"
    if column not in good:
        return []
    if not isolate:
        values = good[column].dropna().tolist()
        return [values] if values else []
    parts = [part[column].dropna().tolist() for _, part in good.groupby("part", sort=True)]
    parts = [values for values in parts if values]
    if stage == "preprocess" and parts:  # every encoder's process prepares the images for all of them
        return [max(parts, key=lambda values: float(np.median(values)))]
    return parts


def _added(parts: list[list[float]]) -> Estimate | None:
    if not parts:
        return None
    return stats.median_interval(parts[0]) if len(parts) == 1 else stats.sum_of_medians(parts)


def _columns(name: str, value: Estimate | None) -> dict[str, Any]:
    return {
        f"{name}_ns": value.value if value else None,
        f"{name}_low_ns": value.low if value else None,
        f"{name}_high_ns": value.high if value else None,
    }


def _missing_parts(facts: Mapping[str, Any], good: pd.DataFrame) -> list[str]:
    if not facts["isolate"]:
        return []
    try:
        wanted = load_model_card(str(facts["model"])).part_names
    except HarnessError:
        wanted = ["llm"]
    if wanted and "llm" not in wanted:
        return []
    return [f"part {part}" for part in wanted if part not in set(good["part"])]


def _between_processes(good: pd.DataFrame, names: Sequence[str], isolate: bool) -> float | None:
    """Return how far apart the processes lie, in percent of their median; where a sum is shown, by their sums."""
    found: list[list[float]] = []
    for _, mine in good.groupby("repetition"):
        parts = [stage_values(mine, name, isolate) for name in names]
        found.append([float(np.median(values)) for part in parts for values in part])
    complete = max((len(medians) for medians in found), default=0)
    totals = [sum(medians) for medians in found if medians and len(medians) == complete]
    if len(totals) < 2:
        return None
    return float(100 * (max(totals) - min(totals)) / np.median(totals))


def _shape(samples: pd.DataFrame) -> dict[str, Any]:
    row: dict[str, Any] = {}
    seen = samples[samples["phase"] == "timed"]
    for name in ("visual_tokens", "text_tokens", "tiles", "content_px"):
        values = seen[name].dropna() if name in seen else pd.Series(dtype=float)
        values = values[values > 0]
        row[name] = float(values.median()) if len(values) else None
        if name == "visual_tokens":
            row["visual_tokens_low"] = float(values.min()) if len(values) else None
            row["visual_tokens_high"] = float(values.max()) if len(values) else None
    both = row["content_px"] and row["visual_tokens"]
    row["content_px_per_token"] = row["content_px"] / row["visual_tokens"] if both else None
    for kind in ("original", "processed"):
        pair = [seen[name].dropna() for name in (f"{kind}_width_px", f"{kind}_height_px") if name in seen]
        sides = [f"{float(values.median()):.0f}" for values in pair if len(values)]
        row[f"{kind}_px"] = "×".join(sides) if len(sides) == 2 else ""
    return row


def _memory(samples: pd.DataFrame, logs: pd.DataFrame) -> dict[str, Any]:
    told = logs["device_peak_memory"].iloc[0] if "device_peak_memory" in logs else None
    for columns, meaning in (
        (
            [name for name in samples.columns if name.endswith("_peak_bytes")],
            told if isinstance(told, str) else "device allocator",
        ),
        ([name for name in ("rss_bytes", "allocated_bytes") if name in samples.columns], "process"),
    ):
        values = samples[columns].to_numpy(dtype=float)
        if np.isfinite(values).any():
            return {"peak_memory_bytes": int(np.nanmax(values)), "peak_memory_of": meaning}
    return {"peak_memory_bytes": None, "peak_memory_of": ""}


def _accuracy(facts: Mapping[str, Any], accuracy: Any) -> dict[str, Any]:
    row = {
        "accuracy": None,
        "accuracy_low": None,
        "accuracy_high": None,
        "accuracy_n": 0,
        "metric": "",
        "not_scored": "",
    }
    if accuracy is None:
        return row | {"not_scored": "scores were not asked for"}
    if accuracy.estimate is None:
        return row | {"not_scored": accuracy.reason, "metric": accuracy.metric}
    value = accuracy.estimate
    return row | {
        "accuracy": value.value,
        "accuracy_low": value.low,
        "accuracy_high": value.high,
        "accuracy_n": value.n,
        "metric": accuracy.metric,
    }


def marks(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the marks that a row must carry wherever it is shown."""
    present = {
        "random": not row["trained"],
        "embedded": row["data"] == "embedded",
        "isolated": bool(row["isolate"]),
        "paper": row["protocol"] == "paper",
        "emulated": bool(row["emulated"]),
        "torn": bool(row["torn"]),
        "refused": bool(row["n"]) and not row["valid"],
    }
    return tuple(mark for mark in MARKS if present.get(mark))


def doubts(row: Mapping[str, Any], frame: Frame, logs: pd.DataFrame) -> tuple[str, ...]:
    """Return in words what makes the row doubtful."""
    found = []
    if row["missing"]:
        found.append(f"incomplete: {row['missing']} not measured")
    if row["failures"]:
        found.append(f"{row['failures']} examples failed")
    if row["n"] == 0:
        found.append("no timed sample")
    elif not row["valid"]:
        found.append(
            "the gate refused every sample: these figures are of refused ones, do not quote them; see `harness doctor`"
        )
    samples = frame.samples[frame.samples["log"].isin(logs["log"])]
    found += [f"{doubt.text}; {doubt.advice}" for doubt in checks.examine(**_evidence(row, samples))]
    return tuple(found)


def _evidence(row: Mapping[str, Any], samples: pd.DataFrame) -> dict[str, Any]:
    """Return what `checks.examine` wants to know of one cell."""
    evidence: dict[str, Any] = {"finished": not row["torn"]}
    all_timed = samples[samples["phase"] == "timed"]
    if not len(all_timed):
        return evidence
    evidence["valid"] = all_timed["valid"].astype(bool).tolist()
    evidence["reasons"] = [text.split("; ") if text else [] for text in all_timed["reasons"]]
    good = timed(samples)
    if not row["additive"] and {"ttft_ns", "stages_ns"} <= set(good.columns):
        both = good.dropna(subset=["ttft_ns", "stages_ns"])
        evidence |= {"ttft_ns": both["ttft_ns"].tolist(), "stage_sum_ns": both["stages_ns"].tolist()}
        evidence["cold_ns"] = row.get("cold_ttft_ns")
    if not evidence.get("ttft_ns"):
        evidence["others_ns"] = _headlines(row, good)
    stages = [stage for stage in STAGES if f"{stage}_device_ns" in good.columns and f"{stage}_ns" in good.columns]
    if stages:
        evidence["host_ns"] = good[[f"{stage}_ns" for stage in stages]].sum(axis=1).tolist()
        evidence["device_ns"] = good[[f"{stage}_device_ns" for stage in stages]].sum(axis=1).tolist()
    return evidence


def _headlines(row: Mapping[str, Any], good: pd.DataFrame) -> dict[str, list[float]]:
    """Return the series that are quoted where there is no end-to-end pass, each by its name in a doubt.

    They are the encoder's and the prefill's sum in the paper's protocol, of each part by itself where parts were
    loaded one by one, and all stages of a model without an LLM.
    """
    wanted = ("encode", "prefill") if row["protocol"] == "paper" else STAGES
    columns = [f"{stage}_ns" for stage in wanted if f"{stage}_ns" in good.columns]
    if not columns or not len(good):
        return {}
    sums = good[columns].sum(axis=1, min_count=1).dropna()
    if row["isolate"]:
        return {f"part {part}": sums[mine.index].tolist() for part, mine in good.groupby("part") if len(mine)}
    names = [column.removesuffix("_ns") for column in columns if good[column].notna().any()]
    return {" + ".join(names): sums.tolist()}


def digest(parts: Sequence[str]) -> str:
    """Return the digest of some texts, in their order."""
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()
