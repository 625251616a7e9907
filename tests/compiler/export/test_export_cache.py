"""``topkast.export(use_cache=True)``: files generate, token by token, what transformers' own ``generate`` gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import topkast
from topkast.compiler.export import parity
from topkast.tools.examples.generate import Decoder, greedy, top_k

WORDS, NEW = 41, 12


@dataclass(frozen=True)
class Family:
    """A kind of decoder, with random weights that are large enough to give varied text.

    Args:
        model, config: the classes.
        sizes: arguments of the configuration.
        heads: heads of keys, and the size of each.
    """

    model: Callable[[Any], nn.Module]
    config: Callable[..., Any]
    sizes: dict[str, Any]
    heads: tuple[int, int] = (2, 32)

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        ends: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
        return self.model(self.config(vocab_size=WORDS, initializer_range=0.3, **ends, **self.sizes)).eval()


ROTARY = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
OLD = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
FAMILIES = {
    "gpt2": Family(GPT2LMHeadModel, GPT2Config, {"n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 2}),
    "llama": Family(LlamaForCausalLM, LlamaConfig, ROTARY, (2, 16)),
    "opt": Family(OPTForCausalLM, OPTConfig, {**OLD, "ffn_dim": 128, "word_embed_proj_dim": 64}),
    "gpt_neox": Family(GPTNeoXForCausalLM, GPTNeoXConfig, {**OLD, "intermediate_size": 128}),
    "qwen2": Family(Qwen2ForCausalLM, Qwen2Config, ROTARY, (2, 16)),
    "mistral, a window of 6": Family(MistralForCausalLM, MistralConfig, {**ROTARY, "sliding_window": 6}, (2, 16)),
    "bloom": Family(BloomForCausalLM, BloomConfig, {"hidden_size": 64, "n_layer": 2, "n_head": 2}),
}
BLOCKS = {"custom": (4, 1), "block": (16, 16)}
LONG = pytest.mark.long


def exported(name: str, format: str, path: Path) -> tuple[Any, nn.Module]:
    """The result, and the dense model of the same weights."""
    model = topkast.sparsify(FAMILIES[name].build(), 0.5, block=BLOCKS[format], min_size=1000, balanced=True)
    example = {"input_ids": torch.randint(WORDS, (2, 9))}
    result = topkast.export(model, path, example, format=format, use_cache=True)
    assert {site.format for site in result.sites} >= {format}
    return result, topkast.densify(model).eval()


def generated(plain: nn.Module, prompts: list[list[int]]) -> np.ndarray:
    """The new tokens of transformers' greedy search, from prompts that are filled on the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    found = plain.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, use_cache=True)
    return found[:, longest:].numpy()


@pytest.mark.parametrize(
    "name, format",
    [
        ("gpt2", "custom"),
        *(pytest.param(name, "block", marks=LONG) for name in ("gpt2", "llama")),
        pytest.param("llama", "custom", marks=LONG),
        *(pytest.param(name, "custom", marks=LONG) for name in FAMILIES if name not in ("gpt2", "llama")),
    ],
)
def test_a_file_generates_what_the_model_generates(name: str, format: str, tmp_path: Path) -> None:
    path = tmp_path / "decoder.onnx"
    result, plain = exported(name, format, path)
    heads, size = FAMILIES[name].heads
    total, kept = "past_sequence_length + sequence_length", range(2)
    positions = {} if name == "bloom" else {"position_ids": ["batch_size", "sequence_length"]}
    assert result.inputs == {
        "input_ids": ["batch_size", "sequence_length"],
        "attention_mask": ["batch_size", total],
        **positions,
        **{f"past_key_values.{i}.{part}": ["batch_size", heads, "past_sequence_length", size]
           for i in kept for part in ("key", "value")},
    }  # fmt: skip
    assert result.outputs == {
        "logits": ["batch_size", "sequence_length", WORDS],
        **{f"present.{i}.{part}": ["batch_size", heads, total, size] for i in kept for part in ("key", "value")},
    }
    assert result.max_error is not None and not result.notes
    prompts = [[7, 3, 11, 5, 2, 29, 17, 1], [13], [4, 4, 19, 23, 8]]
    expected = generated(plain, prompts)
    assert len(np.unique(expected)) > 5 and len(np.unique(expected, axis=0)) == len(prompts)
    for session in (onnxruntime.InferenceSession(path), topkast.onnx.session(path)):
        decoder = Decoder(session)
        assert np.array_equal(decoder.generate(prompts, NEW), expected)
        assert np.array_equal(decoder.generate(prompts[:1], NEW), expected[:1])
    _assert_chunks_give_the_same(path, plain)


def _assert_chunks_give_the_same(path: Path, plain: nn.Module) -> None:
    """A sequence in one run without a cache, and in runs of 3, 1, 4 and 2 tokens, each with the cache of the last."""
    ids = torch.randint(WORDS, (3, 10), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    session = onnxruntime.InferenceSession(path)
    taken = {value.name: value.shape for value in session.get_inputs()}
    past = [name for name in taken if name.startswith("past")]
    cache = {name: np.zeros((3, taken[name][1], 0, taken[name][3]), np.float32) for name in past}
    found, start = list[np.ndarray](), 0
    for count in (3, 1, 4, 2):
        end = start + count
        given = {
            "input_ids": ids[:, start:end], "attention_mask": mask[:, :end], "position_ids": positions[:, start:end],
        }  # fmt: skip
        feeds = {name: tensor.numpy() for name, tensor in given.items() if name in taken}
        logits, *present = session.run(None, feeds | cache)
        cache, start = dict(zip(past, present, strict=True)), end
        found.append(logits)
    whole = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    whole = {name: tensor for name, tensor in whole.items() if name in taken}
    seen = mask.bool()  # the logits of padding have no meaning
    with torch.no_grad():
        ours = plain(**whole, use_cache=False).logits[seen]
        exact = plain.double()(**whole, use_cache=False).logits[seen]
    error, bound = parity._error(torch.from_numpy(np.concatenate(found, axis=1))[seen], ours, exact)
    assert error <= bound


def test_top_k_draws_from_the_likeliest_by_their_probabilities() -> None:
    logits = np.log(np.tile([[0.1, 0.4, 0.05, 0.2, 0.25]], (20000, 1)))
    shares = np.bincount(top_k(3)(logits), minlength=5) / len(logits)
    assert shares[0] == shares[2] == 0
    np.testing.assert_allclose(shares[[1, 3, 4]], np.array([0.4, 0.2, 0.25]) / 0.85, atol=0.02)
    cold = top_k(3, temperature=0.01)(logits)
    assert (cold == 1).all() and (greedy(logits) == 1).all()


MODELS = {
    "encoder": lambda: BertForMaskedLM(
        BertConfig(vocab_size=WORDS, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    ),
    "both": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=WORDS, d_model=32, d_kv=16, num_heads=2, num_layers=1, d_ff=64)
    ),
    "states": lambda: MambaForCausalLM(MambaConfig(vocab_size=WORDS, hidden_size=32, num_hidden_layers=1)),
    "plain": lambda: nn.Sequential(nn.Linear(8, 30)),
    "decoder": FAMILIES["gpt2"].build,
}
IDS = torch.ones(2, 9, dtype=torch.long)


@pytest.mark.parametrize(
    "model, inputs, why",
    [
        ("encoder", (IDS,), "forward of BertForMaskedLM takes 'input_ids', .*must be a decoder of transformers"),
        ("both", (IDS,), "T5ForConditionalGeneration has an encoder and a decoder"),
        ("states", (IDS,), "the cache of MambaForCausalLM has layers of the kind LinearAttentionLayer"),
        ("plain", (torch.ones(2, 8),), "forward of Sequential takes 'input'. .*Leave use_cache out"),
        ("decoder", {"input_ids": IDS, "labels": IDS}, "'input_ids', 'labels'; with use_cache=True they must be"),
        ("decoder", {"attention_mask": IDS}, "'attention_mask'; with use_cache=True they must be"),
        ("decoder", {"input_ids": IDS, "use_cache": True}, "'input_ids', 'use_cache'; with use_cache=True"),
        ("decoder", (IDS[0],), r"'input_ids' is \[9\], must be \[sequences, tokens\]"),
        ("decoder", (IDS[:, :0],), r"'input_ids' is \[2, 0\]"),
        ("decoder", {"input_ids": IDS, "attention_mask": IDS[:, :4]}, r"'attention_mask' is \[2, 4\], must have the"),
        ("decoder", (IDS * WORDS,), "example_inputs: the model does not run on them: IndexError"),
    ],
)
def test_what_has_no_such_cache_is_refused(model: str, inputs: Any, why: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sparse = topkast.sparsify(MODELS[model](), 0.5, min_size=100)
    with pytest.raises(topkast.ExportError, match=why):
        topkast.export(sparse, tmp_path / "decoder.onnx", inputs, use_cache=True)
    assert not list(tmp_path.iterdir())


def test_dynamic_shapes_are_refused(tmp_path: Path) -> None:
    sparse = topkast.sparsify(FAMILIES["gpt2"].build(), 0.5, min_size=100)
    shapes = {"input_ids": {0: "batch"}}
    with pytest.raises(topkast.ConfigError, match="dynamic_shapes: must be None with use_cache=True"):
        topkast.export(sparse, tmp_path / "decoder.onnx", (IDS,), dynamic_shapes=shapes, use_cache=True)
    assert not list(tmp_path.iterdir())


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 24)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(*self.layer(x).chunk(3, dim=-1), attn_mask=mask)


def test_queries_that_a_boolean_mask_keeps_from_all_keys_are_given_zeros(tmp_path: Path) -> None:
    """Padding on the left gives such queries; torch.onnx alone would give them the mean of all values."""
    model = topkast.sparsify(Attention(), 0.5, min_size=1)
    x, mask = torch.randn(2, 1, 5, 8), torch.ones(2, 1, 5, 5, dtype=torch.bool).tril()
    mask[1, 0, :, 0] = False
    result = topkast.export(model, tmp_path / "m.onnx", {"x": x, "mask": mask}, format="dense")
    (y,) = onnxruntime.InferenceSession(result.path).run(None, {"x": x.numpy(), "mask": mask.numpy()})
    assert not y[1, 0, 0].any() and y[1, 0, 1].any() and y[0, 0, 0].any()
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(y), model(x, mask))
