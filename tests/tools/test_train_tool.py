"""topkast.tools.demo: its parts one by one, and one tiny run of the whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from topkast.tools.common.measure import churn, memory, quartiles, weight_flops
from topkast.tools.common.text import TextError, in_validation, load_text


def test_standard_library_is_split_by_file() -> None:
    text = load_text(None, 128)
    assert text.train_files > 500 and text.validation_files > 50
    assert 0.02 < len(text.validation) / len(text.train) < 0.3
    x, y = text.batch(torch.Generator().manual_seed(0), 4, 32)
    assert x.shape == y.shape == (4, 32) and x.dtype == torch.int64 and int(x.max()) < 256
    assert torch.equal(x[:, 1:], y[:, :-1])


def test_folder_holds_each_file_once(tmp_path: Path) -> None:
    names = [f"part{i}.txt" for i in range(40)]
    for name in names:
        (tmp_path / name).write_text(name + "\n")
    (tmp_path / "picture.bin").write_bytes(b"\0\1\2")
    (tmp_path / ".hidden").write_text("not this")
    text = load_text(tmp_path, 4)
    train, validation = (bytes(side.tolist()).decode().split() for side in (text.train, text.validation))
    assert sorted(train + validation) == sorted(names)
    assert set(validation) == {name for name in names if in_validation(name)}


def test_single_file_is_split_by_position(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(bytes(range(100)))
    text = load_text(tmp_path / "a.txt", 5)
    assert text.train.tolist() == list(range(90)) and text.validation.tolist() == list(range(90, 100))


@pytest.mark.parametrize("length, content", [(128, b"short"), (1, b"")])
def test_too_little_text_is_refused(tmp_path: Path, length: int, content: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(TextError, match="bytes of training text"):
        load_text(tmp_path / "a.txt", length)


def test_missing_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TextError, match="no such file"):
        load_text(tmp_path / "absent", 8)


def test_memory_counts_every_tensor_once() -> None:
    model = nn.Linear(10, 6)
    model.register_buffer("index", torch.zeros(5, dtype=torch.int32))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 10)).sum().backward()
    optimizer.step()
    values = 4 * (60 + 6)
    expected = {"values": values, "gradient": values, "optimizer": values, "index + reservoir": 20}
    assert memory(model, optimizer) == expected | {"total": 3 * values + 20}


def test_weight_flops_follow_the_sets() -> None:
    a, b = torch.arange(100) < 10, torch.arange(100) < 20
    assert weight_flops({"w": 100}, {}) == {"forward": 200, "training": 600}
    assert weight_flops({"w": 100, "head": 50}, {"w": (a, b)}) == {"forward": 120, "training": 80 + 300}


def test_churn_is_the_share_that_is_new() -> None:
    before = {"w": (torch.tensor([True, False, False]), torch.tensor([True, True, False]))}
    after = {"w": (torch.tensor([False, True, False]), torch.tensor([False, True, True]))}
    assert churn(before, after) == (1.0, 0.5)
    assert churn(before, before) == (0.0, 0.0)


def test_quartiles() -> None:
    assert quartiles([3.0]) == (3.0, 3.0, 3.0)
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--fwd", "0.5", "--bwd", "0.6"], "0 <= bwd <= fwd < 1"),
        (["--fwd", "1.0"], "0 <= bwd <= fwd < 1"),
        (["--block", "16"], "ROWSxCOLUMNS"),
        (["--steps", "0"], "whole number above 0"),
        (["--device", "nowhere"], "--device nowhere"),
        (["--model", "bert"], "invalid choice"),
    ],
)
def test_bad_arguments_say_what_is_allowed(words: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    from topkast.tools.demo import __main__ as train

    with pytest.raises(SystemExit, match="2"):
        train.arguments(words)
    assert message in capsys.readouterr().err


@pytest.mark.long
def test_tiny_run_writes_everything(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from topkast.tools.demo import __main__ as train

    size = ["--model", "gpt2-nano", "--steps", "5", "--refresh-every", "2", "--batch", "2", "--length", "16"]
    assert train.main([*size, "--backend", "eager", "--out", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    dense, sparse = summary["models"]["dense"], summary["models"]["sparse"]
    assert sparse["training curve"][0] != dense["training curve"][0]  # the sparse model is sparse from step one
    assert len(sparse["training curve"]) == len(dense["training curve"]) == 5
    assert [step for step, _, _ in summary["churn"]] == [2, 4]
    assert sparse["bytes"]["gradient"] < dense["bytes"]["gradient"]
    assert sparse["weight FLOPs per token"]["training"] < dense["weight FLOPs per token"]["training"]
    assert summary["export"]["max error on text"] < 1e-4
    assert summary["export"]["bytes"]["sparse"] < summary["export"]["bytes"]["dense"]
    assert all(summary["export"]["run"]["seconds"][side] > 0 for side in ("dense", "sparse"))
    for name in ("model.onnx", "dense.onnx"):
        assert (tmp_path / name).stat().st_size == summary["export"]["bytes"]["sparse" if name[0] == "m" else "dense"]
    for name in ("run.svg", "churn.svg"):
        assert "</svg>" in (tmp_path / name).read_text()
    said = capsys.readouterr().out
    assert "dense beside sparse" in said and "the exports in ONNX Runtime" in said
