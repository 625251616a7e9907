"""Which neurons are interchangeable: exact invariance under what is found, and what must be left alone."""

from __future__ import annotations

import pytest
import torch
from builders import CASES
from torch import nn

from topkast.compiler.interchange import interchangeable, permuted, random_permutations


@pytest.mark.parametrize("name", [n for n in CASES])
def test_a_permuted_copy_computes_the_same(name: str) -> None:
    case = CASES[name]
    model = case.model().double()
    ((inputs, _),) = case.batches(1)
    inputs = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    found = interchangeable(model, inputs)
    print(name); print(found)
    twin = permuted(model, found, random_permutations(found, 0))
    with torch.no_grad():
        one, two = (m(*inputs) for m in (model, twin))
    one, two = (getattr(y, "logits", y) for y in (one, two))
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters()))
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


import topkast
@pytest.mark.parametrize("name", [n for n in CASES])
def test_zero(name: str) -> None:
    case = CASES[name]
    model = case.model()
    ((inputs, _),) = case.batches(1)
    found = interchangeable(model, inputs)
    twin = permuted(model, found, random_permutations(found, 0))
    one, two = (topkast.sparsify(m, example_inputs=inputs, min_size=64) for m in (model, twin))
    for n, (x, y) in topkast.masks(one).items():
        pass
    d = topkast.mask_distance(one, two)
    e = topkast.mask_distance(one, two, match=found)
    print(name, d.forward, d.backward, e.forward, e.backward)
