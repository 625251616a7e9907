"""Hugging Face's Trainer with ``fsdp``. Not run: the Trainer uses FSDP2 on GPUs only, and there was none.

    torchrun --nproc-per-node 8 tools/examples/fsdp/sharded_hf_trainer.py

The model is made sparse before the Trainer shards it, with the mesh of all ranks.
"""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import topkast


class Counting(torch.utils.data.Dataset):
    """Sequences that count up from a random start."""

    def __len__(self) -> int:
        return 4096

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = (torch.arange(16) + 7 * index) % 50
        return {"input_ids": ids, "labels": ids}


def main() -> None:
    arguments = TrainingArguments(
        "hf-fsdp", max_steps=200, save_steps=100, learning_rate=1e-3, per_device_train_batch_size=16, logging_steps=20,
        bf16=True, report_to=[], fsdp="full_shard auto_wrap",
        fsdp_config={"fsdp_version": 2, "transformer_layer_cls_to_wrap": ["GPT2Block"],
                     "cpu_ram_efficient_loading": False, "state_dict_type": "SHARDED_STATE_DICT"},
    )  # fmt: skip
    torch.manual_seed(0)  # every rank starts from the same weights
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=256, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    mesh = init_device_mesh(arguments.device.type, (dist.get_world_size(),))
    topkast.sparsify(model, fwd=0.9, bwd=0.8, refresh_every=10, min_size=1, exclude="*wte*", mesh=mesh)
    Trainer(model, arguments, train_dataset=Counting()).train()


if __name__ == "__main__":
    main()
