"""``to_html``: one page that needs no other file, with every name escaped; and the part that a notebook shows."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from torch import nn

import topkast
from topkast.compiler.report.report import Report

HOSTILE = "<script>alert('x')</script>&\""


class Page(HTMLParser):
    """The tags, attributes and text of a page; every tag that needs an end has one."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, list[str | None]] = {}
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag != "meta":
            self._open.append(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self._open[-1] != "style":
            self.text.append(" ".join(data.split()))


@pytest.fixture(scope="module")
def trained() -> Report:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    model = topkast.compile(model, min_size=500, refresh_every=1, backend="aot_eager", bwd=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(4):
        model(torch.randn(8, 64)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return topkast.report(model)


def test_the_page_says_what_the_report_found(trained: Report) -> None:
    html = trained.to_html()
    page, totals = Page(html), trained.totals
    text = page.text
    assert "0, 2" in text and {"0.weight", "2.weight", "64×64"} <= set(text)
    for cost in ("sites", "model"):
        used = totals["bytes"][cost]
        assert f"{used['sparse'] / used['dense']:.1%} of dense" in text
    flops = totals["flops"]
    assert f"{flops['sparse_training'] / flops['dense_training']:.1%} of dense" in text
    (kernel,) = {kernel for row in trained.sites for ran in row["fused"].values() for kernel in ran}
    assert html.count(f'<td data-label="kernels">{kernel}</td>') == 3  # the group, and each of its layers
    churn = totals["churn"]
    assert churn["new_b"] > 0 and f"A {churn['new_a']:.1%}" in text and f"B {churn['new_b']:.1%}" in text
    assert "step 1" in text and "step 3" in text and page.tags.count("polyline") == 2
    assert "such as" not in " ".join(text) and "a bias" in text


def test_nothing_comes_from_elsewhere(trained: Report) -> None:
    html = trained.to_html()
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>") and page.tags[:2] == ["html", "head"]
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.tags)
    assert not {"src", "href", "onload", "onclick"} & set(page.attributes)
    assert "http" not in html and "@import" not in html and "url(" not in html


def test_a_notebook_shows_a_part_of_the_page(trained: Report) -> None:
    fragment, whole = trained._repr_html_(), trained.to_html()
    page = Page(fragment)
    assert page.tags[0] == "div" and not {"html", "body", "head"} & set(page.tags)
    assert set(page.text) < set(Page(whole).text)
    assert "0, 2" in page.text and "0.weight" not in page.text
    rules = fragment.partition("<style>")[2].partition("</style>")[0].split("}")
    selectors = [rule.partition("{")[0] for rule in rules if "{" in rule]
    assert all(".topkast-report" in selector or "@media" in selector for selector in selectors)


def test_hostile_names_are_escaped(trained: Report) -> None:
    model = nn.Sequential()
    model.add_module(HOSTILE, nn.Linear(64, 64))
    report = topkast.report(topkast.sparsify(model, min_size=64))
    facts: dict[str, Any] = {**report.to_dict(), "dense": {"x": HOSTILE}, "backend": HOSTILE}
    facts["warnings"] = [HOSTILE, f"{HOSTILE}.weight: {HOSTILE}", f"{HOSTILE}.weight: 2 {HOSTILE}"]
    for html in (Report(**facts).to_html(), Report(**facts)._repr_html_()):
        page = Page(html)
        assert "script" not in page.tags and "alert" in html and HOSTILE in page.text
    assert f"{HOSTILE}.weight" in Page(report.to_html()).text


def test_every_warning_is_on_the_page_even_if_only_one_of_its_kind_is_in_the_list(trained: Report) -> None:
    said = ["0.weight: 1 of 64 output rows", "2.weight: 2 of 64 output rows"]
    report = Report(**{**trained.to_dict(), "warnings": said})
    page = Page(report.to_html())
    assert set(said) <= set(page.text) and "0: 1 of 64 output rows; similar: 1 more weight" in page.text
    assert not set(said) & set(Page(report._repr_html_()).text)


def test_a_model_before_its_first_step() -> None:
    report = topkast.report(topkast.sparsify(nn.Linear(64, 64), min_size=64))
    page = Page(report.to_html())
    assert "svg" not in page.tags and "not run yet" in page.text and "-" in page.text
