"""CUDA graphs of encoders and of one decode step: the host launches one graph where it launched a thousand kernels.

Run on an H100 on 2026-11-26, other jobs beside it: a decode step of FastVLM-0.5B (random weights) took 5.6 to 7.4 ms
instead of 13.3. `nox -s gpu` runs it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harness.errors import SettingError
from harness.models import deployment
from harness.models.foreign import Graph, Network, Output

if TYPE_CHECKING:
    from harness.models.pipeline import VisionLanguageModel

WARM = 3
"""Passes before a graph is captured: libraries choose kernels and allocate in the first ones."""


@dataclass(slots=True)
class Replayed:
    """A function of one tensor, captured as a CUDA graph for each shape it meets, and replayed on a copy of the input.

    What it returns lies where the graph puts it, and is overwritten by the next replay: it is cloned.
    """

    function: Callable[[Tensor], Tensor]
    graphs: dict[tuple[object, ...], tuple[Graph, Tensor, Tensor]] = field(default_factory=dict)

    def __call__(self, given: Tensor) -> Tensor:
        key = (tuple(given.shape), given.dtype, given.stride())
        if key not in self.graphs:
            self.graphs[key] = self._capture(given)
        graph, held, result = self.graphs[key]
        held.copy_(given)
        graph.replay()
        return result.clone()

    def _capture(self, given: Tensor) -> tuple[Graph, Tensor, Tensor]:
        held = given.clone(memory_format=torch.preserve_format)
        _warmed(lambda: self.function(held))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side_stream(torch.cuda.current_device())):
            result = self.function(held)
        return graph, held, result


@cache
def side_stream(device: int) -> torch.cuda.Stream:
    """Return the one stream for warming up and capturing: cuBLAS keeps 32 MiB on a Hopper for each that it meets."""
    return torch.cuda.Stream(device)


def _warmed(run: Callable[[], object]) -> None:
    """Run some times on another stream, as capturing asks for."""
    stream = side_stream(torch.cuda.current_device())
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM):
            run()
    torch.cuda.current_stream().wait_stream(stream)


class GraphedSteps:
    """One decode step on a static cache as a CUDA graph, for each length of cache; the caches are kept and emptied."""

    def __init__(self, llm: nn.Module) -> None:
        self.llm = llm
        self.caches: dict[int, Output] = {}
        self.graphs: dict[int, tuple[Graph, Tensor, Output]] = {}

    def cache(self, length: int) -> Output:
        """Return the cache of this length, empty.

        Keys and values stay where they were: what lies beyond the tokens so far is masked, and zeroing all of it would
        be part of TTFT. An answer that was not finite leaves none behind (`forget`): zero times infinity is not zero.
        """
        if length not in self.caches:
            self.caches[length] = deployment.static_cache(self.llm, length)
        for layer in self.caches[length].layers:
            layer.cumulative_length.zero_()
        return self.caches[length]

    def forget(self) -> None:
        """Let go of all caches and graphs."""
        self.caches, self.graphs = {}, {}

    def step(self, token: Tensor, cache: Output) -> Output:
        """Run one step on `cache`, which holds the prompt: the first time captured, then replayed."""
        length = cache.get_max_length()
        if length not in self.graphs:
            self.graphs[length] = self._capture(token, cache)
        graph, held, output = self.graphs[length]
        held.copy_(token.view(1, 1))
        graph.replay()
        return output

    def _capture(self, token: Tensor, cache: Output) -> tuple[Graph, Tensor, Output]:
        held = token.view(1, 1).clone()

        def run() -> Output:
            return self.llm(input_ids=held, cache=cache, use_cache=True, logits_to_keep=1)

        lengths = [layer.cumulative_length.clone() for layer in cache.layers]

        def run_in_place() -> None:
            run()
            for layer, before in zip(cache.layers, lengths, strict=True):  # a step that is no answer's leaves no trace
                layer.cumulative_length.copy_(before)

        _warmed(run_in_place)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side_stream(torch.cuda.current_device())):  # captured, not run
            output = run()
        return graph, held, output


def graph_parts(model: "VisionLanguageModel") -> str:
    """Replay timm's encoders and each decode step from CUDA graphs; return what is replayed, and what is not."""
    from harness.models import compiling

    if "llm" in model.parts and slides(model.parts["llm"]):
        raise SettingError(f"graphs=true: {model.card.name}'s attention slides: its steps differ; next: leave it out")
    encoders = [name for name in model.encoder_names if name in model.parts]
    names = [name for name in encoders if hasattr(model.parts[name], compiling.METHOD)]
    if not names and "llm" not in model.parts:
        raise SettingError(f"graphs=true: no encoder of {model.card.name} is a network of timm; next: compile=true")
    replayed: dict[str, Replayed] = {}
    for name in names:
        part: Network = model.parts[name]
        replayed[name] = part.forward_features = Replayed(part.forward_features)
    with compiling.refused(model, "graphs=true", "CUDA graphs failed", "leave it out"):
        deployment.warm(model)
    unused = next((name for name, one in replayed.items() if not one.graphs), None)
    if unused:
        raise SettingError(f"graphs=true: {unused} of {model.card.name} is asked in another way; next: compile=true")
    if "llm" in model.parts:
        model.steps = GraphedSteps(model.parts["llm"])
        names = [*names, "decode"]
    eager = [name for name in encoders if name not in names]
    return ", ".join(names) + (f"; not {', '.join(eager)}: no network of timm" if eager else "")


def slides(llm: Network) -> bool:
    """Return whether a language model looks at a window that slides: its cache then counts on the host, unreplayed."""
    return any(layer.is_sliding for layer in deployment.static_cache(llm, deployment.BLOCK).layers)
