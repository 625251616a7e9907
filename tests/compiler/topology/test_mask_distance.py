"""Distance between sets: exact counts, exact zero for permuted copies, and a matching that is never worse than none."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import topkast
from topkast.tests.support.models.permuting import permuted, random_permutations
from topkast.tests.support.truth.builders import CASES

Masks = dict[str, tuple[Tensor, Tensor]]


def _sparse(model: nn.Module, inputs: Any, **options: Any) -> nn.Module:
    return topkast.sparsify(model, example_inputs=inputs, min_size=16, **options)


@pytest.mark.long
@pytest.mark.parametrize("name", ["mlp", "cnn", "conv_transpose", "encoder", "attention", "twice", "einsum", "gpt2"])
def test_a_permuted_copy_is_at_distance_zero(name: str) -> None:
    case = CASES[name]
    model = case.model()
    ((inputs, _),) = case.batches(1)
    found = topkast.topology.interchangeable(model, inputs)
    twin = permuted(model, found, random_permutations(found, 0))
    one, two = _sparse(model, inputs), _sparse(twin, inputs)
    apart = topkast.topology.mask_distance(one, two)
    assert apart.forward > 0.5 and apart.permutations is None
    matched = topkast.topology.mask_distance(one, two, match=True, example_inputs=inputs)
    assert matched.forward == matched.backward == 0
    assert set(matched.parameters) == set(topkast.masks(one)) and set(matched.parameters.values()) == {(0.0, 0.0)}
    assert topkast.topology.mask_distance(one, topkast.masks(two), match=found).forward == 0  # a model and a snapshot


def test_figures_are_counts() -> None:
    model = _sparse(CASES["mlp"].model(), None)
    masks = topkast.masks(model)
    assert topkast.topology.mask_distance(model, masks) == topkast.topology.mask_distance(masks, masks)
    assert topkast.topology.mask_distance(model, masks).forward == 0
    fwd, bwd = (mask.clone() for mask in masks["2.weight"])
    fwd.view(-1)[fwd.view(-1).nonzero()[0]] = False
    fwd.view(-1)[(~fwd & ~masks["2.weight"][0]).view(-1).nonzero()[-1]] = True
    moved = topkast.topology.mask_distance(masks, {**masks, "2.weight": (fwd, bwd)})
    members = {name: int(pair[0].sum()) for name, pair in masks.items()}
    assert moved.parameters == {name: (1 / n if name == "2.weight" else 0.0, 0.0) for name, n in members.items()}
    assert moved.forward == 1 / sum(members.values()) and moved.backward == 0
    nothing = {name: (torch.zeros_like(a), torch.zeros_like(b)) for name, (a, b) in masks.items()}
    assert (
        topkast.topology.mask_distance(masks, nothing).forward == 1
        and topkast.topology.mask_distance(nothing, nothing).backward == 0
    )


def test_one_class_is_matched_as_well_as_all_its_permutations_allow() -> None:
    torch.manual_seed(3)
    nets = [
        _sparse(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 7)), None, fwd=0.6, bwd=0.3) for _ in range(2)
    ]
    one, two = map(topkast.masks, nets)
    found = topkast.topology.interchangeable(nets[0], torch.randn(2, 6))
    (atom,) = found.sizes
    best = min(_total(one, _permute(two, found, {atom: np.array(p)})) for p in itertools.permutations(range(5)))
    matched = topkast.topology.mask_distance(one, two, match=found)
    assert _total(one, _permute(two, found, matched.permutations)) == best < _total(one, two)


def _permute(masks: Masks, found: topkast.topology.Interchangeable, permutations: Any) -> Masks:
    return {n: tuple(found.permute(n, m, permutations) for m in pair) for n, pair in masks.items()}


def _total(one: Masks, two: Masks) -> int:
    return sum(int((a ^ b).sum()) for name in one for a, b in zip(one[name], two[name], strict=True))


class Net(nn.Module):
    """Layers of given widths with a residual pair where two widths agree, and heads at the end."""

    def __init__(self, widths: list[int], heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise([9, *widths]))
        self.heads, last = heads, widths[-1]
        self.split, self.merge = nn.Linear(last, 4 * heads), nn.Linear(4 * heads, 7)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            y = F.gelu(layer(x))
            x = x + y if x.shape == y.shape else y
        q = self.split(x).unflatten(-1, (self.heads, 4)).transpose(-2, -3)
        return self.merge(F.scaled_dot_product_attention(q, q, q).transpose(-2, -3).flatten(-2))


def _largest(model: nn.Module, fwd: float) -> Masks:
    """The sets of every matrix, as converting would choose them."""
    masks = {}
    for name, p in model.named_parameters():
        if p.ndim == 2:
            rank = p.detach().abs().flatten().argsort(descending=True).argsort().view_as(p)
            n = round((1 - fwd) * p.numel())
            masks[name] = (rank < n, rank < 2 * n)
    return masks


@settings(max_examples=12, deadline=None)
@given(
    widths=st.lists(st.integers(8, 20), min_size=1, max_size=3),
    heads=st.integers(1, 4),
    fwd=st.sampled_from([0.5, 0.8]),
    seed=st.integers(0, 2**16),
)
def test_small_nets(widths: list[int], heads: int, fwd: float, seed: int) -> None:
    torch.manual_seed(seed)
    inputs = (torch.randn(2, 3, 9),)
    model, other = Net(widths, heads), Net(widths, heads)
    found = topkast.topology.interchangeable(model, inputs)
    permutations = random_permutations(found, seed)
    twin = permuted(model, found, permutations)
    one, two, far = (_largest(net, fwd) for net in (model, twin, other))
    # Ranking weights does not see their order: the copy's sets are the permuted sets.
    assert _total(_permute(one, found, permutations), two) == 0
    assert topkast.topology.mask_distance(one, two, match=found).forward == 0
    matched, plain = (topkast.topology.mask_distance(one, far, match=match) for match in (found, False))
    after = _permute(far, found, matched.permutations)
    assert _total(one, after) <= _total(one, far)
    assert topkast.topology.mask_distance(one, after) == topkast.topology.MaskDistance(
        matched.forward, matched.backward, matched.parameters
    )
    for name, pair in after.items():  # matching only permutes: sizes stay, and A stays inside B
        assert [int(m.sum()) for m in pair] == [int(m.sum()) for m in far[name]] and not (pair[0] & ~pair[1]).any()
    assert 0 <= matched.forward <= 1 and set(matched.parameters) == set(plain.parameters)


def test_what_does_not_fit_is_refused() -> None:
    model = _sparse(CASES["mlp"].model(), None)
    masks = topkast.masks(model)
    with pytest.raises(topkast.ConfigError, match=r"sparse in only one of the two: 2\.weight"):
        topkast.topology.mask_distance(model, {name: pair for name, pair in masks.items() if name != "2.weight"})
    with pytest.raises(topkast.ConfigError, match=r"0\.weight: shape \(48, 20\) in a, \(20, 48\) in b"):
        topkast.topology.mask_distance(model, {**masks, "0.weight": tuple(m.T for m in masks["0.weight"])})
    with pytest.raises(topkast.ConfigError, match="match=True: needs a model"):
        topkast.topology.mask_distance(masks, masks, match=True)
    other = topkast.topology.interchangeable(CASES["functional"].model(), torch.randn(2, 17))
    with pytest.raises(topkast.ConfigError, match="match: found in another model"):
        topkast.topology.mask_distance(masks, masks, match=other)
    with pytest.raises(topkast.ModelError, match="not converted"):
        topkast.topology.mask_distance(nn.Linear(2, 2), masks)
