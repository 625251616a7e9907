"""Every format of topkast.export, run again here apart from the export's own check: with the library and without."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import topkast
from topkast.compiler.cli.main import main
from topkast.compiler.export import parity
from topkast.passes.onnx import metadata, writer
from topkast.passes.onnx.blocks import MAX_BLOCK, encode, fitting
from topkast.passes.onnx.convert import Wanted
from topkast.passes.onnx.formats import AUTO, FORMATS, block, compact
from topkast.runtime import native
from topkast.tests.runtime.onnx.test_onnx_library import check
from topkast.tests.support.models.product_files import dense_file, run, session, sparse_matrix
from topkast.tests.support.protobuf import convert
from topkast.tests.support.stated import assert_stated, assert_valid
from topkast.tests.support.truth.builders import CASES

pytestmark = pytest.mark.skipif(native.path() is None, reason="the ONNX Runtime library is not built")
NAMES = [AUTO, *FORMATS]


def stock(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def outputs(made: onnxruntime.InferenceSession, *tensors: Tensor) -> Tensor:
    names = [value.name for value in made.get_inputs()]
    feeds = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
    return torch.from_numpy(made.run(None, feeds)[0])


def plain(model: nn.Module, *tensors: Tensor) -> Tensor:
    with torch.no_grad():
        output = copy.deepcopy(model).eval()(*tensors)
    return getattr(output, "logits", output)


def check_stock(model: onnx.ModelProto, x: np.ndarray, matrix: np.ndarray, bias: np.ndarray | None, where: str) -> None:
    """ONNX Runtime's own products, by the bound that the export itself holds them to."""
    made = onnxruntime.InferenceSession(model.SerializeToString())
    a, w, b = torch.from_numpy(x), torch.from_numpy(matrix), torch.from_numpy(bias) if bias is not None else 0.0
    exact = a.double() @ w.double().t() + (b.double() if isinstance(b, Tensor) else b)
    error, bound = parity._error(outputs(made, a), a @ w.t() + b, exact)
    assert error <= bound, where


def kinds(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


@pytest.mark.long
@pytest.mark.parametrize(
    "name, format, precision, unit",
    [
        ("mlp", "sparse_initializer", "fp16", (1, 1)),
        ("attention", "custom", "fp32", (2, 1)),
        ("tied", "custom", "fp32", (1, 3)),
        ("twice", "compact", "fp16", (1, 1)),
        ("functional", "custom", "fp32", (1, 1)),
        ("hf_conv1d", "auto", "fp32", (1, 1)),
        ("gpt2", "auto", "fp16", (1, 1)),
        ("cnn", "custom", "fp16", (4, 1)),
        ("cnn", "block", "fp32", (1, 1)),
        ("cnn", "compact", "fp32", (1, 1)),
        ("cnn", "sparse_initializer", "fp32", (1, 1)),
        ("cnn", "auto", "fp32", (1, 1)),
        ("lstm", "custom", "fp32", (1, 1)),
        ("experts", "custom", "fp32", (1, 1)),
    ],
)
def test_models(name: str, format: str, precision: str, unit: tuple[int, int], tmp_path: Path) -> None:
    case = CASES[name]
    model = topkast.sparsify(case.model(), 0.85, min_size=100, block=unit)
    ((inputs, _),) = case.batches(1)
    result = topkast.export(model, tmp_path / "m.onnx", inputs, format=format, precision=precision)
    assert result.format == format and result.max_error is not None
    if precision == "fp16":  # what the file holds is the model with its sparse weights rounded
        rounded = {
            key: value.half().float() if key in topkast.masks(model) else value
            for key, value in topkast.dense_state_dict(model).items()
        }
        model = case.model()
        model.load_state_dict(rounded)
    more = tuple(torch.cat([t, t[:1]]) for t in inputs) if name != "experts" else inputs
    expected = plain(model, *more)
    assert_stated(onnx.load(result.path), dict(zip(result.inputs, (t.numpy() for t in more), strict=True)))
    for made in (stock(result.path), topkast.onnx.session(result.path)):
        torch.testing.assert_close(outputs(made, *more), expected, rtol=1e-4, atol=1e-5)
    sites = [site for site in result.sites if site.density < 0.5]
    assert sites and all(site.why for site in result.sites)
    assert (result.path.stat().st_size, result.bytes) == (result.bytes, result.path.stat().st_size)
    products = {"cnn", "mlp", "encoder", "attention", "tied", "functional", "gpt2", "lstm"}
    if format == "custom":
        ours = {kind for kind in kinds(result.path) if kind.startswith("Sparse")}
        assert bool(ours) == (name != "experts")
        assert any(kind.startswith("SparseConv") for kind in ours) == (name == "cnn")
        wanted = {"custom"} if name in products else {"dense"} if name == "experts" else {"custom", "dense"}
        assert {site.format for site in sites} == wanted
    if format in ("compact", "sparse_initializer"):
        assert any(site.format == format for site in sites)
        assert all(site.bytes < site.dense_bytes for site in sites)


@pytest.mark.parametrize("format", NAMES)
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    "unit, lead", [((1, 1), ("m",)), ((4, 1), ("a", "b")), ((16, 16), ("m",)), ((32, 32), (2, "b"))]
)
def test_one_product(format: str, half: bool, unit: tuple[int, int], lead: tuple[Any, ...]) -> None:
    matrix, bias = sparse_matrix(96, 160, unit, 0.1), np.linspace(-1, 1, 96, dtype=np.float32)
    matrix[-unit[0] :] = matrix[unit[0] : 2 * unit[0]]  # no full row: it would make the others' padding too long
    if half:
        matrix = matrix.astype(np.float16).astype(np.float32)
    model = dense_file(matrix, bias, lead)
    (site,) = convert(model, Wanted(format, "fp16" if half else "fp32", [unit]))
    x = np.random.default_rng(0).standard_normal([2 if size != "m" else 5 for size in lead] + [160]).astype(np.float32)
    assert_stated(model, {"x": x}, f"{format} {unit}")
    if site.format == "custom":
        check(run(model, x=x), x, matrix, bias, f"{format} {unit}")
    check_stock(model, x, matrix, bias, f"{format} {unit}")
    stored = sum(numpy_helper.to_array(t).nbytes for t in model.graph.initializer)
    assert site.format == "dense" or (site.bytes < matrix.nbytes / 3 and stored < matrix.nbytes / 2.5)
    assert (
        half == any(t.data_type == onnx.TensorProto.FLOAT16 for t in model.graph.initializer)
        or model.graph.sparse_initializer
    )


@pytest.mark.parametrize("rows", [1, 300])
@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("lead", [("m",), ("m", 2)])
def test_both_forms_of_block(rows: int, even: bool, lead: tuple[Any, ...]) -> None:
    """For few rows of x and for many; with as many blocks in each row and with more groups of rows."""
    rng = np.random.default_rng(0)
    mask = np.zeros((8, 8), bool)
    for i, row in enumerate(mask):
        row[rng.permutation(8)[: 2 if even or i < 4 else 4]] = True
    matrix = (np.kron(mask, np.ones((32, 32))) * rng.standard_normal((256, 256))).astype(np.float32)
    weight = encode(matrix, (32, 32))
    assert len(set(np.diff(weight.row_ptr))) == (1 if even else 2) and len(block.grouped(weight).rows) == (
        1 if even else 2
    )
    model = dense_file(matrix, None, lead)
    (site,) = convert(model, Wanted("block", "fp32", [(32, 32)], sizes={"m": rows}))
    assert site.format == "block" and "MatMul" in {node.op_type for node in model.graph.node}
    assert any("row_major" in t.name for t in model.graph.initializer) == (rows == 300)
    assert_valid(model)
    for count in (rows, 3):  # the form is chosen once, and is right for any number
        x = rng.standard_normal((count, *lead[1:], 256)).astype(np.float32)
        check_stock(model, x, matrix, None, f"{rows} {even} {count}")


@pytest.mark.parametrize(
    "unit, density, rows, wanted, why",
    [
        ((1, 1), 0.1, 32, "custom", "blocks of 1 x 1: faster with topkast's library"),
        ((1, 1), 0.1, 1, "custom", "faster with topkast's library"),
        ((1, 1), 0.2, None, "dense", "faster only up to a density of 11%, with x of 1 row"),
        ((1, 1), 0.4, 32, "dense", "faster only up to a density of 22%, with x of 32 rows"),
        ((4, 1), 0.2, 1, "custom", "blocks of 4 x 1"),
        ((32, 32), 0.1, 1, "block", "faster in any ONNX Runtime"),
        ((32, 32), 0.1, None, "block", "faster in any ONNX Runtime"),
    ],
)
def test_auto_takes_what_is_faster(
    unit: tuple[int, int], density: float, rows: int | None, wanted: str, why: str
) -> None:
    rng = np.random.default_rng(0)
    score = rng.random((1024 // unit[0], 1024 // unit[1]))
    mask = score.argsort(axis=1).argsort(axis=1) < round(score.shape[1] * density)
    matrix = (np.kron(mask, np.ones(unit)) * rng.standard_normal((1024, 1024))).astype(np.float32)
    model = dense_file(matrix, None, ("m",))
    sizes = {} if rows is None else {"m": rows}
    (site,) = convert(model, Wanted("auto", blocks=[unit], sizes=sizes))
    # What is not faster is packed, if that is smaller.
    assert site.format == ("compact" if wanted == "dense" else wanted) and why in site.why
    check_stock(model, rng.standard_normal((3, 1024)).astype(np.float32), matrix, None, f"{unit} {rows}")


@pytest.mark.parametrize(
    "dim, format", [("64*m", "custom"), ("m*64", "custom"), ("m", "compact"), ("m + 64", "compact")]
)
def test_auto_reads_products_of_dynamic_sizes(dim: str, format: str) -> None:
    """Models that lay out their tokens in one row; a size that is not understood is taken for one."""
    matrix = sparse_matrix(256, 256, (1, 1), 0.08)
    (site,) = convert(dense_file(matrix, None, (dim,)), Wanted("auto", sizes={"m": 1}))
    assert site.format == format and ("x of 1 row" in site.why) == (format == "compact")


def test_auto_leaves_small_products_alone() -> None:
    (site,) = convert(dense_file(sparse_matrix(96, 128, (4, 1), 0.1), None), Wanted("auto", blocks=[(4, 1)]))
    assert site.format == "compact" and "too small" in site.why


def test_what_block_refuses() -> None:
    uneven = np.zeros((256, 256), np.float32)
    uneven[:32] = 1
    for matrix, unit, why in [
        (uneven, (32, 32), "too different numbers of blocks"),
        (np.pad(sparse_matrix(96, 160, (16, 16), 0.1), ((0, 4), (0, 0))), (16, 16), "no multiple of its blocks"),
        (sparse_matrix(96, 160, (4, 1), 0.1), (4, 1), "lose to dense with blocks of 4 x 1"),
    ]:
        (site,) = convert(dense_file(matrix, None), Wanted("block", "fp32", [unit]))
        assert site.format == "dense" and why in site.why


def test_constants_that_no_product_reads() -> None:
    """Of no element, or used by no node: they stay, and nothing else changes."""
    for format in ("auto", "custom", "block", "compact"):
        model = dense_file(sparse_matrix(64, 48, (16, 16), 0.3), None)
        for name, array in (("empty", np.zeros((0, 4), np.float32)), ("alone", np.eye(4, dtype=np.float32))):
            model.graph.initializer.append(numpy_helper.from_array(array, name))
        sites = {site.name: site for site in convert(model, Wanted(format))}
        assert sites["empty"].format == "dense"
        assert "no node uses it" in sites["alone"].why or format == "compact"


def test_an_add_inside_a_branch_stays_there() -> None:
    """The product is the main graph's, the sum is not."""
    matrix = sparse_matrix(16, 24, (1, 1), 0.2)
    model = dense_file(matrix, None)
    model.graph.node[0].output[0] = "h"
    model.graph.initializer.append(numpy_helper.from_array(np.ones(16, np.float32), "b"))
    branches = {
        f"{name}_branch": helper.make_graph(
            [node], name, [], [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)]
        )
        for name, node in (
            ("then", helper.make_node("Add", ["h", "b"], ["then_y"])),
            ("else", helper.make_node("Identity", ["b"], ["else_y"])),
        )
    }
    model.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    model.graph.node.append(helper.make_node("If", ["flag"], ["y"], **branches))
    convert(model, Wanted("custom"))
    assert [node.op_type for node in model.graph.node] == ["SparseMatMul", "If"]
    x = np.random.default_rng(0).standard_normal((3, 24)).astype(np.float32)
    assert_stated(model, {"x": x, "flag": np.array(True)})
    (y,) = session(model).run(None, {"x": x, "flag": np.array(True)})
    np.testing.assert_allclose(y, x @ matrix.T + 1, rtol=1e-5, atol=1e-5)


def test_gaps_wider_than_a_byte() -> None:
    matrix = np.zeros((300, 700), np.float32)
    matrix[0, 255], matrix[0, 256], matrix[1, 3], matrix[299, 699] = 1, 2, 3, 4
    gaps, values = compact.pack(encode(matrix, (1, 1)))
    assert gaps[0] == 255 and len(gaps) == len(values) > 4 and sorted(values[values != 0]) == [1, 2, 3, 4]
    for dense in (matrix, np.zeros((30, 70), np.float32)):
        model = dense_file(dense, None)
        (site,) = convert(model, Wanted("compact"))
        assert site.format == "compact"
        (y,) = onnxruntime.InferenceSession(model.SerializeToString()).run(
            None, {"x": np.eye(dense.shape[1], dtype=np.float32)}
        )
        assert np.array_equal(y, dense.T)


def test_the_block_that_fits_is_found() -> None:
    for unit in [(1, 1), (4, 1), (1, 4), (16, 16)]:
        matrix = sparse_matrix(64, 96, unit, 0.2)
        assert fitting(matrix, [unit], MAX_BLOCK).block == unit
        assert fitting(matrix.T, [unit], MAX_BLOCK).block == unit[::-1]  # tied weights are used both ways
    assert fitting(sparse_matrix(256, 256, (128, 96), 0.3), [(128, 96)], MAX_BLOCK).block == (64, 48)


def test_large_weights_lie_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "INLINE_LIMIT", 4000)
    model = topkast.sparsify(nn.Sequential(nn.Linear(60, 90), nn.ReLU(), nn.Linear(90, 50)), 0.8, min_size=1)
    for format, files in (("custom", 2), ("dense", 2)):
        folder = tmp_path / format
        folder.mkdir()
        result = topkast.export(model, folder / "m.onnx", torch.randn(2, 60), format=format)
        assert len(list(folder.iterdir())) == files and result.bytes == sum(f.stat().st_size for f in folder.iterdir())
        x = torch.randn(3, 60)
        torch.testing.assert_close(outputs(topkast.onnx.session(result.path), x), plain(model, x))


def test_the_file_says_what_is_in_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = topkast.sparsify(CASES["cnn"].model(), 0.9, min_size=100)
    result = topkast.export(model, tmp_path / "m.onnx", torch.randn(2, 3, 16, 16), format="custom", precision="fp16")
    assert re.search(r"^custom +\d+ weights", str(result), re.MULTILINE)
    record = metadata.read(stock(result.path).get_modelmeta().custom_metadata_map)
    assert record is not None and record["format"] == "custom" and record["precision"] == "fp16"
    assert record["version"] == topkast.__version__ and record["max_error"] == result.max_error
    assert record["sites"] == json.loads(json.dumps([dataclasses.asdict(site) for site in result.sites]))
    (linear,) = [site for site in result.sites if site.format == "custom" and len(site.shape) == 2]
    assert any(site.format == "custom" and len(site.shape) == 4 for site in result.sites)
    assert linear.name == "9.weight" or linear.name == "10.weight"
    assert linear.density == pytest.approx(0.1, abs=0.01)
    assert main(["inspect", str(result.path)]) == 0
    said = capsys.readouterr().out
    assert linear.name in said and "custom" in said and f"{result.bytes:,} bytes" in said
    whole = result.bytes + sum(site.dense_bytes - site.bytes for site in result.sites)
    assert f"{result.bytes / whole:.0%} of the {whole:,} of a dense file" in said


@pytest.mark.parametrize("attributes", [{"alpha": 2.0}, {"beta": 2.0}, {"transA": 1}, {}])
def test_a_product_that_is_scaled_or_turned_stays(attributes: dict[str, Any]) -> None:
    """Only Gemm as PyTorch exports it is x Wᵀ + bias."""
    matrix, bias = sparse_matrix(32, 32, (4, 1), 0.1), np.linspace(-1, 1, 32, dtype=np.float32)
    model = dense_file(matrix, bias, (32,))
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("Gemm", ["x", "w", "b"], ["y"], **attributes))
    before, x = model.SerializeToString(), np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
    convert(model, Wanted("custom", "fp32", [(4, 1)]))
    assert [node.op_type for node in model.graph.node] == ["Gemm" if attributes else "SparseMatMul"]
    made, expected = session(model), onnxruntime.InferenceSession(before).run(None, {"x": x})[0]
    np.testing.assert_allclose(made.run(None, {"x": x})[0], expected, rtol=1e-4, atol=1e-5)


def test_inspect_refuses_other_files(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    onnx.save(dense_file(np.ones((3, 4), np.float32), None), tmp_path / "other.onnx")
    (tmp_path / "text.onnx").write_text("not a graph")
    for name, why in [
        ("other.onnx", "was not written by topkast"),
        ("text.onnx", "no ONNX file"),
        ("none.onnx", "No such file"),
    ]:
        assert main(["inspect", str(tmp_path / name)]) == 2
        assert why in capsys.readouterr().out


def test_bad_precision(tmp_path: Path) -> None:
    model = topkast.sparsify(nn.Linear(20, 30), 0.5, min_size=1)
    with pytest.raises(topkast.ConfigError, match="precision='int4'"):
        topkast.export(model, tmp_path / "m.onnx", torch.randn(2, 20), precision="int4")
    theta = torch.full((30, 20), 1e6)
    topkast.load_dense_state_dict(model, {"weight": theta, "bias": torch.zeros(30)})
    with pytest.raises(topkast.ConfigError, match="weight holds 1e\\+06, float16 ends at 65504"):
        topkast.export(model, tmp_path / "m.onnx", torch.randn(2, 20), precision="fp16")
    assert list(tmp_path.iterdir()) == []
