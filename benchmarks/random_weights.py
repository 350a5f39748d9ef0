"""How long random weights of a card take, and how much memory beyond the model's own bytes.

    python benchmarks/random_weights.py fastvlm-7b [--dtype bfloat16] [--device cpu] [--json]

Seconds are from the card to a model that can answer, without the imports. Memory is the highest resident set while it
was made, less the resident set before, over the bytes of its parameters and buffers (Linux: /proc/self/status).
"""

import argparse
import json
import sys
import time
from pathlib import Path


def resident_bytes(field: str) -> int:
    """Return VmRSS or VmHWM (its peak) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def main() -> None:
    """Build one card's model and say what it cost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("card")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()

    import torch

    from harness import plugins
    from harness.models.card import load_model_card
    from harness.models.protocol import Options
    from harness.models.weights import Source

    card = load_model_card(asked.card)
    adapter = plugins.load("adapters", card.adapter)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far (imports) is forgotten
    before = resident_bytes("VmRSS")
    start_ns, start_cpu_ns = time.perf_counter_ns(), time.process_time_ns()
    model = adapter.load(card, Source("random"), Options(card.resolution.default, asked.device, asked.dtype))
    seconds, cpu_seconds = (time.perf_counter_ns() - start_ns) / 1e9, (time.process_time_ns() - start_cpu_ns) / 1e9
    extra = resident_bytes("VmHWM") - before
    buffers = sum(b.numel() * b.element_size() for b in model.parts.buffers())
    size = buffers + sum(p.numel() * p.element_size() for p in model.parts.parameters())
    told = {
        "card": card.name,
        "dtype": asked.dtype,
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu_seconds, 3),
        "model_bytes": size,
        "buffer_bytes": buffers,
        "peak_bytes": extra,
        "extra_over_model_bytes": round(extra / size - 1, 4),
    }
    sys.stdout.write(json.dumps(told) + "\n" if asked.json else "".join(f"{k:24}{v}\n" for k, v in told.items()))


if __name__ == "__main__":
    main()
