"""Whole models made sparse and exported twice, dense and in a format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTModel,
)

import topkast
from topkast.tools.common.text import VOCABULARY

SPARSITY = 0.9


@dataclass(frozen=True)
class Both:
    """Two files of one model, and what to feed either."""

    dense: Path
    sparse: Path
    feeds: dict[str, np.ndarray]
    says: str
    max_error: float | None


def gpt2(quick: bool) -> tuple[nn.Module, Tensor, str]:
    """GPT-2 style over bytes."""
    layers, width, heads, length = (2, 64, 2, 16) if quick else (12, 512, 8, 128)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=length,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    tokens = torch.randint(VOCABULARY, (1, length))
    return GPT2LMHeadModel(config), tokens, f"GPT-2, {layers} layers of {width}, 1 x {length} bytes"


def bert(quick: bool) -> tuple[nn.Module, Tensor, str]:
    """The shape of BERT-base, with a vocabulary of bytes: the embedding is not what is measured."""
    layers, width, heads, length = (2, 64, 2, 16) if quick else (12, 768, 12, 128)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
    )
    tokens = torch.randint(VOCABULARY, (1, length))
    return BertModel(config, add_pooling_layer=False), tokens, f"BERT-base's shape, {layers} x {width}, 1 x {length}"


def resnet50(quick: bool) -> tuple[nn.Module, Tensor, str]:
    """ResNet-50, which is what transformers' configuration makes by default."""
    size = 32 if quick else 224
    config = ResNetConfig(embedding_size=16, hidden_sizes=[64, 128], depths=[1, 1]) if quick else ResNetConfig()
    says = f"ResNet{'' if quick else '-50'}, one image of {size} x {size}"
    return ResNetForImageClassification(config), torch.randn(1, 3, size, size), says


def vit(quick: bool) -> tuple[nn.Module, Tensor, str]:
    """ViT-B/16, which is what transformers' configuration makes by default."""
    size = 32 if quick else 224
    small: dict[str, Any] = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 256,
    }
    config = ViTConfig(image_size=size, **small) if quick else ViTConfig()
    says = f"ViT{'' if quick else '-B/16'}, one image of {size} x {size}"
    return ViTModel(config, add_pooling_layer=False), torch.randn(1, 3, size, size), says


MODELS: dict[str, Callable[[bool], tuple[nn.Module, Tensor, str]]] = {
    "gpt2": gpt2,
    "bert": bert,
    "resnet50": resnet50,
    "vit": vit,
}


def export_both(name: str, folder: Path, block: tuple[int, int], format: str, quick: bool) -> Both:
    """Sparsify at 0.9 (untrained, only zeros matter) and export; block rows are equal where the format wants it."""
    torch.manual_seed(0)
    model, given, says = MODELS[name](quick)
    model = topkast.sparsify(model.eval(), SPARSITY, SPARSITY, block=block, balanced=format == "block")
    results = [
        topkast.export(model, folder / f"{name}-{kind}.onnx", (given,), format=kind, verify=kind == format)
        for kind in ("dense", format)
    ]
    feeds = {next(iter(results[0].inputs)): given.numpy()}
    return Both(results[0].path, results[1].path, feeds, says, results[1].max_error)
