"""topkast.estimate: finds the products of a step, names what stays dense, and says why a model does not gain."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import topkast
from topkast.compiler.advise import estimate as module
from topkast.compiler.advise.expectation import Product


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
        ([], "no product with a sparse weight was found in its step"),
    ],
)
def test_says_why_a_model_does_not_gain(products: list[Product], why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.native_library, "library", lambda: object())
    assert module._why(products, 10.0) == why
    monkeypatch.setattr(module.native_library, "library", lambda: None)
    if not torch.cuda.is_available():
        assert "the native kernels are not built" in module._why(products, 10.0)


def test_the_sentence_is_printed() -> None:
    no = module.Expectation(
        {}, {}, [], (2, 8), {"dense": 1.0, "sparse": 1.2}, {"dense": 4, "sparse": 3}, False, "small"
    )
    assert "This model will not gain time, because small." in str(no)
    assert "step with 2 of 8 examples: 1200.0 ms sparse" in str(no)


def test_refuses_what_compile_refuses() -> None:
    with pytest.raises(topkast.ConfigError, match=r"fwd=1\.5"):
        topkast.estimate(Net(), WORDS, 1.5)
    with pytest.raises(topkast.ModelError, match="no weight can be sparse"):
        topkast.estimate(nn.Linear(3, 3), torch.randn(2, 3))


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
