"""Which neurons are interchangeable: exact invariance under what is found, and what must be left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import topkast
from topkast.tests.support.models.permuting import permuted, random_permutations
from topkast.tests.support.truth.budget import assert_budget
from topkast.tests.support.truth.builders import CASES

# Sizes of the classes that must be found, largest first; the recurrent ones have no rule.
EXPECTED = {
    "mlp": [48, 37],
    "cnn": [20, 16, 8, 6, 2],
    "conv1d": [7, 6, 2],
    "conv3d": [8, 6],
    "conv_transpose": [5, 4, 2],
    "encoder": [52, 24, 8, 3],
    "encoder_post": [52, 24, 8, 3],
    "attention": [18, 12, 12, 8, 3, 2],
    "lstm": [],
    "tied": [24],
    "twice": [30],
    "functional": [33],
    "einsum": [10, 3],
    "experts": [26],
    "hf_conv1d": [40, 26],
    "gpt2": [96, 96, 24, 12, 12, 12, 12, 2, 2],
}


def _output(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad():
        found = model(*inputs)
    return getattr(found, "logits", found)


def assert_invariant(model: nn.Module, inputs: tuple[Tensor, ...], found: topkast.topology.Interchangeable) -> None:
    """Random permutations of all classes together change the output by no more than the order of sums does."""
    twin = permuted(model, found, random_permutations(found, 0))
    exact = _output(model.double(), tuple(x.double() if x.is_floating_point() else x for x in inputs))
    assert_budget(_output(twin, inputs), _output(model.float(), inputs), exact, "permuted copy")


@pytest.mark.parametrize("name", EXPECTED)
def test_a_permuted_copy_computes_the_same(name: str) -> None:
    case = CASES[name]
    model = case.model().eval()
    ((inputs, _),) = case.batches(1)
    found = topkast.topology.interchangeable(model, inputs)
    assert sorted(found.sizes.values(), reverse=True) == EXPECTED[name]
    for tensor_name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert [sum(map(found.count, dim)) for dim in found.dims[tensor_name]] == list(tensor.shape)
    assert_invariant(model, inputs, found)


@pytest.mark.parametrize("name", ["mlp", "cnn", "encoder", "attention", "gpt2", "einsum"])
def test_each_class_needs_all_of_its_tensors(name: str) -> None:
    """The near miss: one weight of a class left as it was changes what is computed."""
    case = CASES[name]
    model = case.model().eval()
    ((inputs, _),) = case.batches(1)
    found, before = topkast.topology.interchangeable(model, inputs), _output(model, inputs)
    everything = random_permutations(found, 1)
    for atom in found.sizes:
        if atom not in found.inner:
            chosen = {a: everything[a] for a in everything if a == atom or found.inner.get(a) == atom}
            twin = permuted(model, found, chosen)
            place = next(p for p in found.places(atom) if p.split(":")[0] in dict(model.named_parameters()))
            left = place.split(":")[0]
            with torch.no_grad():
                twin.get_parameter(left).copy_(model.get_parameter(left))
            moved = not np.array_equal(chosen[atom], np.arange(found.sizes[atom]))
            assert not moved or (_output(twin, inputs) - before).abs().max() > 1e-3 * before.abs().max(), place


class Written(nn.Module):
    """One way of writing a layer between two projections of 24 hidden units."""

    def __init__(self, function) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into, self.out, self.also = nn.Linear(10, 24), nn.LazyLinear(5), nn.Linear(10, 24)
        self.norm, self.vector = nn.LayerNorm(24), nn.Parameter(torch.randn(24))
        self.function = function
        self(torch.randn(3, 4, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.function(self, self.into(x), x))


def _across_heads(q: Tensor) -> Tensor:
    return (q @ q.transpose(-1, -2)).softmax(-1) @ q


WRITTEN = [
    (lambda s, h, x: F.relu(h) + s.also(x), [24]),
    (lambda s, h, x: torch.cat([h, s.also(x)], -1), [24, 24]),
    (lambda s, h, x: torch.cat([h.relu(), h], -1), [24]),
    (lambda s, h, x: F.glu(h), [12]),
    (lambda s, h, x: h.chunk(2, -1)[0] * h.chunk(2, -1)[1].sigmoid(), [12]),
    (lambda s, h, x: torch.cat([a.tanh() for a in h.split([10, 14], -1)], -1), [14, 10]),
    (lambda s, h, x: torch.cat([h[..., :7].tanh(), h[..., 7:]], -1), [17, 7]),
    (lambda s, h, x: s.norm(h) * s.vector, [24]),
    (lambda s, h, x: F.group_norm(h.flatten(0, 1), 4).unflatten(0, (3, 4)), [6, 4]),
    (lambda s, h, x: h.view(3, 4, 4, 6).softmax(-1).flatten(2), [6, 4]),
    (lambda s, h, x: h.view(3, 4, 4, 6).mean(2), [6, 4]),
    (lambda s, h, x: h.view(3, 4, 4, 6).transpose(2, 3).reshape(3, 4, 24), [6, 4]),
    (lambda s, h, x: (h - h.mean(-1, keepdim=True)) / h.std(-1, keepdim=True), [24]),
    (lambda s, h, x: torch.where(h > 0, h, s.vector.expand(3, 4, 24)), [24]),
    (lambda s, h, x: h.transpose(1, 2) @ s.also(x), [24]),
    (lambda s, h, x: h.movedim(-1, 0).amax(0).unsqueeze(-1), [24]),
    (lambda s, h, x: F.scaled_dot_product_attention(h, s.also(x), s.also(x)), [24]),
    (lambda s, h, x: F.scaled_dot_product_attention(
        *(y.unflatten(-1, (-1, 4)).transpose(1, 2) for y in (h, s.also(x)[..., :8], s.also(x)[..., 8:16])),
        enable_gqa=True,
    ).transpose(1, 2).flatten(2), [8, 4, 4, 3, 2]),
    (lambda s, h, x: torch.stack([h, s.also(x)], 2).flatten(2), [24]),
    (lambda s, h, x: torch.einsum("bth,bsh->bts", h, s.also(x)), [24]),
    (lambda s, h, x: _across_heads(h.view(3, 4, 4, 6)).flatten(2), [6, 4]),
    (lambda s, h, x: h.new_zeros(3, 4, 24).copy_(h), []),
    # What tells its elements apart is left alone.
    (lambda s, h, x: h.cumsum(-1), []),
    (lambda s, h, x: h.flip(-1), []),
    (lambda s, h, x: h * torch.arange(24), []),
    (lambda s, h, x: F.avg_pool1d(h, 2), []),
    (lambda s, h, x: F.pad(h, (1, -1)), []),
    (lambda s, h, x: h[..., ::2], []),
    (lambda s, h, x: torch.cat([h.view(3, 4, 4, 6)[..., :3], h.view(3, 4, 4, 6)[..., 3:].neg()], -1).flatten(2), [4]),
]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("case", range(len(WRITTEN)))
def test_however_it_is_written(case: int) -> None:
    function, sizes = WRITTEN[case]
    model, inputs = Written(function), (torch.randn(3, 4, 10),)
    found = topkast.topology.interchangeable(model, inputs)
    used = {atom for name in ("into.weight", "also.weight") for atom in sum(found.dims[name][0], ())}
    assert sorted((found.sizes[a] for a in used if a in found.sizes), reverse=True) == sizes, str(found)
    assert_invariant(model, inputs, found)


def test_reasons_are_told() -> None:
    text = str(topkast.topology.interchangeable(Written(lambda s, h, x: h.cumsum(-1)), torch.randn(3, 4, 10)))
    assert "24 fixed, the operation cumsum has no rule: into.weight:0, into.bias:0" in text
    assert "5 fixed, an output of the model: out.weight:0" in text
    assert "24 fixed, unused in the trace" in text


def test_real_models() -> None:
    t = pytest.importorskip("transformers")
    small = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2}
    llama = t.LlamaForCausalLM(t.LlamaConfig(vocab_size=50, num_key_value_heads=2, **small)).eval()
    ids = torch.randint(0, 50, (2, 6))
    inputs = {"input_ids": ids, "use_cache": False}
    found = topkast.topology.interchangeable(llama, inputs)
    # The residual stream, the gated layers, groups of heads and heads in a group; rotary positions fix the features
    # of queries and keys, those of values are free.
    assert sorted(found.sizes.values(), reverse=True) == [48, 48, 32, 8, 8, 2, 2, 2, 2]
    assert_invariant(llama, (ids,), found)
    vit = t.ViTForImageClassification(t.ViTConfig(image_size=16, patch_size=8, **small)).eval()
    found = topkast.topology.interchangeable(vit)
    assert 48 in found.sizes.values() and 32 in found.sizes.values()
    assert_invariant(vit, (torch.randn(2, 3, 16, 16),), found)


def test_a_converted_model_is_read_like_the_plain_one() -> None:
    case = CASES["mlp"]
    ((inputs, _),) = case.batches(1)
    plain = topkast.topology.interchangeable(case.model(), inputs)
    sparse = topkast.topology.interchangeable(topkast.sparsify(case.model(), min_size=500), inputs)
    assert plain == sparse


def test_a_model_that_cannot_be_traced_is_refused() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(topkast.ModelError, match="pass example_inputs"):
        topkast.topology.interchangeable(Branching(), torch.randn(2))
