"""``format="auto"`` takes what is the fastest here: the choice by given times, and times that are really measured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import topkast
from topkast.passes.onnx import time_formats as timing
from topkast.passes.onnx.convert import Wanted
from topkast.passes.onnx.formats.record import Format
from topkast.passes.onnx.formats.weight import Weight
from topkast.passes.onnx.time_formats import time_formats
from topkast.runtime import native
from topkast.runtime.errors import ConfigError
from topkast.tests.support.models.product_files import dense_file
from topkast.tests.support.protobuf import convert

pytestmark = pytest.mark.skipif(native.path() is None, reason="the ONNX Runtime library is not built")


def balanced(unit: tuple[int, int], size: int = 512) -> np.ndarray:
    rng = np.random.default_rng(0)
    score = rng.random((size // unit[0], size // unit[1]))
    mask = score.argsort(axis=1).argsort(axis=1) < max(1, round(score.shape[1] * 0.1))
    return (np.kron(mask, np.ones(unit)) * rng.standard_normal((size, size))).astype(np.float32)


@pytest.mark.parametrize(
    "times, wanted, why",
    [
        ({"block": 0.5, "custom": 0.2, "dense": 0.6}, "custom", "the fastest that was timed here"),
        # As fast, but for noise.
        ({"block": 0.5, "custom": 0.46, "dense": 0.6}, "block", "the fastest that was timed here"),
        ({"block": 1.5, "custom": 1.2, "dense": 1.1}, "compact", "no format is faster than dense"),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_fastest_is_taken(times: dict[str, float], wanted: str, why: str, precision: str) -> None:
    def given(weight: Weight, formats: Sequence[Format]) -> dict[str, float]:
        return {format.name: times[format.name] for format in formats}

    rest: dict[str, Any] = {"blocks": [(32, 32)], "sizes": {"m": 64}, "timer": given}
    (site,) = convert(dense_file(balanced((32, 32)), None, ("m",)), Wanted("auto", precision, **rest))
    integers = {"dense"} if precision == "int8" else set[str]()  # dense float32 is what the times are divided by
    assert site.format == wanted and why in site.why
    assert site.times == {name: times[name] for name in {"block", "custom"} | integers}
    (site,) = convert(dense_file(balanced((32, 32)), None, ("m",)), Wanted("auto", precision, library=False, **rest))
    assert site.format != "custom" and site.times == {name: times[name] for name in {"block"} | integers}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("unit", [(32, 32), (4, 1)])
def test_measured(unit: tuple[int, int], precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Wanted("auto", precision, [unit], sizes={"m": 64}, timer=time_formats)
    (site,) = convert(dense_file(balanced(unit), None, ("m",)), wanted)
    integers = {"dense"} if precision == "int8" else set[str]()
    assert set(site.times) == ({"block", "custom"} if unit == (32, 32) else {"custom"}) | integers
    assert all(0 < share < np.inf for share in site.times.values())
    monkeypatch.setattr(timing, "_measured", lambda *_: pytest.fail("it was measured already"))
    (again,) = convert(dense_file(balanced(unit), None, ("m",)), wanted)
    assert again == site


def test_what_earlier_measurements_rule_out_is_not_timed() -> None:
    wanted = Wanted("auto", blocks=[(4, 1)], sizes={"m": 1}, timer=lambda *_: pytest.fail("it is too small"))
    (site,) = convert(dense_file(balanced((4, 1), 64), None, ("m",)), wanted)
    assert site.format == "compact" and "too small" in site.why and site.times == {}


@pytest.mark.parametrize("library", [True, False])
def test_export_says_the_times(library: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(128, 256, 3, padding=1), nn.Flatten(), nn.Linear(256 * 16, 256)
    model = topkast.sparsify(nn.Sequential(*layers), fwd=0.9, block=(16, 1), balanced=True)
    x = torch.randn(16, 128, 4, 4)
    result = topkast.export(model, tmp_path / "m.onnx", x, library=library, dynamic_shapes={"input": {}})
    names = {name for site in result.sites for name in site.times}
    assert names == ({"custom"} if library else set())
    assert ("timed here" in str(result)) == library
    assert library or all(site.format != "custom" for site in result.sites)
    (y,) = onnxruntime.InferenceSession(str(result.path)).run(None, {"input": x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(y), topkast.densify(model)(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arguments", [{"library": "no"}, {"library": False, "format": "custom"}])
def test_bad_library(arguments: dict[str, Any], tmp_path: Path) -> None:
    model = topkast.sparsify(nn.Linear(64, 64), min_size=1)
    with pytest.raises(ConfigError, match=re.escape(f"library={arguments['library']!r}")):
        topkast.export(model, tmp_path / "m.onnx", torch.randn(2, 64), **arguments)
    assert list(tmp_path.iterdir()) == []


def test_export_in_int8_by_times(tmp_path: Path) -> None:
    """The file in float32 that is compared with PyTorch has the same formats, and nothing is timed for it."""
    torch.manual_seed(0)
    model = topkast.sparsify(nn.Sequential(nn.Linear(512, 512), nn.ReLU()), fwd=0.9, block=(32, 32), balanced=True)
    result = topkast.export(model, tmp_path / "m.onnx", torch.randn(64, 512), precision="int8", library=False)
    (site,) = result.sites
    assert set(site.times) == {"block", "dense"} and site.precision == "int8" and result.int8_error is not None
    assert site.format in site.times or (site.format == "compact" and min(site.times.values()) >= 1)


@pytest.mark.parametrize(
    "ints, wanted, why",
    [
        ({"block": 0.4, "custom": 0.3, "dense": 0.6}, ("custom", "int8"), "the fastest that was timed here"),
        ({"block": 0.6, "custom": 0.6, "dense": 0.46}, ("block", "fp32"), "int8 is no faster"),  # but for noise
        ({"block": 1.5, "custom": 1.2, "dense": 1.1}, ("block", "fp32"), "int8 is no faster"),
        ({"block": 0.6, "custom": 0.6, "dense": 0.2}, ("dense", "int8"), "products of integers"),
    ],
)
def test_the_faster_precision_is_taken(ints: dict[str, float], wanted: tuple[str, str], why: str) -> None:
    floats = {"block": 0.5, "custom": 0.7}

    def given(weight: Weight, formats: Sequence[Format]) -> dict[str, float]:
        return {format.name: (ints if weight.precision == "int8" else floats)[format.name] for format in formats}

    how: dict[str, Any] = {"blocks": [(32, 32)], "sizes": {"m": 64}}
    (site,) = convert(dense_file(balanced((32, 32)), None, ("m",)), Wanted("auto", "auto", timer=given, **how))
    assert (site.format, site.precision) == wanted and why in site.why
    timed = {"block, fp32": 0.5, "custom, fp32": 0.7}
    assert site.times == timed | {f"{name}, int8": share for name, share in ints.items()}
    (site,) = convert(dense_file(balanced((32, 32)), None, ("m",)), Wanted("auto", "auto", **how))
    assert site.precision == "fp32" and "int8 was not timed" in site.why


@pytest.mark.parametrize("share, precision", [(0.4, "int8"), (0.95, "fp32")])
def test_the_precision_of_a_dense_layer_is_timed_too(share: float, precision: str) -> None:
    full = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32)

    def given(weight: Weight, formats: Sequence[Format]) -> dict[str, float]:
        return {format.name: share for format in formats}

    (site,) = convert(dense_file(full, None, ("m",)), Wanted("auto", "auto", sizes={"m": 64}, timer=given))
    assert (site.format, site.precision, site.times) == ("dense", precision, {"dense, int8": share})


def test_a_dense_layer_is_really_timed() -> None:
    full = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32)
    (site,) = convert(dense_file(full, None, ("m",)), Wanted("auto", "auto", sizes={"m": 64}, timer=time_formats))
    assert 0 < site.times["dense, int8"] < np.inf


def wide(row: int) -> np.ndarray:
    """A matrix with a number that would take all of int8's range in one row."""
    matrix = balanced((32, 32))
    matrix[row, np.flatnonzero(matrix[row])[0]] = 1000
    return matrix


def test_of_a_weight_that_int8_would_spoil_auto_takes_float() -> None:
    def given(weight: Weight, formats: Sequence[Format]) -> dict[str, float]:
        return {format.name: 0.2 if weight.precision == "int8" else 0.5 for format in formats}

    wanted = Wanted("auto", "auto", [(32, 32)], sizes={"m": 64}, timer=given)
    (site,) = convert(dense_file(wide(3), None, ("m",)), wanted)
    assert site.precision == "fp32" and "row 3: its largest weight is 1e+03" in site.why


@pytest.mark.parametrize("precision", ["auto", "int8"])
def test_export_with_a_choice_of_precision(precision: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.Linear(512, 512))
    model = topkast.sparsify(net, fwd=0.9, block=(32, 32), balanced=True)
    names = ["0.weight", "2.weight"]
    with torch.no_grad():
        for name in names:
            dense = topkast.dense_state_dict(model)
            dense[name][5, dense[name][5].nonzero()[0]] = 1000
            topkast.load_dense_state_dict(model, dense)
    how: dict[str, Any] = {"precision": precision, "library": False}
    if precision == "int8":
        with pytest.raises(ConfigError, match=r"(?s)0\.weight, row 5.*2\.weight, row 5"):  # both at once
            topkast.export(model, tmp_path / "m.onnx", torch.randn(64, 512), **how)
        assert list(tmp_path.iterdir()) == []
        return
    result = topkast.export(model, tmp_path / "m.onnx", torch.randn(64, 512), **how)
    assert [site.precision for site in result.sites if site.name in names] == ["fp32", "fp32"]
    (other,) = (site for site in result.sites if site.name not in names)
    assert set(other.times) == {"block, fp32", "block, int8", "dense, int8"}
    least = min(other.times["block, int8"], other.times["dense, int8"]) < other.times["block, fp32"]
    assert least or other.precision == "fp32"
    assert (result.int8_error is not None) == (other.precision == "int8")
    with pytest.raises(ConfigError, match='precision="auto": is for format="auto"'):
        topkast.export(model, tmp_path / "n.onnx", torch.randn(64, 512), precision="auto", format="block")
