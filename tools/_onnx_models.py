"""Whole models made sparse and exported twice, dense and in a format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from _text import VOCABULARY
from torch import Tensor, nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

import topkast

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


MODELS: dict[str, Callable[[bool], tuple[nn.Module, Tensor, str]]] = {"gpt2": gpt2, "bert": bert}


def export_both(name: str, folder: Path, block: tuple[int, int], format: str, quick: bool) -> Both:
    """Sparsify at 0.9 (untrained, only zeros matter) and export; block rows are equal where the format wants it."""
    torch.manual_seed(0)
    model, tokens, says = MODELS[name](quick)
    model = topkast.sparsify(model.eval(), SPARSITY, SPARSITY, block=block, balanced=format == "block")
    results = [
        topkast.export(model, folder / f"{name}-{kind}.onnx", (tokens,), format=kind, verify=kind == format)
        for kind in ("dense", format)
    ]
    feeds = {next(iter(results[0].inputs)): tokens.numpy()}
    return Both(results[0].path, results[1].path, feeds, says, results[1].max_error)
