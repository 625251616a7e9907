"""Small models of the kinds that are exported, with inputs whose sizes may vary: batch, sequence, or both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

from topkast.tests.support.truth.builders import CASES

WORDS = 41


@dataclass(frozen=True)
class Exported:
    """A model to export.

    Args:
        build: makes it.
        inputs: of these sizes, by argument name.
        sizes: by name, at the time of export.
        dynamic: argument name -> {axis: name of its size}.
        block: unit of sparsity; balanced where it is square.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[..., dict[str, Tensor]]
    sizes: dict[str, int]
    dynamic: dict[str, dict[int, str]]
    block: tuple[int, int] = (1, 1)

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return self.build().eval()


class Mixture(nn.Module):
    """Experts whose weights are 3-D, mixed by a router."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(32, 3)
        self.up = nn.Parameter(torch.randn(3, 32, 48) / 5)
        self.down = nn.Parameter(torch.randn(3, 48, 32) / 5)
        self.out = nn.Linear(32, 20)

    def forward(self, x: Tensor) -> Tensor:
        each = torch.einsum("bei,eio->beo", torch.relu(torch.einsum("bi,eio->beo", x, self.up)), self.down)
        return self.out(torch.einsum("be,beo->bo", self.router(x).softmax(-1), each))


class Pair(nn.Module):
    """Two inputs: numbers, and indices into an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.numbers = nn.Embedding(WORDS, 32), nn.Linear(20, 32)
        self.head = nn.Sequential(nn.GELU(), nn.Linear(32, 64), nn.SiLU(), nn.Linear(64, 16))

    def forward(self, numbers: Tensor, index: Tensor) -> Tensor:
        return self.head(self.numbers(numbers) + self.words(index))


def gpt2() -> nn.Module:
    config = GPT2Config(
        vocab_size=WORDS,
        n_positions=16,
        n_embd=32,
        n_layer=1,
        n_head=2,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def bert() -> nn.Module:
    config = BertConfig(
        vocab_size=WORDS, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    return BertModel(config, add_pooling_layer=False)


def t5() -> nn.Module:
    config = T5Config(
        vocab_size=WORDS, d_model=32, d_kv=16, num_heads=2, num_layers=1, num_decoder_layers=1, d_ff=64, use_cache=False
    )
    return T5ForConditionalGeneration(config)


def vit() -> nn.Module:
    config = ViTConfig(
        image_size=16, patch_size=4, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    return ViTModel(config, add_pooling_layer=False)


def tokens(batch: int, length: int) -> Tensor:
    return torch.randint(WORDS, (batch, length))


BATCH, BOTH = {0: "batch"}, {0: "batch", 1: "length"}
ZOO = {
    "mlp": Exported(
        CASES["mlp"].build, lambda batch: {"input": torch.randn(batch, 20)}, {"batch": 9}, {"input": BATCH}
    ),
    "cnn": Exported(
        CASES["cnn"].build,
        lambda batch: {"input": torch.randn(batch, 3, 16, 16)},
        {"batch": 3},
        {"input": BATCH},
        (4, 1),
    ),
    "lstm": Exported(CASES["lstm"].build, lambda batch: {"x": torch.randn(batch, 5, 11)}, {"batch": 3}, {"x": BATCH}),
    "mixture": Exported(Mixture, lambda batch: {"x": torch.randn(batch, 32)}, {"batch": 6}, {"x": BATCH}, (4, 1)),
    "two inputs": Exported(
        Pair,
        lambda batch: {"numbers": torch.randn(batch, 20), "index": torch.randint(WORDS, (batch,))},
        {"batch": 5},
        {"numbers": BATCH, "index": BATCH},
    ),
    "encoder": Exported(
        CASES["encoder"].build,
        lambda batch, length: {"x": torch.randn(batch, length, 12)},
        {"batch": 2, "length": 7},
        {"x": BOTH},
    ),
    "gpt2": Exported(
        gpt2,
        lambda batch, length: {"input_ids": tokens(batch, length)},
        {"batch": 3, "length": 12},
        {"input_ids": BOTH},
        (16, 16),
    ),
    "bert": Exported(
        bert,
        lambda batch, length: {
            "input_ids": tokens(batch, length),
            "attention_mask": torch.cat([torch.ones(batch, 2), torch.randint(2, (batch, length - 2))], dim=1).long(),
        },
        {"batch": 3, "length": 7},
        {"input_ids": BOTH, "attention_mask": BOTH},
        (16, 16),
    ),
    "t5": Exported(
        t5,
        lambda batch, length, after: {"input_ids": tokens(batch, length), "decoder_input_ids": tokens(batch, after)},
        {"batch": 2, "length": 7, "after": 5},
        {"input_ids": BOTH, "decoder_input_ids": {0: "batch", 1: "after"}},
        (16, 16),
    ),
    "vit": Exported(
        vit,
        lambda batch: {"pixel_values": torch.randn(batch, 3, 16, 16)},
        {"batch": 2},
        {"pixel_values": BATCH},
        (16, 1),
    ),
}


def first(output: Any) -> Tensor:
    """The tensor that is compared: of transformers' outputs, the first."""
    return output if isinstance(output, Tensor) else output[0]
