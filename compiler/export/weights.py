"""The facts about a model's sparse weights that the writer of a file needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from topkast.runtime.errors import ConfigError
from topkast.runtime.state.model import owned
from topkast.runtime.state.site_module import SiteModule


def round_to_half(plain: nn.Module, model: Any) -> None:
    """Round the sparse weights of ``plain``, the densified ``model``, to float16, in place.

    Raises:
        ConfigError: a value is outside float16's range.
    """
    with torch.no_grad():
        for name, _, weight in sparse_weights(plain, model):
            rounded = weight.half()
            if not torch.equal(rounded.isfinite(), weight.isfinite()):
                largest = weight.abs().max().item()
                raise ConfigError(f"precision='fp16': {name} holds {largest:.3g}, float16 ends at 65504")
            weight.copy_(rounded)


def known_weights(plain: nn.Module, model: Any) -> tuple[dict[str, str], set[tuple[int, int]]]:
    """(digest of a matrix' values -> the matrix' name, the blocks that the sparse matrices were trained with)."""
    from topkast.passes.onnx.blocks import digest

    names, blocks = dict[str, str](), set[tuple[int, int]]()
    for name, site, weight in sparse_weights(plain, model):
        blocks.add(site.geometry.block)
        if weight.dim() in (2, 3) and weight.dtype == torch.float32:
            stacked = weight.dim() == 3  # one matrix for each expert; the file holds each separately
            for e, matrix in enumerate(weight.detach().numpy() if stacked else [weight.detach().numpy()]):
                names[digest(matrix)] = f"{name}.{e}" if stacked else name
                names.setdefault(digest(matrix.T), f"{name}.{e}" if stacked else f"{name}.T")
    for name, weight in plain.named_parameters():
        if weight.dim() == 2 and weight.dtype == torch.float32:  # dense, so that a file's constant has this name too
            names.setdefault(digest(weight.detach().numpy()), name)
    return names, blocks


def sparse_weights(plain: nn.Module, model: Any) -> Iterator[tuple[str, SiteModule, nn.Parameter]]:
    """(name, site, W_A in ``plain``) of each sparse weight; ``plain`` is the densified ``model``."""
    for name, (site, owners) in owned(model).items():
        path, attribute = owners[0]
        yield name, site, getattr(plain.get_submodule(path), attribute)
