"""Small models, one for each way a weight can be used, and the batches and losses that train them.

Sizes are odd on purpose; nothing here is random but the weights and the batches, which come from a seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

Batch = tuple[tuple[Tensor, ...], Tensor]


def squared(output: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(output.float() if output.dtype == torch.bfloat16 else output, target)


def next_token(output: Any, target: Tensor) -> Tensor:
    return F.cross_entropy(output.logits.flatten(0, 1), target.flatten())


@dataclass(frozen=True)
class Case:
    """A model, its batches, its loss.

    Args:
        name: for the test's id.
        build: makes the model.
        shape: of the input, or ``None`` where ``batch`` is given.
        sites: parameters that must be sparsified; a test that compares nothing would pass.
        loss: of (output, target).
        batch: makes a batch from a generator.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...] | None
    sites: tuple[str, ...]
    loss: Callable[[Any, Tensor], Tensor] = squared
    batch: Callable[[torch.Generator], Batch] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def model(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return self.build()

    def batches(self, count: int, seed: int = 1) -> list[Batch]:
        """``count`` batches of ((inputs...), target); the target has the output's shape."""
        generator = torch.Generator().manual_seed(seed)
        if self.batch is not None:
            return [self.batch(generator) for _ in range(count)]
        # With gradients, or re-entrant checkpoints warn.
        like = self.model()(torch.zeros(self.shape, requires_grad=True))
        return [
            ((torch.randn(self.shape, generator=generator),), torch.randn(like.shape, generator=generator))
            for _ in range(count)
        ]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 48), nn.GELU(), nn.Linear(48, 37), nn.ReLU(), nn.Linear(37, 10))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, stride=2, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, padding=1, groups=2, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 20, 1),
        nn.ReLU(),
        nn.Conv2d(20, 16, 3, stride=2, dilation=2, padding="valid"),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(5, 14, 3, padding="same"),
        nn.GELU(),
        nn.Conv1d(14, 12, 5, stride=2, groups=2),
        nn.Flatten(),
        nn.Linear(60, 7),
    )


def conv3d() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 6, 3, padding=1),
        nn.GELU(),
        nn.Conv3d(6, 8, 3, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 5),
    )


def conv_transpose() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(6, 10, 3, stride=2, padding=1, output_padding=1, bias=False),
        nn.GELU(),
        nn.ConvTranspose2d(10, 8, 3, groups=2, padding=1),
        nn.GELU(),
        nn.ConvTranspose2d(8, 3, 1),
    )


class Encoder(nn.Module):
    """A transformer block between two projections."""

    def __init__(self, norm_first: bool = True) -> None:
        super().__init__()
        self.into = nn.Linear(12, 24)
        self.block = nn.TransformerEncoderLayer(24, 3, 52, dropout=0.0, batch_first=True, norm_first=norm_first)
        self.out = nn.Linear(24, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.block(self.into(x)))


class Attention(nn.Module):
    """nn.MultiheadAttention with one fused projection, and one with keys and values of other widths."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.MultiheadAttention(24, 3, batch_first=True)
        self.keys = nn.Linear(24, 18)
        self.cross = nn.MultiheadAttention(24, 2, kdim=18, vdim=18, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.own(x, x, x, need_weights=False)[0]
        keys = self.keys(x)
        return self.cross(x, keys, keys, need_weights=True)[0]


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.rnn = kind(11, 18, batch_first=True, **options)
        self.out = nn.Linear(18 * (2 if options.get("bidirectional") else 1), 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0])


class Tied(nn.Module):
    """Two layers that share one Parameter, and a third that uses it transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, 24), nn.Linear(24, 24)
        self.second.weight = self.first.weight
        self.between = nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.second(F.gelu(self.between(F.gelu(self.first(x))))))
        return F.linear(hidden, self.first.weight.t())


class Twice(nn.Module):
    """One module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.layer, self.out = nn.Linear(13, 30), nn.Linear(30, 30), nn.Linear(30, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.layer(F.gelu(self.layer(F.gelu(self.into(x)))))))


class Functional(nn.Module):
    """Parameters of the root, used without a layer class."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(33, 17) / 4)
        self.v = nn.Parameter(torch.randn(33, 21) / 4)
        self.b = nn.Parameter(torch.zeros(21))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.b, torch.tanh(x @ self.w.t()), self.v)


class Einsum(nn.Module):
    """Heads written as einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.split = nn.Parameter(torch.randn(3, 16, 10) / 4)
        self.merge = nn.Parameter(torch.randn(3, 10, 14) / 4)

    def forward(self, x: Tensor) -> Tensor:
        heads = torch.tanh(torch.einsum("btd,hdk->bhtk", x, self.split))
        return torch.einsum("bhtk,hkd->btd", heads, self.merge)


class Experts(nn.Module):
    """One matrix for each expert, batched."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 12, 26) / 4)
        self.down = nn.Parameter(torch.randn(3, 26, 8) / 4)
        self.bias = nn.Parameter(torch.zeros(3, 1, 26))

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(F.gelu(torch.baddbmm(self.bias, x, self.up)), self.down)


class Lying(torch.autograd.Function):
    """x @ weight (+ bias) of a stack of matrices that lie transposed in memory, as do its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        lying = weight.mT.contiguous()
        ctx.save_for_backward(x, lying)
        return x @ lying.mT if bias is None else torch.baddbmm(bias, x, lying.mT)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        (dy,), (x, lying) = grads, ctx.saved_tensors
        return dy @ lying, (dy.mT @ x).mT, dy.sum(1, keepdim=True) if ctx.needs_input_grad[2] else None


def transposed_in_memory(model: Experts) -> None:
    """Plain PyTorch's products in the order that ours have on dense kernels: a row of the weight is a row in memory."""
    model.forward = lambda x: Lying.apply(F.gelu(Lying.apply(x, model.up, model.bias)), model.down, None)


# For Trio's ways, by case: eager PyTorch's own order of summing may round to nearly no error in a bias of few numbers.
WAYS_OF: dict[str, dict[str, Callable[[Any], None]]] = {"experts": {"transposed in memory": transposed_in_memory}}


def hf_conv1d() -> nn.Module:
    return nn.Sequential(Conv1D(40, 22), nn.GELU(), Conv1D(26, 40), nn.Tanh(), nn.Linear(26, 7))


def gpt2() -> nn.Module:
    config = GPT2Config(
        vocab_size=41, n_positions=12, n_embd=24, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        use_cache=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def _tokens(generator: torch.Generator) -> Batch:
    tokens = torch.randint(0, 41, (3, 12), generator=generator)
    return (tokens,), tokens.roll(-1, 1)


H = "transformer.h"
CASES = {
    case.name: case
    for case in [
        Case("mlp", mlp, (9, 20), ("0.weight", "2.weight")),
        Case("cnn", cnn, (3, 3, 16, 16), ("3.weight", "6.weight", "8.weight")),
        Case("conv1d", conv1d, (3, 5, 13), ("2.weight",)),
        Case("conv3d", conv3d, (2, 2, 4, 4, 4), ("2.weight",)),
        Case("conv_transpose", conv_transpose, (2, 6, 5, 5), ("2.weight",)),
        Case("encoder", Encoder, (2, 7, 12), ("block.self_attn.in_proj_weight", "block.linear1.weight")),
        Case("encoder_post", lambda: Encoder(False), (2, 7, 12), ("block.linear1.weight", "block.linear2.weight")),
        Case("attention", Attention, (2, 7, 24), ("own.in_proj_weight", "cross.q_proj_weight", "cross.k_proj_weight")),
        Case("lstm", lambda: Recurrent(nn.LSTM, num_layers=2), (3, 5, 11), ("rnn.weight_ih_l0", "rnn.weight_hh_l1")),
        Case("bilstm", lambda: Recurrent(nn.LSTM, bidirectional=True), (3, 5, 11), ("rnn.weight_hh_l0_reverse",)),
        Case("gru", lambda: Recurrent(nn.GRU), (3, 5, 11), ("rnn.weight_ih_l0", "rnn.weight_hh_l0")),
        Case("tied", Tied, (9, 24), ("first.weight", "between.weight")),
        Case("twice", Twice, (9, 13), ("layer.weight",)),
        Case("functional", Functional, (9, 17), ("w",)),
        Case("einsum", Einsum, (2, 5, 16), ("split", "merge")),
        Case("experts", Experts, (3, 7, 12), ("up",)),
        Case("hf_conv1d", hf_conv1d, (9, 22), ("0.weight", "2.weight")),
        Case("gpt2", gpt2, (), (f"{H}.0.attn.c_attn.weight", f"{H}.1.mlp.c_proj.weight"), next_token, _tokens),
    ]
}  # fmt: skip
