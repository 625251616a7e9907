"""``Trainer`` of transformers resumes from a shared folder, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import topkast
from topkast.runtime.errors import CheckpointError
from topkast.runtime.state.model import sites

transformers: Any = pytest.importorskip("transformers")
pytest.importorskip("accelerate")


class Counting(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = (torch.arange(8) + 7 * index) % 50
        return {"input_ids": ids, "labels": ids}


def trainer(folder: Path, seed: int = 0, best: bool = False, **options: Any) -> Any:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 50, "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    convert = {"fwd": 0.8, "bwd": 0.5, "refresh_every": 2, "explore": "random", "min_size": 1, **options}
    topkast.sparsify(model, **convert)
    evaluation: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    evaluation |= {"metric_for_best_model": "eval_loss", "greater_is_better": True}
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=6, save_steps=2, learning_rate=1e-2, per_device_train_batch_size=8,
        report_to=[], use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, **(evaluation if best else {}),
    )  # fmt: skip
    return transformers.Trainer(model, arguments, train_dataset=Counting(), eval_dataset=Counting())


def test_resumes_bit_for_bit(tmp_path: Path) -> None:
    """Also with sets that are drawn at random, and without a seed in the config: the folder holds the seed."""
    through = trainer(tmp_path)
    through.train()
    checkpoint = tmp_path / "checkpoint-4"
    name = "transformer.h.0.mlp.c_fc.weight"
    assert load_file(checkpoint / "model.safetensors")[name].shape == (16, 64), "the dense model"
    resumed = trainer(tmp_path, seed=5)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    state = resumed.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in through.model.state_dict().items())
    for name, site in sites(through.model).items():
        assert (site.rule.seed, site.churn) == (sites(resumed.model)[name].rule.seed, sites(resumed.model)[name].churn)
    fresh = topkast.from_pretrained(checkpoint)
    assert torch.equal(fresh.state_dict()[name], topkast.from_pretrained(checkpoint).state_dict()[name])
    refused = trainer(tmp_path, fwd=0.9)
    with pytest.raises(CheckpointError, match=r"fwd: file 0\.8, model 0\.9"):
        refused.train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / "topkast.safetensors").unlink()
    with pytest.raises(CheckpointError, match="a dense weight"):
        trainer(tmp_path).train(resume_from_checkpoint=str(checkpoint))


def test_the_best_model_comes_back(tmp_path: Path) -> None:
    run = trainer(tmp_path, best=True)
    run.train()
    best = Path(run.state.best_model_checkpoint)
    assert best.name == "checkpoint-2", "the loss falls, and the largest loss counts as the best"
    expected = topkast.from_pretrained(best).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in run.model.state_dict().items())
