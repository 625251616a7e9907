"""The models whose whole training steps are measured, with their batch and their loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, ResNetConfig, ResNetForImageClassification

from topkast.tools.common.loop import loss_of
from topkast.tools.common.text import VOCABULARY, load_text


@dataclass(frozen=True)
class Workload:
    """A model and one batch.

    Args:
        build: makes the model; the same weights every time.
        inputs: the batch, as the model's keywords.
        loss: model -> loss on the batch.
        says: size of model and batch, in words.
    """

    build: Callable[[], nn.Module]
    inputs: dict[str, Tensor]
    loss: Callable[[nn.Module], Tensor]
    says: str


def gpt2(quick: bool, device: torch.device, layers: int = 12, width: int = 512, length: int = 256) -> Workload:
    """GPT-2 style over bytes, without dropout, on the standard library's sources."""
    heads, batch = max(4, width // 64), 8
    if quick:
        layers, width, heads, batch, length = 2, 64, 2, 2, 16
    off: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=length,
        n_layer=layers,
        n_embd=width,
        n_head=heads,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
        **off,
    )
    drawn = load_text(None, length).batch(torch.Generator().manual_seed(0), batch, length)
    x, y = (tensor.to(device) for tensor in drawn)
    says = f"GPT-2, {layers} layers of width {width}, {batch} x {length} bytes"
    return Workload(
        lambda: _seeded(GPT2LMHeadModel, config, device), {"input_ids": x}, lambda m: loss_of(m, x, y), says
    )


def resnet50(quick: bool, device: torch.device) -> Workload:
    """ResNet-50, which is what transformers' configuration makes by default, on noise."""
    config = ResNetConfig(embedding_size=16, hidden_sizes=[64, 128], depths=[1, 1]) if quick else ResNetConfig()
    batch, size = (2, 32) if quick else (32, 64)
    assert config.num_labels is not None
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, size, size, generator=generator).to(device)
    labels = torch.randint(config.num_labels, (batch,), generator=generator).to(device)

    def loss(model: nn.Module) -> Tensor:
        return F.cross_entropy(model(pixel_values=images).logits, labels)

    says = f"ResNet{'' if quick else '-50'}, {batch} images of {size} x {size}"
    return Workload(lambda: _seeded(ResNetForImageClassification, config, device), {"pixel_values": images}, loss, says)


def _seeded(kind: Callable[..., nn.Module], config: object, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    return kind(config).train().to(device)


# "demo" is the model of `make demo`: so narrow that calls and packing are much of a step.
MODELS: dict[str, Callable[[bool, torch.device], Workload]] = {
    "gpt2": gpt2,
    "resnet50": resnet50,
    "demo": partial(gpt2, layers=4, width=128, length=128),
}
