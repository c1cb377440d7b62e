"""The tensors that are measured, and the files that hold them.

Files are written by the libraries whose format it is (safetensors and torch), never by
veturboio, so that nobody reads a layout that suits him alone.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Shapes = Iterator[tuple[str, tuple[int, ...]]]
ITEM_SIZES = {"bfloat16": 2, "float32": 4}
NOISE = 1 << 20  # elements of random noise that are repeated to fill the tensors


@dataclass(frozen=True)
class Content:
    """A set of tensors that can be made again at any time; ``quick`` is its tiny twin."""

    name: str
    dtype: str
    shapes: Callable[[], Shapes]


def decoder(layers: int, hidden: int, inner: int, kv: int, vocabulary: int) -> Shapes:
    """Names and shapes of a decoder with grouped-query attention and a gated MLP."""
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.self_attn.q_proj.weight", (hidden, hidden)
        yield f"{prefix}.self_attn.k_proj.weight", (kv, hidden)
        yield f"{prefix}.self_attn.v_proj.weight", (kv, hidden)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, hidden)
        yield f"{prefix}.mlp.gate_proj.weight", (inner, hidden)
        yield f"{prefix}.mlp.up_proj.weight", (inner, hidden)
        yield f"{prefix}.mlp.down_proj.weight", (hidden, inner)
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocabulary, hidden)


def small(count: int, elements: int) -> Shapes:
    """Many tensors of a few elements each: names and headers, hardly any bytes."""
    return ((f"blocks.{i // 10}.statistics.{i % 10}", (elements,)) for i in range(count))


CONTENTS = {
    content.name: content
    for content in (
        Content("decoder-2g", "bfloat16", lambda: decoder(32, 1664, 4608, 512, 32000)),
        Content("decoder-1g", "bfloat16", lambda: decoder(14, 1664, 4608, 512, 34000)),
        Content("decoder-quick", "bfloat16", lambda: decoder(2, 128, 352, 64, 1000)),
        Content("small-100k", "float32", lambda: small(100_000, 16)),
        Content("small-quick", "float32", lambda: small(500, 16)),
        Content("one", "float32", lambda: small(1, 16)),
    )
}


def tensors(content: Content) -> dict[str, torch.Tensor]:
    """Make the tensors of a content; the same values each time."""
    import torch

    dtype = getattr(torch, content.dtype)
    generator = torch.Generator().manual_seed(20)
    noise = torch.randn(NOISE, generator=generator).to(dtype)
    made = {}
    for index, (name, shape) in enumerate(content.shapes()):
        tensor = torch.empty(shape, dtype=dtype)
        flat = tensor.view(-1)
        shift = index % 16
        for start in range(0, flat.numel(), NOISE - 16):
            part = flat[start : start + NOISE - 16]
            part.copy_(noise[shift : shift + part.numel()])
        made[name] = tensor
    return made


def size(content: Content) -> int:
    """The bytes of all tensors of a content; neither they nor torch are needed for it."""
    elements = sum(math.prod(shape) for _name, shape in content.shapes())
    return elements * ITEM_SIZES[content.dtype]


def from_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Take the tensors of a real checkpoint, nested dictionaries flattened."""
    import torch

    def flatten(value: object, name: str) -> Iterator[tuple[str, torch.Tensor]]:
        if isinstance(value, torch.Tensor):
            yield name, value.detach().clone().contiguous()
        elif isinstance(value, dict):
            for key, inner in value.items():
                yield from flatten(inner, f"{name}.{key}" if name else str(key))

    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return dict(flatten(torch.load(path, map_location="cpu", weights_only=True), ""))


def write(state_dict: dict[str, torch.Tensor], path: Path) -> None:
    """Write a data file beside its final name, then rename: a half file is never reused."""
    import torch
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    if path.suffix == ".safetensors":
        save_file(state_dict, part)
    else:
        torch.save(state_dict, part)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
