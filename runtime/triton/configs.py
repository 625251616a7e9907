"""Tile sizes: ``configs.json`` lists them by architecture, product, dtype, block side and class of the number of rows.

``tools/gpu/tune.py`` measures candidates on a GPU and writes the file's rows. Nothing is tuned while a model runs: a
graph that is compiled twice runs the same kernels and computes sums in the same order.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

PATH = Path(__file__).with_name("configs.json")
PRODUCTS = ("spmm", "spmm_t", "sddmm")
KINDS = ("half", "single")  # bfloat16 and float16; float32
SIDES = (16, 32, 64, 128)
# Classes of the number of rows of activations, each with the largest number that belongs to the class.
ROWS = {"decode": 16, "small": 256, "large": 2**31}


class Config(NamedTuple):
    """How the work of one product is divided.

    Args:
        tile: spmm, spmm_t: rows of activations in a program's tile; the tile's other side is the block's side. sddmm:
            columns of blocks that are placed one after the other.
        depth: the depth of one step of the sum.
        group: spmm, spmm_t: the number of tiles in a band that goes through the whole weight; not used by sddmm.
        warps, stages: the warps of the program, and the stages of its pipeline.
    """

    tile: int
    depth: int
    group: int
    warps: int
    stages: int


@functools.cache
def table() -> dict[str, Any]:
    """Architecture -> product -> kind -> side -> class -> configuration; "any" is for architectures not in the list."""
    found: dict[str, Any] = json.loads(PATH.read_text())
    return found


@functools.cache
def architecture(device: torch.device) -> str:
    """The name of the table's part for a device: its own architecture, or "any"."""
    if device.type == "cpu":  # the interpreter uses the tiles of the newest GPU in the table
        return max(name for name in table() if name != "any")
    major, minor = torch.cuda.get_device_capability(device)
    own = f"sm_{major}{minor}"
    return own if own in table() else "any"


def find(product: str, side: int, m: int, operand: Tensor) -> Config:
    """The configuration of a product.

    Args:
        product: one of :data:`PRODUCTS`.
        side: the side of the block in the direction of the output's tile: rows for spmm and sddmm, columns for spmm_t.
        m: rows of activations.
        operand: gives the dtype and the device.
    """
    kind = "single" if operand.dtype == torch.float32 else "half"
    listed = next(each for each in SIDES if side <= each)
    rows = next(name for name, limit in ROWS.items() if m <= limit)
    return Config(*table()[architecture(operand.device)][product][kind][str(listed)][rows])
