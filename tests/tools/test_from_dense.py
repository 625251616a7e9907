"""The recipe from a trained dense encoder, on a tiny encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import topkast
from topkast.tools.from_dense.docstrings import pairs

transformers: Any = pytest.importorskip("transformers")
from topkast.tools.from_dense.distil import Encoder, dense_encoder, distil, outputs, quality, sparse_encoder  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128
    )
    place = tmp_path_factory.mktemp("dense")
    transformers.BertModel(config).save_pretrained(place)
    return place


def batches(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(50, (4, 6), generator=generator) for _ in range(count)]
    return [{"input_ids": one, "attention_mask": torch.ones_like(one)} for one in ids]


def test_pairs_are_questions_and_answers() -> None:
    found = pairs(("networkx",))
    assert len(found) > 100 and found == pairs(("networkx",))
    assert all(len(question.split()) >= 5 and len(answer.split()) >= 20 for question, answer in found)


def test_quality_counts_a_tie_against_the_answer(folder: Path) -> None:
    teacher = dense_encoder(folder)
    given = batches(2)
    assert quality(teacher, given, given) == {"first": 1.0, "mrr": 1.0}
    assert quality(lambda input_ids, attention_mask: torch.ones(4, 3), given, given) == {"first": 0.0, "mrr": 0.125}


@pytest.mark.parametrize("method", ["topkast", "gmp"])
def test_training_brings_the_student_nearer_to_the_teacher(folder: Path, method: str) -> None:
    teacher, training = dense_encoder(folder), batches(12)
    student = sparse_encoder(folder, 0.8, len(training), method)
    assert isinstance(student, Encoder)
    losses = distil(student, training, outputs(teacher, training), 3e-3)
    totals = topkast.report(student.model).totals
    assert totals["step"] == 12 and totals["refresh"]["last"] > 0
    untrained = sparse_encoder(folder, 0.8, len(training), "one-shot")
    assert losses[-1] < distil(untrained, training[:1], outputs(teacher, training[:1]), 0.0)[0]
