"""Equal blocks of a graph are traced three times and counted as often as they are there."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from topkast.compiler.advise import step_products as module
from topkast.compiler.advise.fold_repeats import fold_repeats
from topkast.compiler.config import Config
from topkast.compiler.convert.select import select
from topkast.compiler.convert.sparsify import cut
from topkast.runtime.planner.plan import Problem


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 128), nn.Linear(128, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


class Net(nn.Module):
    """Blocks between two layers.

    Args:
        blocks: how many.
        shared: one block is called so many times.
        every: each block reads the results of all blocks before.
        collected: the results of all blocks are returned.
    """

    def __init__(self, blocks: int, shared: bool = False, every: bool = False, collected: bool = False) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(96, 64), nn.Linear(64, 96)
        self.blocks = nn.ModuleList([Block(64)] * blocks if shared else [Block(64) for _ in range(blocks)])
        self.every, self.collected = every, collected

    def forward(self, x: Tensor) -> Any:
        seen = [self.into(x)]
        for block in self.blocks:
            seen.append(block(torch.stack(seen).sum(0) if self.every else seen[-1]))
        return (self.out(seen[-1]), *seen) if self.collected else self.out(seen[-1])


def traced(model: nn.Module, monkeypatch: pytest.MonkeyPatch, fold: bool) -> tuple[Counter[Problem], int]:
    """The products of a step, and the number of nodes that were differentiated."""
    config, given = Config(0.9, 0.8), torch.randn(8, 96)
    selection = select(model, config, (given,))
    geometries, counts = cut(model, config, selection)
    with monkeypatch.context() as patched:
        if not fold:
            patched.setattr(module, "fold_repeats", lambda *given: {})
        found = module.step_products(selection.capture, model, geometries, counts)
    counted: Counter[Problem] = Counter()
    for problem, runs in found:
        counted[problem] += runs
    return counted, len(selection.capture.graphs[0].graph.nodes)


@pytest.mark.parametrize("options", [{}, {"collected": True}, {"shared": True}])
def test_the_products_are_those_of_the_whole_graph(options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, nodes = traced(Net(7, **options), monkeypatch, fold=False)
    found, fewer = traced(Net(7, **options), monkeypatch, fold=True)
    assert found == whole and sum(whole.values()) >= 3 * 14
    assert fewer < 0.7 * nodes
    assert fewer == traced(Net(9, **options), monkeypatch, fold=True)[1] or options, "the work does not grow"


def test_blocks_that_differ_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, nodes = traced(Net(6, every=True), monkeypatch, fold=False)
    assert traced(Net(6, every=True), monkeypatch, fold=True) == (whole, nodes)


def test_blocks_of_other_sizes_are_folded_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> nn.Module:
        narrow, wide = ([Block(width) for _ in range(5)] for width in (64, 96))
        return nn.Sequential(nn.Linear(96, 64), *narrow, nn.Linear(64, 96), *wide)

    whole, nodes = traced(build(), monkeypatch, fold=False)
    found, fewer = traced(build(), monkeypatch, fold=True)
    assert found == whole and fewer < nodes


def test_three_blocks_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = torch.export.export(Net(3), (torch.randn(8, 96),), strict=False).graph
    before = len(graph.nodes)
    assert fold_repeats(graph, {}, set()) == {} and len(graph.nodes) == before
