"""``print(topkast.report(model))`` fits a screen, and no name in it is cut."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from transformers import BertConfig, BertModel

import topkast
from topkast.compiler.report.report import Report
from topkast.compiler.report.shown.screen import LINES

WIDTHS = (80, 100, 120)


def shown(report: Any, width: int) -> list[str]:
    """The lines that a console of this width prints, as they are."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(report)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert all(len(line) <= width for line in lines)
    return lines


def bert() -> nn.Module:
    """Twelve layers, as in transformers' default configuration, but narrow."""
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
    return BertModel(BertConfig(**sizes, vocab_size=99, max_position_embeddings=16))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 80))


def stages() -> nn.Module:
    """Convolutions in stages of growing width: more groups of layers than a screen has lines."""
    widths = [8, 12, 16, 20, 24, 28, 32, 36]
    pairs = pairwise(widths)
    return nn.Sequential(*(block for pair in pairs for block in (Block(*pair), Block(pair[1], pair[1]))))


class Block(nn.Module):
    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(ins, outs, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(ins, outs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).relu() + self.shortcut(x)


def sparse(build: Callable[[], nn.Module], **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return topkast.sparsify(build(), **{"min_size": 64, **options})


def train(model: nn.Module, inputs: torch.Tensor, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(steps):
        out = model(inputs)
        getattr(out, "last_hidden_state", out).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(scope="module")
def of_bert() -> Report:
    model = sparse(bert, refresh_every=2)
    train(model, torch.randint(0, 99, (2, 5)))
    return topkast.report(model)


@pytest.fixture(scope="module")
def fresh_bert() -> Report:
    return topkast.report(sparse(bert))


@pytest.fixture(scope="module")
def broken_bert() -> Report:
    """A frozen encoder, and a NaN."""
    model = sparse(bert)
    model.encoder.requires_grad_(False)
    with torch.no_grad():
        model.pooler.dense.sparse_state.weight.original[0] = torch.nan
    return topkast.report(model)


BERT_LAYERS = {
    f"12 × encoder.layer.*.{name}"
    for name in (
        *("attention.self.query", "attention.self.key", "attention.self.value"),
        *("attention.output.dense", "intermediate.dense", "output.dense"),
    )
} | {"pooler.dense"}


@pytest.mark.parametrize("width", WIDTHS)
def test_bert_fits_a_screen(of_bert: Report, width: int) -> None:
    lines = shown(of_bert, width)
    text = "\n".join(lines)
    assert len(lines) <= LINES and "…" not in text
    assert {line.split("  ")[0].rstrip() for line in lines} >= BERT_LAYERS
    a, b = (re.search(rf"{label} \([a-z]+\) ([\d.]+)%", text) for label in "AB")
    assert a and b and 9 < float(a[1]) < 11 and 18 < float(b[1]) < 22
    totals = of_bert.totals
    own, flops = totals["bytes"]["sites"], totals["flops"]
    assert f"{own['sparse'] / own['dense']:.1%} of dense" in text
    assert f"{flops['sparse_training'] / flops['dense_training']:.1%} of dense in a training step" in text
    assert f"last at step 2, next at 4; churn: {totals['churn']['new_a']:.1%} of A" in text
    assert text.count("not fused (eager)") == 7


def test_the_details_name_every_layer(of_bert: Report) -> None:
    text = str(of_bert.details())
    assert "…" not in text
    cells = {line.split("│")[1].strip() for line in text.splitlines() if line.count("│") > 6}
    assert cells >= {row["name"] for row in of_bert.sites} and len(of_bert.sites) == 73
    assert all(len(line) <= 160 for line in text.splitlines())
    assert repr(of_bert.details()) == text and repr(of_bert) == str(of_bert)


def test_a_model_before_its_first_step(fresh_bert: Report) -> None:
    lines = shown(fresh_bert, 80)
    text = "\n".join(lines)
    assert len(lines) <= LINES and text.count("not run yet") == 7
    assert "after 0 steps" in text and "no optimizer step yet" in text and "none yet, next at step 100" in text


def test_a_small_model_has_a_short_report() -> None:
    model = topkast.compile(mlp(), min_size=64, backend="aot_eager")
    train(model, torch.randn(4, 64))
    lines = shown(topkast.report(model), 80)
    assert len(lines) == 10 and [line.split()[0] for line in lines[-3:-1]] == ["2", "0"]
    assert not any("not fused" in line or "not run yet" in line for line in lines)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_largest_groups_come_first_and_the_last_line_counts_the_others(width: int) -> None:
    report = topkast.report(sparse(stages, balanced=False))
    lines = shown(report, width)
    assert len(lines) <= LINES
    found = re.search(r"(\d+) more groups \((\d+) layers\): \.details\(\)", lines[-1])
    head = next(i for i, line in enumerate(lines) if line.startswith("layers "))
    names = [line.split()[0] for line in lines[head + 1 : -1]]
    assert found and int(found[2]) == len(report.sites) - len(names)
    sizes = {row["name"]: torch.Size(row["shape"]).numel() for row in report.sites}
    assert [f"{name}.weight" for name in names] == sorted(sizes, key=lambda name: -sizes[name])[: len(names)]


def test_equal_layers_are_one_line_only_if_all_is_equal() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(32, 32), nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 32)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    text = "\n".join(shown(topkast.report(sparse(Net)), 80))
    assert "2 × layers.*  " in text and "layers.1  " in text and "layers.2  " in text


def test_kernels_that_differ_between_equal_layers_are_counted(of_bert: Report) -> None:
    facts = of_bert.to_dict()
    for i, row in enumerate(row for row in facts["sites"] if row["name"].endswith("self.key.weight")):
        row["unfused"] = []
        row["fused"] = {"forward": {"native": 3}, "weight gradient": {"native" if i else "dense": 3}}
    text = "\n".join(shown(Report(**facts), 120))
    assert "native in 11; native, dense for weight gradient in 1" in text


@pytest.mark.parametrize("width", WIDTHS)
def test_warnings_are_grouped_and_the_most_important_come_first(broken_bert: Report, width: int) -> None:
    lines = shown(broken_bert, width)
    text = " ".join(" ".join(lines).split())
    said = [line for line in lines if line.startswith("warning")]
    assert len(lines) <= LINES and len(said) == 2
    assert "pooler.dense: holds NaN or infinite values" in said[0]
    assert "encoder.layer.0.attention.self.query: frozen" in said[1] and "the same of 71 more weights" in text
    assert "more group" in lines[-1] and ".details()" in lines[-1]


@pytest.mark.parametrize("width", WIDTHS)
def test_many_long_warnings_leave_room_and_are_counted(of_bert: Report, width: int) -> None:
    long = "word " * 200
    facts = {**of_bert.to_dict(), "warnings": [f"first {long}", *(f"{i} other {long}" for i in "abcdefgh")]}
    lines = shown(Report(**facts), width)
    assert len(lines) <= LINES
    assert next(line.split()[:2] for line in lines if line.startswith("warning")) == ["warning", "first"]
    assert any(".warnings" in line for line in lines) and "12 × encoder.layer.*." in "\n".join(lines)


@pytest.mark.parametrize("width", [*WIDTHS, 200])
def test_everything_is_long(of_bert: Report, width: int) -> None:
    """Long names, long reasons, long warnings and a long backend together; no name is cut."""
    facts, words = of_bert.to_dict(), "many words " * 40
    for row in facts["sites"]:
        row["name"] = f"a_module_with_a_long_name.{row['name']}"
        row["unfused"] = [{"product": "read", "why": words, "runs": 1}]
    facts |= {"warnings": [f"{i} {words}" for i in "abc"], "backend": words[:60], "dense": {"x": words}}
    lines = shown(Report(**facts), width)
    assert len(lines) <= LINES and all(len(line.rstrip()) <= 120 for line in lines)
    assert "more groups (" in lines[-1]
    if width >= 120:
        text = "\n".join(shown(Report(**{**facts, "warnings": []}), width))
        assert "12 × a_module_with_a_long_name.encoder.layer.*.intermediate.dense " in text


def test_long_names_are_broken_at_dots_and_stay_whole() -> None:
    class Deep(nn.Module):
        def __init__(self, depth: int) -> None:
            super().__init__()
            inside = Deep(depth - 1) if depth else nn.Linear(32, 32)
            self.add_module("a_rather_long_name_of_a_module", inside)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a_rather_long_name_of_a_module(x)

    model = sparse(lambda: Deep(5))
    lines = shown(topkast.report(model), 80)
    head = next(i for i, line in enumerate(lines) if line.startswith("layers "))
    parts = [line.split()[0] for line in lines[head + 1 : -1]]
    assert "".join(parts) + ".weight" == topkast.report(model).sites[0]["name"] and len(parts) > 1
    assert all(part.endswith(".") for part in parts[:-1])


def test_names_are_no_markup() -> None:
    model = nn.Sequential()
    model.add_module("[red]x[", nn.Linear(32, 32))
    report = topkast.report(topkast.sparsify(model, min_size=64))
    assert "[red]x[" in "\n".join(shown(report, 80)) and "[red]x[" in str(report.details())


def test_a_model_whose_sparse_layers_were_removed() -> None:
    model = sparse(mlp)
    model[0], model[2] = nn.Linear(64, 96), nn.Linear(96, 80)
    report = topkast.report(model)
    assert report.sites == [] and report.totals["refresh"] == {"last": 0, "next": None}
    assert "no weight is sparse" in str(report)
    assert "dense parameters" in str(report.details()) and "no weight is sparse" in report.to_html()


@pytest.mark.parametrize(
    ("options", "steps", "expected"),
    [
        ({"refresh_every": 5}, 0, 5),
        ({"refresh_every": 5}, 7, 10),
        ({"refresh_every": 100, "stop_exploring_after": 7}, 0, 7),
        ({"method": "static"}, 3, None),
        ({"method": "set", "refresh_every": 5, "stop_exploring_after": 5}, 3, None),
    ],
)
def test_the_next_refresh_is_when_one_comes(options: dict[str, Any], steps: int, expected: int | None) -> None:
    model = sparse(mlp, **options)
    train(model, torch.randn(4, 64), steps)
    assert topkast.report(model).totals["refresh"]["next"] == expected
    site = model[0].sparse_state.weight
    refreshed = site.refreshed_at
    for _ in range(12):
        train(model, torch.randn(4, 64), 1)
        if site.refreshed_at != refreshed:
            break
    assert site.refreshed_at == (refreshed if expected is None else expected)
