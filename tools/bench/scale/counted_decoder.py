"""A decoder of the LLaMA family, dense or sparse, on the meta device or with values, as ``fully_shard`` shards it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import topkast
from topkast.compiler.config import Config
from topkast.compiler.convert.attach import attach
from topkast.compiler.convert.distribute import distribute
from topkast.runtime.layout import Geometry, Index, column_type
from topkast.runtime.rule import Rule
from topkast.runtime.state.content.family import Family
from topkast.runtime.state.content.reservoirs import values_outside
from topkast.runtime.state.site_module import SiteModule


@dataclass(frozen=True)
class Size:
    """The sizes of a model: width, blocks, heads of queries, heads of keys, inner width, words."""

    dim: int
    layers: int
    heads: int
    keys: int
    inner: int
    vocab: int


SIZES = {
    "1.3B": Size(2048, 24, 16, 16, 5504, 32000),
    "7B": Size(4096, 32, 32, 32, 11008, 32000),
    "13B": Size(5120, 40, 40, 40, 13824, 32000),
    "70B": Size(8192, 80, 64, 8, 28672, 32000),
}


class Block(nn.Module):
    """Attention with grouped keys, and a gated layer."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        width = size.dim // size.heads
        self.size, self.norm1, self.norm2 = size, nn.RMSNorm(size.dim), nn.RMSNorm(size.dim)
        self.q, self.out = (nn.Linear(size.dim, size.dim, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(size.dim, size.keys * width, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(size.dim, size.inner, bias=False) for _ in range(2))
        self.down = nn.Linear(size.inner, size.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (f(h).unflatten(-1, (-1, self.size.dim // self.size.heads)).transpose(1, 2)
                   for f in (self.q, self.k, self.v))  # fmt: skip
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        h = self.norm2(x)
        return x + self.down(nn.functional.silu(self.gate(h)) * self.up(h))


class Decoder(nn.Module):
    def __init__(self, size: Size, layers: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(size.vocab, size.dim)
        self.blocks = nn.ModuleList(Block(size) for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(size.dim), nn.Linear(size.dim, size.vocab, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class MetaSite(SiteModule):
    """A site on the meta device: its tensors have shapes and no numbers, so there is nothing to choose sets from."""

    def __init__(self, parameter: nn.Parameter, name: str, geometry: Geometry, fwd: int, bwd: int, rule: Rule) -> None:
        nn.Module.__init__(self)
        self._define(name, geometry, fwd, bwd, rule, Family())
        rows, columns = geometry.grid
        index = Index(
            torch.empty(rows + 1, dtype=torch.int64, device="meta"),
            torch.empty(rows, dtype=torch.int64, device="meta"),
            torch.empty(bwd, dtype=column_type(columns), device="meta"),
        )
        outside = self.place.allocate(values_outside(geometry, fwd, bwd, rule), parameter.detach())
        self._hold(index, torch.empty(-(-geometry.units // 8), dtype=torch.uint8, device="meta"), outside)
        self._values = parameter.detach().new_empty(bwd * geometry.unit)


def on_meta(model: nn.Module, config: Config) -> None:
    """Make all linear layers in the blocks of a model on the meta device sparse, as ``topkast.sparsify(mesh=)``."""
    layers = {f"{path}.weight": part for path, part in model.named_modules()
              if isinstance(part, nn.Linear) and path.startswith("blocks.")}  # fmt: skip
    geometries = {name: Geometry(tuple(part.weight.shape), (0, 1), 1, config.block) for name, part in layers.items()}
    for name, count in distribute(config, geometries).items():
        fwd, bwd, balanced = count
        site = MetaSite(layers[name].get_parameter("weight"), name, geometries[name], fwd, bwd, config.rule(balanced))
        site.share_index()
        site.adopt(layers[name], "weight")
        attach(layers[name], "weight", site)


def sharded(size: Size, layers: int, mesh: Any, options: dict[str, Any] | None, bf16: bool, meta: bool) -> Decoder:
    """A model as ``fully_shard`` leaves it.

    Args:
        layers: the number of blocks.
        mesh: the device mesh.
        options: of ``topkast.sparsify``; None: a dense model.
        bf16: whether to multiply in bfloat16 and add gradients in float32.
        meta: whether to make the model on the meta device.
    """
    torch.manual_seed(0)
    with torch.device("meta" if meta else "cpu"):
        model = Decoder(size, layers)
    if options is not None and meta:
        on_meta(model, Config(**options))
    elif options is not None:
        topkast.sparsify(model, include="blocks.*", min_size=1, mesh=mesh, **options)
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 else MixedPrecisionPolicy()
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)  # torch's own choice for a root
    return model
