"""Hugging Face's Trainer on a sparse GPT-2, and on again from a checkpoint of its own.

The Trainer makes AdamW, the schedule and clipping, and writes checkpoints, as ever. A run that is resumed from the one
of step 20 ends, bit for bit, where a run without a stop ends.
"""

import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import topkast


class Counting(torch.utils.data.Dataset):
    """Sequences that count up from a random start."""

    def __len__(self) -> int:
        return 128

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = (torch.arange(16) + 7 * index) % 50
        return {"input_ids": ids, "labels": ids}


def made(folder: str) -> Trainer:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    topkast.compile(model, fwd=0.9, bwd=0.8, refresh_every=10, min_size=1, backend="eager")
    arguments = TrainingArguments(
        folder, max_steps=40, save_steps=20, learning_rate=1e-2, per_device_train_batch_size=16, warmup_steps=5,
        max_grad_norm=1.0, logging_steps=20, report_to=[], use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    return Trainer(model, arguments, train_dataset=Counting())


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        through = made(folder)
        through.train()
        resumed = made(folder)
        resumed.train(resume_from_checkpoint=f"{folder}/checkpoint-20")
    ends = [topkast.dense_state_dict(trainer.model, values="all") for trainer in (through, resumed)]
    assert all(torch.equal(theta, ends[1][name]) for name, theta in ends[0].items())
    first, last = (entry["loss"] for entry in through.state.log_history if "loss" in entry)
    print(f"loss of steps 1-20 {first:.2f}, of steps 21-40 {last:.2f}; a run resumed at step 20 ends in the same bits")
    assert last < first


if __name__ == "__main__":
    main()
