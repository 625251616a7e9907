"""``print(topkast.export(...))`` fits a screen and says only what the export changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

import topkast
from topkast.compiler.export.result import ExportResult
from topkast.passes.onnx.metadata import Shrunk, SiteResult

STAYS = "LayerNormalization reads all of it"


def of_bert(**changes: Any) -> ExportResult:
    """The result for twelve layers, such as a run has returned."""
    names = [f"encoder.layer.{i}.{name}.dense.weight" for i in range(12) for name in ("intermediate", "output")]
    sites = [SiteResult(name, "custom", "blocks of 1 x 1: faster", (64, 64), (1, 1), 0.1, 100, 1000) for name in names]
    sites += [
        SiteResult(f"constant_{i}", "dense", f"as compact it would take {i} bytes", (9, 9), None, 1, 9, 9)
        for i in range(5)
    ]
    sites.append(SiteResult("small", "dense", "it has no zeros", (2, 2), None, 1, 9, 9))
    shrunk = [
        Shrunk(name, (64, 64), 0, 1, 0, 0, [f"1 columns: {STAYS}"])
        if i >= 4
        else Shrunk(name, (64, 64), 0, 0, 2 * (i % 2), 3 * (1 - i % 2), [])
        for i, name in enumerate(names)
    ]
    facts = {
        "path": Path("bert.onnx"),
        **{"format": "auto", "precision": "fp32", "opset": 18, "bytes": 2_500, "dense_bytes": 10_000},
        **{"inputs": {"x": ["batch", 16]}, "outputs": {"y": ["batch", 16, 64]}, "max_error": 1.5e-6},
        **{"sites": sites, "shrunk": shrunk, "notes": ["a note"]},
    }
    return ExportResult(**{**facts, **changes})


def rows(result: ExportResult) -> dict[str, str]:
    """The sentences by label; a sentence of several lines is one."""
    found: dict[str, str] = {}
    last = ""
    for line in str(result).splitlines():
        first, _, rest = line.partition("  ")
        last = first or last
        found[last] = f"{found[last]} {rest.strip()}" if not first else rest.strip()
    return found


def test_bert_fits_a_screen() -> None:
    result = of_bert()
    lines = str(result).splitlines()
    assert len(lines) <= 15 and all(len(line) <= 100 for line in lines)
    assert rows(result) == {
        "file": "bert.onnx",
        "size": "2,500 bytes, 25.0% of 10,000 dense",
        "format": "auto, fp32, opset 18",
        "parity": "max error 1.50e-06 in ONNX Runtime",
        "inputs": "x[batch, 16]",
        "outputs": "y[batch, 16, 64]",
        "custom": "24 weights (blocks of 1 x 1: faster)",
        "dense": "5 weights (such as: as compact it would take 0 bytes), 1 weight (it has no zeros)",
        "removed": "4 rows and 6 columns of dead units: 2 × encoder.layer.*.intermediate.dense.weight, "
        "2 × encoder.layer.*.output.dense.weight",
        "not removed": f"20 dead units ({STAYS})",
        "note": "a note",
    }


def test_what_did_not_change_is_not_printed() -> None:
    said = rows(of_bert(shrunk=[], notes=[], max_error=None))
    assert not {"removed", "not removed", "note"} & set(said) and said["parity"] == "not verified"
    only_removed = [one for one in of_bert().shrunk if not one.kept]
    assert "not removed" not in rows(of_bert(shrunk=only_removed))


def test_many_reasons_and_names_are_counted() -> None:
    names = [f"layer_{letter}" for letter in "abcdefg"]
    reasons = ["why one", "why two", "why three", "why three"]
    sites = [SiteResult(why, "dense", why, (2, 2), None, 1, 9, 9) for why in reasons]
    said = rows(of_bert(shrunk=[Shrunk(name, (2, 2), 1, 0, 1, 0, []) for name in names], sites=sites))
    assert said["dense"] == "2 weights (why three), 1 weight (why one), 1 weight (other reasons)"
    assert said["removed"] == "7 rows and 0 columns of dead units: layer_a, layer_b, layer_c, layer_d and 3 more"


def test_a_small_file(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
    result = topkast.export(topkast.sparsify(model, min_size=64), tmp_path / "m.onnx", torch.randn(3, 32))
    said = rows(result)
    assert "m.onnx" in said["file"] and f"{result.bytes:,} bytes" in said["size"] and "max error" in said["parity"]
    assert len(str(result).splitlines()) <= 10


@pytest.mark.long
def test_the_file_of_a_bert(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
    model = topkast.sparsify(BertModel(BertConfig(**sizes, vocab_size=99, max_position_embeddings=16)), min_size=64)
    result = topkast.export(model, tmp_path / "m.onnx", {"input_ids": torch.randint(0, 99, (2, 8))})
    assert len(str(result).splitlines()) <= 15 and "0 rows and 0 columns" not in str(result)
