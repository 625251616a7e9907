"""topkast.export in int8: whole files, what stays in float, what is measured, and bad input that leaves nothing."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import topkast
from topkast.compiler.cli.main import main
from topkast.passes.onnx.quantise import quantise
from topkast.runtime.errors import ConfigError
from topkast.runtime.reference.int8 import spmm_int8, spmm_int8_of_tensor

SIZES = (64, 96, 96, 64)


def mlp(block: tuple[int, int] = (4, 1), fwd: float = 0.5) -> nn.Module:
    torch.manual_seed(0)
    layers = [part for i, o in itertools.pairwise(SIZES) for part in (nn.Linear(i, o), nn.ReLU())]
    return topkast.sparsify(nn.Sequential(*layers[:-1]), fwd=fwd, block=block, min_size=1, balanced=True)


def run(path: Path, *tensors: Tensor) -> list[Tensor]:
    made = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {value.name: t.numpy() for value, t in zip(made.get_inputs(), tensors, strict=True)}
    return [torch.tensor(y) for y in made.run(None, feeds)]


@pytest.mark.parametrize("format, block", [("custom", (4, 1)), ("custom", (1, 1)), ("block", (16, 16))])
def test_a_whole_file_equals_integer_arithmetic_in_pytorch(format: str, block: tuple[int, int], tmp_path: Path) -> None:
    model, x = mlp(block), torch.randn(7, 64)
    result = topkast.export(model, tmp_path / "m.onnx", (x,), format=format, precision="int8")
    assert {(site.format, site.precision) for site in result.sites} == {(format, "int8")}
    assert not any(one.rows or one.columns for one in result.shrunk), "otherwise the weights are others"
    product = spmm_int8 if format == "custom" else spmm_int8_of_tensor
    y = torch.randn(7, 64)
    x = y.clone()
    for i, layer in enumerate(part for part in topkast.densify(model).children() if isinstance(part, nn.Linear)):
        weight = quantise(layer.weight.detach().numpy(), "w")
        y = product(y, torch.tensor(weight.values), torch.tensor(weight.scale), layer.bias.detach())
        y = y.relu() if i < 2 else y
    assert torch.equal(run(result.path, x)[0], y)
    assert result.max_error is not None and result.max_error < 1e-4
    assert result.int8_error is not None and 0 < result.int8_error < 0.05
    assert "products exact to the bit" in str(result) and "of the same file in float32" in str(result)
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"] and result.bytes == result.path.stat().st_size


@pytest.mark.long
def test_files_that_unpack(tmp_path: Path) -> None:
    """Products are in float32, so the outputs are those of the model with rounded weights."""
    model, x = mlp(), torch.randn(7, 64)
    plain = topkast.densify(model)
    with torch.no_grad():
        for layer in plain.children():
            if isinstance(layer, nn.Linear):
                weight = quantise(layer.weight.numpy(), "w")
                layer.weight.copy_(torch.tensor(weight.values * weight.scale[:, None]))
        expected = plain(x)
    for format in ("compact",):
        result = topkast.export(model, tmp_path / f"{format}.onnx", (x,), format=format, precision="int8")
        assert {site.precision for site in result.sites} == {"int8"}
        torch.testing.assert_close(run(result.path, x)[0], expected, rtol=1e-5, atol=1e-6)


def test_the_file_says_its_precision(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = mlp()
    result = topkast.export(
        model, tmp_path / "m.onnx", torch.randn(2, 64), format="custom", precision="int8", keep_float=["2.*"]
    )
    (text,) = [entry.value for entry in onnx.load(result.path).metadata_props if entry.key == "topkast"]
    record = json.loads(text)
    assert record["int8_error"] == result.int8_error
    assert {site["name"]: site["precision"] for site in record["sites"]} == {
        "0.weight": "int8",
        "2.weight": "fp32",
        "4.weight": "int8",
    }
    assert main(["inspect", str(result.path)]) == 0
    said = capsys.readouterr().out
    assert "int8 changes the outputs by" in said and "keep_float names it" in " ".join(said.split())
    assert any("keep_float names it" in site.why for site in result.sites if site.name == "2.weight")


@pytest.mark.long
@pytest.mark.parametrize("format, opset", [("custom", 23), ("block", 20), ("compact", 19)])
def test_opsets(format: str, opset: int, tmp_path: Path) -> None:
    model = mlp((16, 16) if format == "block" else (4, 1))
    result = topkast.export(
        model, tmp_path / "m.onnx", torch.randn(3, 64), format=format, precision="int8", opset=opset
    )
    assert result.opset == opset and result.int8_error is not None


def tiny_gpt2() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"n_embd": 64, "n_layer": 1, "n_head": 2, "vocab_size": 99, "n_positions": 16}
    config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    return topkast.sparsify(GPT2LMHeadModel(config), fwd=0.5, block=(4, 1), min_size=64)


@pytest.mark.long
def test_a_transformer_with_labels(tmp_path: Path) -> None:
    """Weights that lie [in, out], and a loss that the written file does not give."""
    model = tiny_gpt2()
    ids = [torch.randint(0, 99, (2, 8)) for _ in range(2)]
    result = topkast.export(
        model,
        tmp_path / "m.onnx",
        {"input_ids": ids[0]},
        format="custom",
        precision="int8",
        keep_float="*.c_attn.weight",
        calibration=[{"input_ids": i, "labels": i} for i in ids],
    )
    found = {site.name.removesuffix(".T").removeprefix("transformer.h.0."): site.precision for site in result.sites}
    assert found["attn.c_attn.weight"] == "fp32" and found["attn.c_proj.weight"] == "int8"
    assert found["transformer.wte.weight"] == "int8"  # the head, tied and dense
    assert list(result.outputs) == ["logits"]
    measured = result.calibration
    assert measured is not None and measured.measure == "loss" and measured.batches == 2 and measured.loss is not None
    losses = []
    with torch.no_grad():
        for i in ids:
            logits = run(result.path, i)[0][:, :-1].reshape(-1, 99)
            losses.append(nn.functional.cross_entropy(logits, i[:, 1:].reshape(-1)).item())
            assert abs(topkast.densify(model).eval()(i, labels=i).loss.item() - measured.loss) < 0.2
    assert measured.int8 == pytest.approx(np.mean(losses) / measured.loss - 1, abs=2e-6)
    assert measured.dense_int8 is not None and abs(measured.dense_int8) < 0.1
    assert "loss" in str(result) and "2 batches" in str(result)


def test_calibration_measures_the_file(tmp_path: Path) -> None:
    model, batches = mlp(), [torch.randn(5, 64) for _ in range(3)]
    result = topkast.export(
        model, tmp_path / "m.onnx", torch.randn(2, 64), format="custom", precision="int8", calibration=iter(batches)
    )
    with torch.no_grad():
        wanted = torch.cat([topkast.densify(model)(x) for x in batches])
    given = torch.cat([run(result.path, x)[0] for x in batches])
    measured = result.calibration
    assert measured is not None and measured.measure == "outputs" and measured.loss is None
    assert measured.int8 == pytest.approx(((given - wanted).norm() / wanted.norm()).item(), rel=1e-4)
    assert measured.dense_int8 is not None and 0 < measured.dense_int8 < 0.2 and measured.kept == []
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.long
def test_a_budget_keeps_the_most_costly_weights(tmp_path: Path) -> None:
    model, batches = mlp(), [torch.randn(5, 64) for _ in range(2)]
    rest: dict[str, Any] = {"format": "custom", "precision": "int8", "calibration": batches}

    def export(keep_float: float | list[str] | None) -> Any:
        return topkast.export(model, tmp_path / "m.onnx", torch.randn(2, 64), keep_float=keep_float, **rest)

    whole = export(None).calibration.int8
    assert export(whole * 1.01).calibration.kept == []
    result = export(whole * 0.9)
    measured = result.calibration
    assert measured.kept and measured.int8 <= whole * 0.9
    assert set(measured.costs) == {"0.weight", "2.weight", "4.weight"}
    assert measured.kept == sorted(measured.costs, key=lambda name: -measured.costs[name])[: len(measured.kept)]
    for site in result.sites:
        assert (site.precision == "fp32") == (site.name in measured.kept)
        assert (f"alone changes the outputs by {measured.costs[site.name]:.2%}" in site.why) == (
            site.name in measured.kept
        )
    # What a weight costs is what the file with this weight alone in int8 changes.
    (first,) = measured.kept[:1]
    others = [name for name in measured.costs if name != first]
    assert export(others).calibration.int8 == pytest.approx(measured.costs[first], rel=1e-3)
    nothing = export(whole * 1e-6)
    assert {site.precision for site in nothing.sites} == {"fp32"} and len(nothing.calibration.kept) == 3


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"keep_float": 0.1}, "keep_float=0.1: a budget is measured with calibration="),
        ({"keep_float": -1.0}, "keep_float=-1.0: a budget must be a number above 0"),
        ({"keep_float": float("nan")}, "keep_float=nan: a budget must be"),
        ({"keep_float": True}, "keep_float=True: must be a list of globs"),
        ({"keep_float": [1]}, "keep_float=a list: must be a list of globs"),
        ({"keep_float": ["head.*"]}, "keep_float='head.*': matches no parameter; the sparse ones are 0.weight"),
        ({"calibration": torch.ones(2, 64)}, "calibration=a Tensor: must be a list"),
        ({"calibration": {"input": torch.ones(2, 64)}}, "calibration=a dict: must be a list"),
        ({"calibration": 3}, "calibration=3: must be a list"),
        ({"calibration": []}, "calibration: holds no batch"),
        ({"calibration": [torch.ones(2, 63)]}, "calibration: the model does not run on batch 0"),
        ({"calibration": ["text"]}, "calibration: the model does not run on batch 0"),
        ({"precision": "fp32", "keep_float": ["0.*"]}, "keep_float=a list: is for precision='int8'"),
        ({"precision": "fp16", "calibration": [1]}, "calibration=a list: is for precision='int8'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        topkast.export(mlp(), tmp_path / "m.onnx", torch.randn(2, 64), **{"precision": "int8"} | arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "value, message", [(float("nan"), "2.weight holds NaN or infinities"), (1e5, "2.weight, row 0: its largest weight")]
)
def test_a_bad_weight_is_named(value: float, message: str, tmp_path: Path) -> None:
    model = mlp((1, 1))
    with torch.no_grad():
        model[2]._parameters["weight"].view(-1)[0] = value  # a row begins with the forward set
    for format in ("custom", "compact"):
        with pytest.raises(ConfigError, match=re.escape(message) + ".*keep_float='2.weight'"):
            topkast.export(model, tmp_path / "m.onnx", torch.randn(2, 64), format=format, precision="int8")
        assert list(tmp_path.iterdir()) == []
    if value == value:
        rest: dict[str, Any] = {"format": "custom", "precision": "int8", "keep_float": ["2.weight"]}
        topkast.export(model, tmp_path / "m.onnx", torch.randn(2, 64), **rest)
