"""The pages show every table of stored results once, and each table says where its figures come from."""

from __future__ import annotations

import json
import re

import pytest

from topkast.tools.bench.tables import read
from topkast.tools.common.places import DOCS
from topkast.tools.docs.stored_tables import TABLES
from topkast.tools.study.shown.page_tables import FOLDER, churn


def test_each_table_is_on_one_page() -> None:
    pages = [page.read_text(encoding="utf-8") for page in sorted(DOCS.rglob("*.md"))]
    shown = [name for page in pages for name in re.findall(r"^```\{results\} ([\w-]+)$", page, re.M)]
    assert sorted(shown) == sorted(TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_as_many_cells_in_every_line(name: str) -> None:
    found = re.findall(r"(?:^\|.*\|\n)+", TABLES[name]() + "\n", re.M)
    assert found
    for one in found:
        widths = {line.count("|") for line in one.splitlines()}
        assert len(widths) == 1 and len(one.splitlines()) > 2


@pytest.mark.parametrize("name", [name for name in TABLES if name.startswith("bench")])
def test_a_benchmark_names_its_command_machine_and_date(name: str) -> None:
    machine = read("step")["machine"]
    last = TABLES[name]().splitlines()[-1]
    assert re.search(r"`python -m topkast\.tools\.bench \w+.*`, \d{4}-\d\d-\d\d; ", last)
    assert machine["cpu"] in last and "torch 2." in last


def test_figures_are_those_of_the_files() -> None:
    (row,) = [row for row in read("step")["rows"] if row["model"] == "gpt2" and row["block"] == [16, 1]]
    assert f"| {row['ratio']['median']:.2f} [" in TABLES["bench-steps"]()
    stored = json.loads((FOLDER / "dynamics" / "rate-1e-3.json").read_text())
    first, *_ = churn(FOLDER / "dynamics" / "rate-1e-3.json").lines
    mean = sum(seed["total"][0]["new_a"] for seed in stored["seeds"].values()) / len(stored["seeds"])
    assert first[:2] == [str(stored["seeds"]["0"]["total"][0]["step"]), f"{mean:.1%}"]
