"""topkast.estimate: finds the products of a step, names what stays dense, and says why a model does not gain."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

import topkast
from topkast.compiler.advise import estimate as module
from topkast.compiler.advise.expectation import Product
from topkast.compiler.capture import trace
from topkast.compiler.report.cost import count_model_bytes
from topkast.passes.aten.finish.choose_kernel import observed
from topkast.runtime.state.model import sites


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(50, 64), nn.GRU(64, 64, batch_first=True)
        self.up, self.conv = nn.Linear(64, 128), nn.Conv1d(128, 64, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.conv(self.up(self.rnn(self.embed(words))[0]).mT)


WORDS = torch.randint(50, (4, 7))


def test_finds_every_product_with_its_runs_and_changes_nothing() -> None:
    model = Net()
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    found = topkast.estimate(model, WORDS, 0.9, 0.8, block=(4, 1))
    assert set(found.sparse) == {"rnn.weight_ih_l0", "rnn.weight_hh_l0", "up.weight", "conv.weight"}
    assert "embed.weight" in found.dense
    runs = {(one.product, one.weight): one.runs for one in found.products}
    assert runs["spmm", (128, 64)] == 1 and runs["conv", (64, 384)] == 1
    of_gru = [one.runs for one in found.products if one.product == "spmm" and one.weight == (192, 64)]
    assert sorted(of_gru) == [1, 7], "one for all inputs, one for each of 7 steps"
    assert all(one.sparse > 0 and one.dense > 0 for one in found.products)
    assert 0 < found.memory["sparse"] < found.memory["dense"]
    torch.testing.assert_close(model.state_dict(), before)
    assert not hasattr(model, "_topkast") and torch.equal(torch.random.get_rng_state(), state)
    assert "sparse: 4 weights" in str(found) and found.to_dict()["seconds"]["dense"] > 0


def test_products_are_put_into_the_time_of_our_loop() -> None:
    """A sparse layer runs in a loop; oneDNN's operator for a dense layer does not say how long a loop takes."""
    assert module._step_seconds(6.0, 9.0, [product(1.0, 2.0)], [], [], 1.0, 100) == {"dense": 6.0, "sparse": 7.0}


def test_bytes_are_those_of_training_with_adamw() -> None:
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.ReLU(), nn.Linear(64, 64, bias=False))
    found = topkast.estimate(model, torch.randn(8, 64))
    weights = 2 * 64 * 64 * 4
    assert found.memory["dense"] == pytest.approx(4 * weights, rel=0.01)  # values, gradient, two moments


def product(sparse: float, dense: float) -> Product:
    return Product("spmm", (64, 32), 2, "native", sparse, dense)


@pytest.mark.parametrize(
    "products, why",
    [
        ([product(2.0, 1.0)], "its weights are small (64 x 32): a dense product is as fast as a sparse product"),
        ([product(0.1, 1.0)], "products with sparse weights are only 20% of a step"),
        ([], "no product with a sparse weight was found in its step; it was read by torch.export"),
    ],
)
def test_says_why_a_model_does_not_gain(products: list[Product], why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.native_library, "library", lambda: object())
    assert module._why(products, 10.0, "torch.export").startswith(why)
    monkeypatch.setattr(module.native_library, "library", lambda: None)
    if not torch.cuda.is_available():
        assert "the native kernels are not built" in module._why(products, 10.0, "torch.export")


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
        self.down, self.up = nn.Conv2d(16, 32, 3, stride=2), nn.ConvTranspose2d(32, 16, 3)
        self.matrix, self.drop = nn.Parameter(torch.randn(16, 64)), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.down(self.norm(self.first(x)).relu()).relu())
        return self.drop(x.mean((2, 3))) @ self.matrix


class WithBranch(nn.Module):
    """torch.export refuses this model; Dynamo reads it as two graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        return self.down(x if x.sum() < 1e9 else 2 * x)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo, after a graph break
@pytest.mark.parametrize(
    "build, given", [(Net, WORDS), (Convolutions, torch.randn(2, 3, 12, 12)), (WithBranch, torch.randn(8, 64))]
)
def test_the_products_are_those_of_a_compiled_step(build: type[nn.Module], given: Tensor) -> None:
    model = build()
    estimated, compiled = Counter[Any](), Counter[Any]()
    for one in topkast.estimate(model, given).products:
        estimated[one.product, one.weight] += one.runs
    topkast.compile(model, example_inputs=given, backend="aot_eager")
    with observed() as found:
        model(given).sum().backward()
    for problem, runs in found:
        compiled[problem.product, (problem.geometry.rows, problem.geometry.cols)] += runs
    assert sum(compiled.values()) >= 5 and estimated == compiled


def test_the_model_is_neither_copied_nor_compiled() -> None:
    """The forward sees the model's own memory, a few times; of ten equal weights one is converted."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(10)))
    seen: list[int] = []

    def look(layer: nn.Module, given: Any, result: Tensor) -> None:
        if type(result) is Tensor:  # a fake tensor is the trace's
            seen.append(layer.get_parameter("weight").data_ptr())

    model[3].register_forward_hook(look)
    before, code = copy.deepcopy(model.state_dict()), trace.compiled()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "site_cost", counted := Mock(wraps=module.site_cost))
        found = topkast.estimate(model, torch.randn(16, 64))
    assert counted.call_count == 1 and len(found.sparse) == 10
    assert 2 <= len(seen) <= 1 + module.MOST_STEPS and set(seen) == {model[3].get_parameter("weight").data_ptr()}
    assert trace.compiled() == code, "Dynamo must compile nothing"
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("options", [{}, {"block": (4, 4)}, {"balanced": False}, {"reservoir": "host"}])
def test_bytes_are_those_of_a_converted_model(options: dict[str, Any]) -> None:
    model, given = Net(), WORDS
    found = topkast.estimate(model, given, 0.8, 0.6, **options)
    topkast.sparsify(model, 0.8, 0.6, example_inputs=given, **options)
    optimizer = torch.optim.AdamW(model.parameters())
    model(given).sum().backward()
    optimizer.step()
    counted = count_model_bytes(model, sites(model))
    assert found.memory == {side: pytest.approx(counted[side], rel=0.002) for side in ("sparse", "dense")}
    rows = {row["name"]: (row["density_a"], row["density_b"]) for row in topkast.report(model).sites}
    assert found.sparse == {name: pytest.approx(pair) for name, pair in rows.items()}


@pytest.mark.long
def test_the_work_for_a_decoder_does_not_grow_with_its_layers() -> None:
    """Twelve blocks have the kinds of products and weights of one block, and the cache is no reason to use Dynamo."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=12, n_embd=128, n_head=4, vocab_size=100)
    words, code = torch.randint(100, (1, 64)), trace.compiled()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "site_cost", costs := Mock(wraps=module.site_cost))
        patched.setattr(module, "beside_before", timed := Mock(wraps=module.beside_before))
        found = topkast.estimate(transformers.GPT2LMHeadModel(config), {"input_ids": words, "labels": words})
    assert len(found.sparse) == 48 and costs.call_count == 4
    assert len(found.products) == 12 and timed.call_count == 12 and {one.runs for one in found.products} == {12}
    assert trace.compiled() == code


def test_the_sentence_is_printed() -> None:
    no = module.Expectation(
        {}, {}, [], (2, 8), {"dense": 1.0, "sparse": 1.2}, {"dense": 4, "sparse": 3}, False, "small"
    )
    assert "This model will not gain time, because small." in str(no)
    assert "step with 2 of 8 examples: 1200.0 ms sparse" in str(no)


def test_refuses_what_compile_refuses() -> None:
    with pytest.raises(topkast.ConfigError, match=r"fwd=1\.5"):
        topkast.estimate(Net(), WORDS, 1.5)
    with pytest.raises(topkast.ConfigError, match="unknown arguments colour"):
        topkast.estimate(Net(), WORDS, colour=1)
    with pytest.raises(topkast.ModelError, match="no weight can be sparse"):
        topkast.estimate(nn.Linear(3, 3), torch.randn(2, 3))
    with torch.device("meta"):
        empty = nn.Linear(64, 64)
    with pytest.raises(topkast.ModelError, match="on the meta device, without values"):
        topkast.estimate(empty, torch.randn(2, 64))
    with pytest.raises(topkast.ModelError, match="no output of it needs a gradient"):
        topkast.estimate(nn.Linear(64, 64).requires_grad_(False), torch.randn(2, 64))


def test_a_large_batch_is_run_in_part() -> None:
    """Only if all its tensors have the same first dimension, and never fewer than two examples."""
    given = (torch.arange(8), {"mask": torch.ones(8, 3), "flag": True})
    (first, rest), examples = module._part(given, 0.5)
    assert first.tolist() == [0, 1, 2, 3] and rest["mask"].shape == (4, 3) and rest["flag"] and examples == (4, 8)
    assert module._part(given, 1e-9)[1] == (2, 8)
    assert module._part(given, 1.0) == (given, None)
    assert module._part((torch.ones(8), torch.ones(3)), 0.5)[1] is None
    assert module._part((torch.tensor(1.0),), 0.5)[1] is None


def test_the_time_for_the_steps_is_kept_by_smaller_ones() -> None:
    torch.manual_seed(0)
    found = topkast.estimate(nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 64)), torch.randn(64, 64), seconds=1e-6)
    assert found.examples == (2, 64)
    with pytest.raises(topkast.ConfigError, match=r"seconds=0: must be above 0"):
        topkast.estimate(nn.Linear(64, 64), torch.randn(2, 64), seconds=0)
