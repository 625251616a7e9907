"""A fine-tuner with Hugging Face: a trained dense model goes in; a folder to share and a file to deploy come out.

    python finetune.py FOLDER

A small encoder with random weights stands for the trained model, which would be a name on a hub. FOLDER/shared can be
loaded by plain transformers and by topkast, FOLDER/deployed is all that deploy.py needs.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, Trainer, TrainingArguments

import topkast


class Repeats(torch.utils.data.Dataset):
    """Sequences of words; the label says whether a sequence's first word is below 16."""

    def __len__(self) -> int:
        return 256

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(32, (12,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": (ids[0] < 16).long()}


def trained_elsewhere(folder: Path) -> Path:
    config = BertConfig(
        vocab_size=32,
        max_position_embeddings=16,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=128,
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


def trainer(model: torch.nn.Module, folder: Path, steps: int) -> Trainer:
    arguments = TrainingArguments(
        str(folder), max_steps=steps, learning_rate=3e-3, per_device_train_batch_size=32, logging_steps=10,
        save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    return topkast.watch.trainer(Trainer(model, arguments, train_dataset=Repeats()))


def main(folder: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(trained_elsewhere(folder / "dense"))
    model = topkast.compile(model, fwd=0.9, bwd=0.8, refresh_every=10, backend="aot_eager")
    tuning = trainer(model, folder / "run", 60)
    tuning.train()
    logged = [entry for entry in tuning.state.log_history if "loss" in entry]
    assert logged[-1]["loss"] < logged[0]["loss"] and 0.09 < logged[-1]["sparse/density_a"] < 0.11

    tuning.save_model(str(folder / "shared"))
    model.eval()
    batch = torch.stack([Repeats()[i]["input_ids"] for i in range(8)])
    colleague = AutoModelForSequenceClassification.from_pretrained(folder / "shared").eval()
    with torch.no_grad():
        wanted = model(input_ids=batch).logits
        torch.testing.assert_close(colleague(input_ids=batch).logits, wanted)
    again = topkast.from_pretrained(folder / "shared", backend="aot_eager")
    state = again.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    trainer(again, folder / "run", 10).train()

    place = folder / "deployed"
    place.mkdir()
    topkast.export(model, place / "model.onnx", {"input_ids": batch})
    shutil.copy(topkast.onnx.library_path(), place)
    np.savez(place / "example.npz", given=batch.numpy(), wanted=wanted.numpy())
    print(f"loss {logged[0]['loss']:.2f} to {logged[-1]['loss']:.2f}; the shared folder holds the same bits")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
