"""Wrong arguments: each is refused by an error that names it, and nothing changes. ``tools/fuzz`` tries many more."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import topkast
from topkast.tools.fuzz.kinds.trained import net, trained
from topkast.tools.fuzz.kinds.wrong_arguments import check


@pytest.mark.parametrize(
    "case",
    [
        ("compile include", "number"),
        ("compile dynamic", "text"),
        ("compile fullgraph", "number"),
        ("compile mode", "text"),
        ("compile options", "dict"),
        ("compile seed", "large"),
        ("compile drop_fraction", "tensor"),
        ("step lr", "nan"),
        ("step lr", "text"),
        ("mask_distance match", "number"),
        ("interchangeable model", "object"),
        ("load_dense state_dict", "number"),
        ("save optimizer", "number"),
        ("save path", "number"),
        ("onnx.session path", "number"),
        ("export opset", "tensor"),
        ("advise block", "number"),
    ],
)
def test_a_wrong_argument_is_named(case: tuple[str, str]) -> None:
    check(case)


def test_mode_and_options_together_convert_nothing() -> None:
    model = net()
    with pytest.raises(topkast.ConfigError, match="mode or options, not both"):
        topkast.compile(model, min_size=1, mode="max-autotune", options={"max_autotune": True})
    assert type(model[0]) is nn.Linear and not hasattr(model, "_topkast")


def test_advise_wants_several_blocks() -> None:
    with pytest.raises(
        topkast.ConfigError, match=r"block: each value of the list, here block=16: must be two positive integers"
    ):
        topkast.advise(net(), lambda *_: 0.0, block=(16, 1))


def with_first(state: dict[str, Any], key: str, number: Any, dtype: torch.dtype) -> dict[str, Any]:
    changed = state[key].to(dtype, copy=True)
    changed.view(-1)[0] = number
    return {**state, key: changed}


@pytest.mark.parametrize(
    ("key", "number", "dtype", "message"),
    [
        ("0.weight", 1e300, torch.float64, "0.weight: holds numbers that are too large for float32"),
        ("0.bias", 1e300, torch.float64, "0.bias: holds numbers that are too large for float32"),
        ("0.bias", float("nan"), torch.float32, "0.bias: holds NaN"),
        ("0.weight", 1j, torch.complex64, "0.weight: complex numbers, expected float32"),
    ],
)
def test_dense_weights_that_do_not_fit_the_dtype(key: str, number: Any, dtype: torch.dtype, message: str) -> None:
    model, _ = trained()
    state = with_first(topkast.dense_state_dict(model, "all"), key, number, dtype)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(topkast.CheckpointError, match=message):
        topkast.load_dense_state_dict(model, state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.to("meta"), "on the meta device, which holds no numbers"),
        (lambda t: t.to_sparse(), "a tensor of layout sparse_coo, expected a dense tensor"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "a quantized tensor, expected plain numbers"),
    ],
)
@pytest.mark.parametrize("key", ["0.weight", "0.bias"])
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_dense_weights_that_hold_no_plain_numbers(key: str, change: Any, message: str) -> None:
    """These were errors of torch: no kernel for the layout, or Tensor.item() on the meta device."""
    model, _ = trained()
    state = topkast.dense_state_dict(model, "all")
    with pytest.raises(topkast.CheckpointError, match=f"{key}: .*{message}"):
        topkast.load_dense_state_dict(model, {**state, key: change(state[key])})


def test_a_rate_that_is_larger_than_any_float() -> None:
    model, _ = trained()
    with pytest.raises(topkast.ConfigError, match=r"lr=10+: must be a finite number"):
        topkast.step(model, lr=10**400)


def test_nan_is_refused_and_a_mask_of_infinities_is_not() -> None:
    model = net()
    with torch.no_grad():
        model[0].bias[0] = float("nan")
    with pytest.raises(topkast.ModelError, match=r"0\.bias: holds NaN, so every result"):
        topkast.sparsify(model, min_size=1)
    with torch.no_grad():
        model[0].bias[0] = 0.0
    model.mask = nn.Parameter(torch.full((3, 3), float("-inf")), requires_grad=False)
    topkast.sparsify(model, min_size=1)


def test_complex_weights_stay_dense_and_the_report_says_why() -> None:
    model = nn.Sequential(nn.Linear(8, 8, dtype=torch.complex64), nn.Linear(8, 8))
    topkast.sparsify(model, min_size=1, include=["0.weight", "1.weight"])
    assert model._topkast.dense["0.weight"].startswith("complex64 numbers")


@pytest.mark.parametrize("call", [topkast.save, topkast.load])
def test_an_optimizer_of_another_model(call: Callable[..., None], tmp_path: Any) -> None:
    model, optimizer = trained()
    topkast.save(model, tmp_path / "file", optimizer)
    with pytest.raises(topkast.ConfigError, match="optimizer: this AdamW holds no parameter of the model"):
        call(model, tmp_path / "file", trained()[1])


def test_layers_that_were_added_are_in_the_dense_state_dict() -> None:
    model, _ = trained()
    model.append(nn.Linear(8, 3))
    model[0].part = nn.Linear(2, 2)
    names = list(topkast.dense_state_dict(model))
    assert {"3.weight", "3.bias", "0.part.weight"} <= set(names)
    assert names == list(topkast.densify(model).state_dict())


def test_the_fuzzer_tries_every_option() -> None:
    from topkast.tools.fuzz.kinds.wrong_arguments import OPTIONS

    own = set(inspect.signature(topkast.compile).parameters) - {"model", "example_inputs", "torch_compile_options"}
    assert own <= set(OPTIONS)
