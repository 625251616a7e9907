"""transformers' own surgery on a sparse model: embeddings resized, heads put in, weights initialised again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import topkast
from topkast.runtime.state.model import sites

TOKENS = torch.arange(12).view(2, 6)


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=24, n_layer=1, n_head=2))


def llama(tied: bool) -> Any:
    sizes: dict[str, Any] = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, tie_word_embeddings=tied, **sizes))


MODELS = {"gpt2": gpt2, "llama": lambda: llama(False), "llama tied": lambda: llama(True)}


def made(name: str) -> Any:
    torch.manual_seed(0)
    return topkast.sparsify(MODELS[name](), 0.8, 0.5, min_size=1, refresh_every=2, example_inputs={"input_ids": TOKENS})


def train(model: Any, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()


@pytest.mark.parametrize("name", MODELS)
def test_embeddings_are_resized(name: str) -> None:
    model = made(name)
    train(model)
    before, head = topkast.dense_state_dict(model, "all"), model.get_output_embeddings().weight.detach().clone()
    model.resize_token_embeddings(50, mean_resizing=False)
    assert model.get_output_embeddings().weight.shape == (50, 24)
    assert torch.equal(model.get_output_embeddings().weight[:40], head)
    after = topkast.dense_state_dict(model, "all")
    same = [key for key in after if after[key].shape == before[key].shape]
    assert sites(model) and all(torch.equal(after[key], before[key]) for key in same)
    train(model)
    assert model(input_ids=TOKENS + 38).logits.shape[-1] == 50


def test_a_head_is_replaced() -> None:
    sizes: dict[str, Any] = {
        "num_labels": 3,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = BertConfig(vocab_size=40, **sizes)
    torch.manual_seed(0)
    model = BertForSequenceClassification(config)
    topkast.sparsify(model, 0.8, 0.5, min_size=1, example_inputs={"input_ids": TOKENS})
    assert "classifier.weight" in sites(model)
    model.classifier = torch.nn.Linear(24, 7)
    assert "classifier.weight" not in sites(model)
    model(input_ids=TOKENS).logits.square().sum().backward()
    assert model.classifier.weight.grad is not None


def test_weights_are_not_initialised_again() -> None:
    """``init_weights`` would write into W_A: an error, and θ stays."""
    model = made("gpt2")
    before = topkast.dense_state_dict(model, "all")
    for module in model.modules():
        module.__dict__.pop("_is_hf_initialized", None)
    with pytest.raises(topkast.ModelError, match=r"topkast\.load_dense_state_dict"):
        model.init_weights()
    after = topkast.dense_state_dict(model, "all")
    assert all(torch.equal(after[name], before[name]) for name in sites(model))
