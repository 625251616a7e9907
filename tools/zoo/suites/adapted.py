"""Models of which a part stands still, as in fine-tuning: frozen layers, and low-rank sums beside frozen ones."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2Model

from topkast.tools.zoo.model_entry import Batch, Entry


class LowRank(nn.Module):
    """A frozen layer, and beside it the product of two thin ones."""

    def __init__(self, inside: int, outside: int, rank: int = 4) -> None:
        super().__init__()
        self.frozen = nn.Linear(inside, outside).requires_grad_(False)
        self.down, self.up = nn.Linear(inside, rank, bias=False), nn.Linear(rank, outside, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(x) + self.up(self.down(x))


def _low_rank() -> nn.Module:
    return nn.Sequential(LowRank(24, 48), nn.GELU(), LowRank(48, 16))


def _frozen() -> nn.Module:
    """Only the head of a convolutional network learns, and the one block before it."""
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU()).requires_grad_(False)
    return nn.Sequential(body, nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(16 * 6 * 6, 10))


def _gpt2() -> nn.Module:
    return GPT2Model(GPT2Config(vocab_size=99, n_positions=64, n_embd=32, n_layer=2, n_head=4, use_cache=False))


def _adapted(*layers: str) -> nn.Module:
    config = LoraConfig(r=4, target_modules=list(layers), lora_dropout=0.0, init_lora_weights=False)
    return get_peft_model(_gpt2(), config)


def _noise(*shape: int) -> Callable[[torch.Generator], Batch]:
    return lambda generator: ((torch.randn(shape, generator=generator),), {})


def _tokens(generator: torch.Generator) -> Batch:
    return (), {"input_ids": torch.randint(3, 50, (2, 8), generator=generator)}


def entries() -> list[Entry]:
    return [
        Entry("peft", "frozen layers", "frozen", _frozen, _noise(2, 3, 12, 12)),
        Entry("peft", "low rank by hand", "low rank", _low_rank, _noise(5, 24)),
        Entry("peft", "gpt2 with LoRA", "low rank", functools.partial(_adapted, "c_attn", "c_fc"), _tokens),
    ]
