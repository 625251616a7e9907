"""The listings of the page "How it works" come from a run and show what the passes do."""

from __future__ import annotations

import itertools
import re

import pytest

from topkast.passes.aten import JOINT
from topkast.tools.common.places import DOCS
from topkast.tools.docs import graphs
from topkast.tools.docs.readable import body, renamed


@pytest.fixture(scope="module")
def steps() -> list[graphs.Step]:
    return graphs.run()[1]


def products(lines: list[str]) -> list[str]:
    """The names of all operators that multiply, in order."""
    return re.findall(r" = (?:aten|topkast)\.(addmm|mm|spmm|spmm_t|sddmm)\(", "\n".join(lines))


def test_every_pass_has_its_section_in_order(steps: list[graphs.Step]) -> None:
    assert [step.rule for step in steps] == JOINT
    assert re.findall(r"^### (\w+)$", graphs.passes(), re.M) == [rule.__name__ for rule in JOINT]
    for before, after in itertools.pairwise(steps):
        assert before.after == after.before


def test_the_page_shows_every_part_in_order() -> None:
    page = (DOCS / "internals" / "how-it-works.md").read_text(encoding="utf-8")
    assert re.findall(r"^```\{graph\} (\w+)$", page, re.M) == list(graphs.PARTS)


def test_dense_products_become_sparse(steps: list[graphs.Step]) -> None:
    fuse = next(step for step in steps if step.rule.__name__ == "FuseMatmul")
    assert products(fuse.before) == ["addmm", "addmm", "mm", "mm", "mm"]
    assert products(fuse.after) == ["spmm", "spmm", "spmm_t", "sddmm", "sddmm"]
    assert fuse.counts == "rewritten: spmm: 2, sddmm: 2, spmm_t: 1"
    assert any("topkast.weight(" in line for line in fuse.before)
    assert not any("topkast.weight" in line for line in steps[-1].after)


def test_listings_are_readable(steps: list[graphs.Step]) -> None:
    shown = "\n".join([graphs.captured(), *(line for step in steps for line in (*step.before, *step.after))])
    assert "*up)" in shown and "up_values" in shown
    assert not re.search(r"primals|tangents|torch\.ops|L_|l_s|_index| = None$|tree_", shown, re.M)
    assert max(map(len, shown.splitlines())) <= 120


@pytest.mark.long
def test_the_file_is_shown_with_both_kinds_of_nodes() -> None:
    text = graphs.file()
    assert re.search(r"^-.* = Gemm\(.*up\.weight, up\.bias\)$", text, re.M)
    assert re.search(r"^\+.* = topkast\.SparseMatMul\w*\(.*up\.weight\.values", text, re.M)


def test_names_of_inputs() -> None:
    values, index = "l_self_modules_fc_parameters_weight_", "l_self_modules_fc_modules_sparse_state_modules_weight_key"
    names = renamed([values, index, "l_x_"])
    assert names == {values: "fc_values", index: "fc_index", "l_x_": "x"}
    code = (
        f"def forward(self, a):\n    mm = torch.ops.aten.mm.default(l_x_, {values});  l_x_ = None\n    return (mm,)\n"
    )
    assert body(code, names) == ["mm = aten.mm(x, fc_values)", "return (mm,)"]
