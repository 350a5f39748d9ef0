"""Objects of libraries that have no types, or too narrow ones: here `Any` is meant.

Each name says what the object is; what may be asked of it, only its library knows.
"""

from typing import Any, TypeAlias

Network: TypeAlias = Any
"""A network of transformers, timm or MLX: what it has beyond `nn.Module` differs by its class."""
Config: TypeAlias = Any
"""transformers' configuration of a model: its fields differ by model type."""
Processor: TypeAlias = Any
"""A processor, an image processor or a tokenizer of transformers: its settings differ by model type."""
Output: TypeAlias = Any
"""What a network returned: logits, features, a cache."""
Graph: TypeAlias = Any
"""A captured CUDA graph."""
Array: TypeAlias = Any
"""A tensor of torch or an array of MLX, by the engine."""
