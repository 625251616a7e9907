"""``dynamic_shapes``: what is asked for is what the file has, by name, and at sizes that the examples do not have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import topkast
from topkast.compiler.export import parity
from topkast.passes.onnx.convert import Wanted
from topkast.tests.passes.onnx.test_onnx_zoo import feeds, trials
from topkast.tests.support.models.exported import ZOO
from topkast.tests.support.protobuf import convert
from topkast.tests.support.stated import assert_stated

OUTPUTS: dict[str, dict[str, list[Any]]] = {
    "gpt2": {"logits": ["batch", "length", 41]},
    "bert": {"last_hidden_state": ["batch", "length", 32]},
    "t5": {"logits": ["batch", "after", 41], "encoder_last_hidden_state": ["batch", "length", 32]},
    "vit": {"last_hidden_state": ["batch", 17, 32]},
    "cnn": {"output": ["batch", 10]},
}


def symbols(model: onnx.ModelProto) -> set[str]:
    """Every name in the sizes that a file states."""
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    dims = [dim.dim_param for value in values for dim in value.type.tensor_type.shape.dim]
    return {name for dim in dims for name in re.findall(r"[A-Za-z_]\w*", dim)}


@pytest.mark.long
@pytest.mark.parametrize("name", OUTPUTS)
def test_names_are_kept(name: str, tmp_path: Path) -> None:
    """In every format; and each size may be another than in the examples."""
    case = ZOO[name]
    model = topkast.sparsify(case.model(), 0.75, min_size=100, block=case.block)
    path, given = tmp_path / "m.onnx", case.inputs(**case.sizes)
    result = topkast.export(model, path, given, format="dense", dynamic_shapes=case.dynamic)
    for key, axes in case.dynamic.items():
        assert result.inputs[key] == [axes.get(axis, size) for axis, size in enumerate(given[key].shape)]
    assert result.outputs == OUTPUTS[name] and result.max_error is not None
    table = ["length is at most 512: the model's code takes no larger"] if name == "bert" else []
    assert result.notes == table
    expected = trials(case, model)
    for format in ("auto", "custom", "block", "compact", "sparse_initializer", "dense"):
        file = onnx.load(path)
        convert(file, Wanted(format, blocks=[case.block], sizes=case.sizes))
        assert symbols(file) <= set(case.sizes), format
        made = onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
        assert {value.name: value.shape for value in made.get_outputs()} == OUTPUTS[name], format
        assert {value.name: value.shape for value in made.get_inputs()} == result.inputs, format
        for inputs, plain, exact in expected:
            assert_stated(file, {key: t.numpy() for key, t in inputs.items()}, format)
            y = torch.from_numpy(made.run(None, feeds(made, inputs))[0])
            error, bound = parity._error(y, plain, exact)
            assert error <= bound, f"{format} {[list(t.shape) for t in inputs.values()]}"


class Rows(nn.Module):
    """[rows, length, 12] and a nested [rows, 7]: rows are the same in both, any length goes."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(12, 30), nn.Linear(7, 30)

    def forward(self, a: Tensor, pair: dict[str, list[Any]], scale: float = 1.0) -> Tensor:
        return self.left(a).sum(1) * scale + self.right(pair["b"][0])


def rows(size: int = 4) -> dict[str, Any]:
    return {"a": torch.randn(size, 5, 12), "pair": {"b": [torch.randn(size, 7), 3]}}


NAMED = {"a": ["rows", "length", 12], "pair_b_0": ["rows", 7]}
INNER = {"b": [{0: "rows"}, None]}


@pytest.mark.long
@pytest.mark.parametrize(
    "asked, inputs",
    [
        ({"a": {0: "rows", 1: "length"}, "pair": INNER}, NAMED),
        ({"a": ("rows", "length", None), "pair": {"b": (("rows", None),)}}, NAMED),
        (({0: "rows", 1: "length"}, INNER), NAMED),
        ([("rows", "length", 12), INNER], NAMED),
        ({"pair_b_0": {0: "rows"}, "a": {0: "rows", 1: "length", 2: Dim.STATIC}}, NAMED),
        ({"a": {0: Dim("rows"), 1: Dim("length", min=2, max=9)}, "pair": INNER}, NAMED),
        ({"a": {0: Dim.DYNAMIC, 1: Dim.AUTO}, "pair": {"b": [{0: Dim.AUTO, 1: Dim.AUTO}]}},
         {"a": ["a_0", "a_1", 12], "pair_b_0": ["a_0", 7]}),
        ({"a": {0: "rows", 1: Dim.DYNAMIC(max=8)}, "pair": INNER}, {**NAMED, "a": ["rows", "a_1", 12]}),
        ({"a": {1: "length"}}, {"a": [4, "length", 12], "pair_b_0": [4, 7]}),
        ({"a": None}, {"a": [4, 5, 12], "pair_b_0": [4, 7]}),
    ],
)  # fmt: skip
def test_ways_to_ask(asked: Any, inputs: dict[str, list[Any]], tmp_path: Path) -> None:
    model = topkast.sparsify(Rows(), 0.5, min_size=1, include=["*.weight"])
    result = topkast.export(model, tmp_path / "m.onnx", rows(), format="dense", dynamic_shapes=asked, verify=False)
    assert result.inputs == inputs and result.outputs == {"output": [inputs["a"][0], 30]} and not result.notes
    session = onnxruntime.InferenceSession(result.path)
    given = rows(6 if isinstance(inputs["a"][0], str) else 4)
    if isinstance(inputs["a"][1], str):
        given["a"] = given["a"][:, :3]
    y = session.run(None, {"a": given["a"].numpy(), "pair_b_0": given["pair"]["b"][0].numpy()})[0]
    plain = topkast.densify(model).eval()
    with torch.no_grad():
        ours, exact = plain(**given), plain.double()(given["a"].double(), {"b": [given["pair"]["b"][0].double()]})
    error, bound = parity._error(torch.from_numpy(y), ours, exact)
    assert error <= bound


@pytest.mark.parametrize(
    "asked, why",
    [
        ({"c": {0: "rows"}}, r"dynamic_shapes: no argument 'c' in example_inputs, which have 'a', 'pair', 'pair_b_0'"),
        ({"a": {3: "x"}}, r"dynamic_shapes\['a'\]\[3\]: the example is \[4, 5, 12\], its axes are from 0 to 2"),
        ({"a": {-1: "x"}}, r"\['a'\]\[-1\]: .* from 0 to 2"),
        ({"a": {"0": "x"}}, r"\['a'\]\['0'\]: .* from 0 to 2"),
        ({"a": {0: "n", 1: "n"}}, r"\['a'\]\[1\]: 'n' is 5 in the example, and 4 at .*\['a'\]\[0\]; .*equal sizes"),
        ({"a": {2: "width"}}, r"\['a'\]\[2\]: 'width': the model's code fixes this axis at 12; leave it out"),
        ({"a": {2: Dim.DYNAMIC}}, r"\['a'\]\[2\]: the model's code fixes this axis at 12"),
        ({"a": {0: "rows"}}, r"\['a'\]\[0\]: 'rows': .* fixes this axis at 4; .* another input .* same name"),
        ({"a": {0: "rows"}, "pair": {"b": [{0: "other"}]}}, r"takes 'other' and 'rows' .* for one size; .* same name"),
        ({"a": {0: "a name"}}, r"\['a'\]\[0\]: 'a name', a name must be a valid identifier, such as 'batch'"),
        ({"a": {0: 5}}, r"\['a'\]\[0\]: 5, must be a name, .* the size in the example as an integer \(here 4\)"),
        ({"a": {0: True}}, r"\['a'\]\[0\]: True, must be a name"),
        ({"a": {1: Dim("l", max=4)}}, r"\['a'\]\[1\]: the example's size is 5 there, its limits are 0 to 4"),
        ({"a": {0: "rows"}, "pair": {"b": [{0: Dim("rows", max=9)}]}}, r"'rows' has other limits than at"),
        ({"a": "rows"}, r"dynamic_shapes\['a'\]: 'rows', must be a dict from axes to a name"),
        ({"a": ("rows",)}, r"\['a'\]: 1 entries, the example is \[4, 5, 12\]"),
        ({"pair": {"c": None}}, r"\['pair'\]: no 'c' in the example, which has 'b'"),
        ({"pair": {"b": [None, {0: "x"}]}}, r"\['pair'\]\['b'\]\[1\]: .* the example there is 3, no tensor"),
        ((None,) * 4, r"dynamic_shapes: 4 entries for 2 arguments \(a, pair\)"),
        ({"pair_b_0": "rows"}, r"dynamic_shapes\['pair_b_0'\]: 'rows', must be a dict"),
        ("batch", r"dynamic_shapes: a str, must be a dict by argument name, or a tuple by position"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(asked: Any, why: str, tmp_path: Path) -> None:
    model = topkast.sparsify(Rows(), 0.5, min_size=1, include=["*.weight"])
    with pytest.raises(topkast.ExportError, match=why):
        topkast.export(model, tmp_path / "m.onnx", rows(), dynamic_shapes=asked)
    assert not list(tmp_path.iterdir())


def test_an_example_without_elements_is_refused(tmp_path: Path) -> None:
    model = topkast.sparsify(Rows(), 0.5, min_size=1, include=["*.weight"])
    with pytest.raises(
        topkast.ExportError, match=r"\['a'\]\[0\]: the example's size is 0 there; give one of at least 1"
    ):
        topkast.export(model, tmp_path / "m.onnx", rows(0), dynamic_shapes={"a": {0: "rows"}})


class Table(nn.Module):
    """Positions from a table of 16; two rows of y for each of x."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 30)
        self.register_buffer("table", torch.randn(16, 12))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.layer(x + self.table[: x.shape[0]]).repeat(2, 1) + self.layer(y)


@pytest.mark.long
def test_limits_and_relations_are_found(tmp_path: Path) -> None:
    model = topkast.sparsify(Table(), 0.5, min_size=1)
    example = torch.randn(5, 12), torch.randn(10, 12)

    def export(one: Any, two: Any, example: Any = example) -> Any:
        shapes = {"x": {0: one}, "y": {0: two}}
        return topkast.export(model, tmp_path / "m.onnx", example, format="dense", dynamic_shapes=shapes)

    result = export("short", "long")
    assert result.inputs == {"x": ["short", 12], "y": ["long", 12]} and result.outputs == {"output": ["long", 30]}
    assert "short is at most 16: the model's code takes no larger" in result.notes
    assert not any("not compared" in note for note in result.notes), "other sizes keep the relation"
    assert symbols(onnx.load(result.path)) <= {"short", "long"}
    assert not any("short" in note for note in export(Dim("short", max=8), "long").notes)
    short = Dim("short", max=8)
    assert export(short, 2 * short).inputs["x"] == ["short", 12]
    with pytest.raises(topkast.ExportError, match=r"sizes of 1 to 32 are asked for, the model's code takes 1 to 16"):
        export(Dim("short", max=32), "long")
    largest = export("short", "long", (torch.randn(16, 12), torch.randn(32, 12)))
    assert not any("not compared" in note for note in largest.notes), "smaller ones are tried instead"


def test_examples_of_one(tmp_path: Path) -> None:
    """Their sizes may vary all the same, also where one tensor is given twice."""
    model = topkast.sparsify(nn.Bilinear(6, 6, 9), 0.5, min_size=1, include="*")
    x = torch.randn(1, 6)
    names = {"input1": {0: "batch"}, "input2": {0: "batch"}}
    result = topkast.export(model, tmp_path / "m.onnx", (x, x), format="dense", dynamic_shapes=names)
    assert [shape[0] for shape in (*result.inputs.values(), *result.outputs.values())] == ["batch"] * 3


class Short(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.shape[0] > 1 else -self.layer(x)


@pytest.mark.long
def test_one_that_is_something_else(tmp_path: Path) -> None:
    """torch's trace holds from 2 on; a file that is wrong at 1 is refused, unless 1 is not asked for."""
    model, path = topkast.sparsify(Short(), 0.5, min_size=1), tmp_path / "m.onnx"
    with pytest.raises(topkast.ExportError, match=r"does not agree.*on inputs x\[1, 6\]; torch.export.Dim\(name, min="):
        topkast.export(model, path, torch.randn(3, 6), dynamic_shapes=[{0: "batch"}])
    assert not path.exists()
    assert topkast.export(model, path, torch.randn(3, 6), dynamic_shapes=[{0: Dim("batch", min=2)}]).inputs == {
        "x": ["batch", 6]
    }


def test_what_the_code_fixes_is_a_number_in_the_file(tmp_path: Path) -> None:
    model = topkast.sparsify(nn.Linear(6, 9), 0.5, min_size=1)
    shapes = {"input": {0: Dim.AUTO, 1: Dim.AUTO}}
    result = topkast.export(model, tmp_path / "m.onnx", torch.randn(3, 6), dynamic_shapes=shapes)
    assert result.inputs == {"input": ["input_0", 6]} and result.outputs == {"output": ["input_0", 9]}
