"""The fields of a call stand for the arguments of the operator, in its order."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from topkast.passes.aten.weight_call import WeightCall
from topkast.runtime.ops import grouped_mm, operators

NAMES = [name for schemas in (operators.SCHEMAS, grouped_mm.SCHEMAS) for name in schemas if "pack" not in name]


@pytest.mark.parametrize("name", NAMES)
def test_every_operator_is_read_by_name_and_written_again(name: str) -> None:
    operator, graph = getattr(torch.ops.topkast, name).default, fx.Graph()
    given = {argument.name: graph.placeholder(argument.name) for argument in operator._schema.arguments}
    call = WeightCall.of(graph.call_function(operator, tuple(given.values())))
    assert [*call.operands.values(), *call.args, *call.options.values()] == list(given.values())
    for field in ("row_ptr", "row_fwd", "cols", "key", "shape", "perm", "lead", "block", "n_fwd"):
        assert getattr(call, field) is given[field]
    assert call.values is given.get("values")
    assert {**call.operands, **call.options}.items() <= given.items()
    assert call.activations == [given[one] for one in ("dy", "x") if one in given]


def test_keywords_are_read_too() -> None:
    graph = fx.Graph()
    names = ("x", "values", "row_ptr", "row_fwd", "cols", "key", "shape", "perm", "lead", "block", "n_fwd", "impl")
    given = {name: graph.placeholder(name) for name in names}
    call = WeightCall.of(
        graph.call_function(torch.ops.topkast.spmm.default, (given["x"],), {k: v for k, v in given.items() if k != "x"})
    )
    assert call.values is given["values"] and call.options == {"impl": given["impl"]}
