"""A weight keeps its name, place and rank: what rules by name, ``ndim``, type or position see of a sparse model."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, prune, spectral_norm

import topkast
from topkast.runtime.state.model import sites
from topkast.tests.support.truth.builders import CASES
from topkast.tests.support.truth.lockstep import dense_slots
from topkast.tools.common.places import ROOT

DATA = ROOT / "tests" / "support" / "data"


def small(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 9))
    return topkast.sparsify(model, 0.8, 0.5, min_size=1, refresh_every=2, **options)


def train(model: nn.Module, steps: int = 3, seed: int = 0) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(5, 12, generator=generator)).square().mean().backward()
        optimizer.step()


def theta(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in topkast.dense_state_dict(model, "all").items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", ["mlp", "cnn", "attention", "lstm", "tied", "experts", "hf_conv1d"])
def test_names_order_and_rank(name: str) -> None:
    dense, model = CASES[name].model(), topkast.sparsify(CASES[name].model(), 0.8, 0.5, min_size=1)
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in dense.named_parameters()]
    ranks = {n: p.ndim > 1 for n, p in dense.named_parameters()}
    assert {n: p.ndim > 1 for n, p in model.named_parameters()} == ranks
    for site in sites(model).values():
        assert site.original.ndim == 2 and tuple(site.original.shape) != site.geometry.shape
        assert site.original.shape[0] == (site.geometry.grid[0] if site.rule.balanced else 1)
    assert all(isinstance(model.get_submodule(path), type(module)) for path, module in dense.named_modules())
    keys = [key for key in model.state_dict() if ".sparse_state." not in f".{key}"]
    assert keys == list(dense.state_dict())


@pytest.mark.parametrize("options", [{"bwd": 0.0}, {"bwd": 0.8}, {"bwd": 0.0, "balanced": False}, {"block": (4, 4)}])
def test_the_shape_of_values_is_never_the_weight_s_own(options: dict[str, Any]) -> None:
    """A dense tensor in their place could not be told from them."""
    model = topkast.sparsify(
        nn.Sequential(nn.Linear(12, 16), nn.Linear(16, 1)), **{"fwd": 0.8, "min_size": 1, **options}
    )
    for site in sites(model).values():
        assert tuple(site.original.shape) != site.geometry.shape
    x = torch.randn(3, 12)
    torch.testing.assert_close(model(x), topkast.densify(model)(x))


def test_functional_call_takes_dense_tensors_and_theta_stays() -> None:
    model, x = small(), torch.randn(3, 12)
    before = theta(model)
    dense = {name: torch.randn_like(value, requires_grad=True) for name, value in before.items()}
    plain = topkast.densify(model)
    found, expected = functional_call(model, dense, (x,)), functional_call(plain, dense, (x,))
    assert torch.equal(found, expected)
    one, two = (torch.autograd.grad(y.sum(), list(dense.values()), allow_unused=True) for y in (found, expected))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert equal(theta(model), before)
    train(model)  # and training goes on
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert torch.equal(functional_call(model, values, (x,)), model(x))


WRITES: dict[str, Callable[[nn.Module], Any]] = {
    "reset_parameters": lambda model: model[0].reset_parameters(),
    "nn.init": lambda model: nn.init.kaiming_uniform_(model[0].weight),
    "copy_": lambda model: model[0].weight.copy_(torch.ones(16, 12)),
    "data": lambda model: model[0].weight.data.normal_(),
    "item": lambda model: model[0].weight.__setitem__(0, 1.0),
    "out": lambda model: torch.zeros(16, 12, out=model[0].weight),
    "orthogonal": lambda model: parametrizations.orthogonal(model[0], "weight"),
    "spectral_norm": lambda model: parametrizations.spectral_norm(model[0]),
    "weight_norm": lambda model: parametrizations.weight_norm(model[0]),
    "older spectral_norm": lambda model: spectral_norm(model[0]),
    "prune": lambda model: prune.l1_unstructured(model[0], "weight", 0.5),
}


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("name", WRITES)
def test_writes_that_would_be_lost_raise_and_change_nothing(name: str, gradients: bool) -> None:
    model = small()
    before, keys, names = theta(model), list(model.state_dict()), [n for n, _ in model.named_parameters()]
    with torch.set_grad_enabled(gradients), pytest.raises(topkast.ModelError, match=r"topkast\.|sparse weight"):
        WRITES[name](model)
    assert equal(theta(model), before) and list(model.state_dict()) == keys
    assert [n for n, _ in model.named_parameters()] == names
    train(model)


def test_older_weight_norm_is_refused_too() -> None:
    model = small()
    keys = list(model.state_dict())
    with pytest.warns(FutureWarning), pytest.raises(topkast.ModelError, match="sparse weight"):
        torch.nn.utils.weight_norm(model[0])
    assert list(model.state_dict()) == keys


def test_what_is_assigned_to_data_is_theta() -> None:
    """As code that merges adapters into a layer does."""
    model = small()
    new = torch.randn(16, 12)
    model[0].weight.data = new
    assert torch.equal(theta(model)["0.weight"], new)
    added = model[0].weight.detach() + 1
    model[0].weight.data += 1
    assert torch.equal(theta(model)["0.weight"], added)
    with pytest.raises(topkast.ConfigError, match=r"shape \(2, 2\), expected \(16, 12\)"):
        model[0].weight.data = torch.zeros(2, 2)


def test_freezing_by_the_weight_freezes_the_values() -> None:
    model = small()
    model[0].weight.requires_grad_(False)
    assert not sites(model)["0.weight"].original.requires_grad and not model[0].weight.requires_grad
    model[0].weight.requires_grad = True
    assert sites(model)["0.weight"].original.requires_grad and model[0].weight.requires_grad


def _again(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize(
    "options", [{}, {"reservoir": "host"}, {"reservoir": "disk"}, {"refresh_in_background": True}], ids=str
)
@pytest.mark.parametrize("steps", [0, 3, 4])
def test_pickled_models_train_on(options: dict[str, Any], steps: int) -> None:
    model = small(**options)
    train(model, steps)
    twin = _again(model)
    assert type(twin[0]) is type(model[0]) and equal(theta(twin), theta(model))
    train(model, 5, seed=1)
    train(twin, 5, seed=1)
    assert equal(theta(twin), theta(model))
    assert not any(
        one.original is two.original for one, two in zip(sites(model).values(), sites(twin).values(), strict=True)
    )


def test_a_compiled_model_is_pickled_as_a_plain_one_is(tmp_path: Path) -> None:
    model = topkast.compile(nn.Sequential(nn.Linear(12, 16), nn.LSTM(16, 9)), min_size=1, backend="aot_eager")
    torch.save(model, tmp_path / "model.pt")
    twin = torch.load(tmp_path / "model.pt", weights_only=False)
    assert twin._compiled_call_impl is None and equal(theta(twin), theta(model))
    x = torch.randn(4, 12)
    torch.testing.assert_close(twin(x)[0], model(x)[0])


def test_a_shallow_copy_of_a_layer_shares_its_weight() -> None:
    model = small()
    layer = copy.copy(model[0])
    train(model)
    assert type(layer) is type(model[0]) and torch.equal(layer.weight, model[0].weight)


def surgery_head(model: nn.Module) -> list[str]:
    model[2] = nn.Linear(16, 4)
    return ["0.weight"]


def surgery_wrap(model: nn.Module) -> list[str]:
    model[0] = nn.Sequential(model[0], nn.Dropout(0.0))
    return ["0.0.weight", "2.weight"]


def surgery_insert(model: nn.Module) -> list[str]:
    model.insert(0, nn.Linear(12, 12))
    return ["1.weight", "3.weight"]


def surgery_delete(model: nn.Module) -> list[str]:
    del model[2]
    return ["0.weight"]


def test_a_graph_module_says_how_to_be_saved() -> None:
    model = topkast.sparsify(torch.fx.symbolic_trace(CASES["functional"].model()), 0.8, 0.5, min_size=1)
    for each in (model, copy.deepcopy(model)):
        with pytest.raises(topkast.ModelError, match=r"topkast\.save"):
            pickle.dumps(each)
    layers = topkast.sparsify(torch.fx.symbolic_trace(nn.Sequential(nn.Linear(12, 16))), 0.8, 0.5, min_size=1)
    x = torch.randn(2, 12)
    assert torch.equal(_again(layers)(x), layers(x))


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.long)])
def test_a_recurrent_layer_s_weights_are_replaced(backend: str) -> None:
    model = topkast.compile(nn.LSTM(6, 8), 0.8, 0.5, min_size=1, backend=backend)
    x, plain = torch.randn(4, 6), nn.LSTM(6, 8)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        model(x)
        setattr(model, name, nn.Parameter(getattr(plain, name).detach().clone()))
    for name in ("bias_ih_l0", "bias_hh_l0"):
        setattr(model, name, nn.Parameter(getattr(plain, name).detach().clone()))
    assert type(model) is nn.LSTM and not sites(model)
    torch.testing.assert_close(model(x)[0], plain(x)[0])


def surgery_dense(model: nn.Module) -> list[str]:
    model[0].weight = nn.Parameter(torch.randn(16, 12))
    return ["2.weight"]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize(
    "cut", [surgery_head, surgery_wrap, surgery_insert, surgery_delete, surgery_dense], ids=lambda cut: cut.__name__
)
def test_surgery_after_conversion(cut: Callable[[nn.Module], list[str]], backend: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 9))
    topkast.compile(model, 0.8, 0.5, min_size=1, refresh_every=2, backend=backend)
    train(model, 2)
    names = cut(model)
    assert list(sites(model)) == names == list(topkast.masks(model))
    clocks = [site.step for site in sites(model).values()]
    train(model, 3)
    assert [site.step for site in sites(model).values()] == [clock + 3 for clock in clocks]
    x, plain = torch.randn(3, 12), topkast.densify(model)
    torch.testing.assert_close(plain(x), model(x), rtol=1e-5, atol=1e-6)
    assert [n for n, _ in plain.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert [row["name"] for row in topkast.report(model).sites] == names
    topkast.load_dense_state_dict(model, theta(model))
    topkast.save(model, tmp_path / "c")
    before = theta(model)
    train(model, 1)
    topkast.load(model, tmp_path / "c")
    assert equal(theta(model), before)


def test_state_dicts_of_dense_and_sparse_models_do_not_mix() -> None:
    model, plain = small(), topkast.densify(small())
    before = theta(model)
    for strict in (True, False):
        with pytest.raises(topkast.CheckpointError, match=r"topkast\.load_dense_state_dict"):
            model.load_state_dict(plain.state_dict(), strict=strict)
        with pytest.raises(
            topkast.CheckpointError, match=r"(?s)topkast\.sparsify\(model, \.\.\.\) first.*size mismatch"
        ):
            plain.load_state_dict(model.state_dict(), strict=strict)
        with pytest.raises(RuntimeError, match=r"^Error.* in loading"):
            plain.load_state_dict({"0.weight": torch.zeros(3)}, strict=strict)
    with pytest.raises(RuntimeError, match=r"topkast\.load_dense_state_dict"):
        model[0].load_state_dict(plain[0].state_dict())
    assert equal(theta(model), before)


@pytest.mark.parametrize("options", [{}, {"reservoir": "host"}, {"refresh_in_background": True}], ids=str)
@pytest.mark.parametrize("where", ["cpu", "meta", "float64"])
def test_load_state_dict_assigns(options: dict[str, Any], where: str) -> None:
    model = small(**options)
    train(model, 4)
    twin = small(**options)
    if where == "float64":
        model = model.double()
    if where == "meta":
        twin = twin.to("meta")
    twin.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    assert equal(theta(twin), theta(model))
    assert {p.dtype for p in twin.parameters()} == {p.dtype for p in model.parameters()}
    x = torch.randn(3, 12, dtype=model[0].bias.dtype)
    assert torch.equal(twin(x), model(x))
    if where == "float64":
        return
    train(twin, 3, seed=1)
    assert all(site.step == 7 and site.refreshed_at for site in sites(twin).values())


def test_a_cast_and_a_move_settle() -> None:
    model = small().double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        model(torch.randn(5, 12, dtype=torch.float64)).square().mean().backward()
        optimizer.step()
    assert all(site.refreshed_at == 2 for site in sites(model).values())


def test_a_checkpoint_of_format_1(tmp_path: Path) -> None:
    """Written before weights kept their names, with an optimizer of two groups."""
    expected = load_file(DATA / "format1_dense.safetensors")
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.GRU(8, 4))
    topkast.sparsify(model, 0.8, 0.5, min_size=1, refresh_every=4, seed=3)
    first = {id(p) for p in model[0].parameters()}
    groups = [list(model[0].parameters()), [p for p in model.parameters() if id(p) not in first]]
    groups[1].sort(key=lambda p: p.ndim)
    optimizer = torch.optim.AdamW([{"params": groups[0]}, {"params": groups[1], "lr": 0.02}], lr=0.5, weight_decay=0.1)
    topkast.load(model, DATA / "format1.safetensors", optimizer)
    for name, value in theta(model).items():
        assert torch.equal(value, expected[f"theta/{name}"])
    found = sites(model)
    for name, parameter in model.named_parameters():
        for kind in ("exp_avg", "exp_avg_sq"):
            moment = optimizer.state[parameter][kind]
            if name in found:
                moment = dense_slots(found[name], moment, found[name].sets()[1])
            assert torch.equal(moment, expected[f"{kind}/{name}"]), (kind, name)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.02]
    assert {site.step for site in found.values()} == {7}
    topkast.save(model, tmp_path / "c", optimizer)
    topkast.load(model, tmp_path / "c", optimizer)
