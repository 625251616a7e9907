"""The kernels of a refresh as compiled for a GPU, in the emulator, against the specification. Prints one JSON row for
each launch: kernel, registers, bytes of its stack, bytes of shared memory.

TRITON_INTERPRET=0 python -m topkast.tests.support.ptx.refreshed 90 1x1:float32 16x1:bfloat16
"""

from __future__ import annotations

import json
import sys
import warnings

import torch

from topkast.runtime import layout
from topkast.runtime.layout import Geometry
from topkast.runtime.reference import selection
from topkast.runtime.reference import theta as plain
from topkast.runtime.triton.refresh import sets, theta
from topkast.tools.gpu.compiled import facts

from .driver import emulated


def one(block: str, dtype: str) -> None:
    """Two refreshes of a weight with an edge, many equal scores, and a row outside B; raises where one is wrong."""
    torch.manual_seed(0)
    r, c = map(int, block.split("x"))
    geometry = Geometry((3 * r - r // 2, 5 * c - c // 3 if c > 1 else 45), (0, 1), 1, (r, c))
    found = []
    for drawn in (torch.randn(geometry.shape), torch.randn(geometry.shape).round()):
        dense = drawn.to(getattr(torch, dtype))
        dense[:r] = 0
        score = selection.scores(dense, geometry.block)
        if geometry.unit > 1:
            assert sets.block_scores(dense, geometry).equal(score), "scores"
        n_bwd = geometry.units // 2
        masks = [sets.largest(score.view(1, -1), count).view(geometry.grid) for count in (n_bwd // 2, n_bwd)]
        expected = [selection.largest(score, count).view(geometry.grid) for count in (n_bwd // 2, n_bwd)]
        assert all(map(torch.equal, masks, expected)), "selection"
        index, known = (module.build_index(*masks, n_bwd + 2) for module in (sets, layout))
        assert all(map(torch.equal, index, known)), "index"
        assert all(map(torch.equal, sets.index_masks(index, geometry), layout.index_masks(index, geometry))), "masks"
        parts = []
        for module in (theta, plain):
            values = dense.new_full(((n_bwd + 2) * geometry.unit,), 7)
            reservoir = dense.new_full(((geometry.units - n_bwd) * geometry.unit,), 7)
            module.store(dense, values, reservoir, index, geometry)
            parts.append((values, reservoir))
        assert all(map(torch.equal, *parts)), "store"
        assert theta.assemble(*parts[0], index, geometry).equal(dense), "assemble"
        found.append((index, parts[0][0]))
    (before, values), (after, _) = found
    moved = theta.follow(values, before, after, geometry)
    assert moved.equal(plain.follow(values, before, after, geometry)), "follow"


def main(capability: int, cases: list[str]) -> int:
    warnings.simplefilter("ignore")
    with emulated(capability) as gpu:
        for case in cases:
            one(*case.split(":"))
            for each in gpu.launches:
                print(json.dumps({"case": case, "kernel": each.kernel.name, **facts(each.kernel)}), flush=True)
            gpu.launches.clear()
    print("right")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
