"""Files of transformers: dense models that are made of a sparse model. tests/compiler/share has the shared folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import topkast
from topkast.runtime.state.model import sites

transformers: Any = pytest.importorskip("transformers")
safetensors_torch: Any = pytest.importorskip("safetensors.torch")

SIZES = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16}
CONVERT: dict[str, Any] = {"fwd": 0.8, "bwd": 0.5, "min_size": 1, "initial": None}


def dense() -> Any:
    """A small GPT-2; its output layer and its embedding are one tied weight."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(**SIZES, bos_token_id=1, eos_token_id=1, loss_type="ForCausalLM")
    return transformers.GPT2LMHeadModel(config).eval()


def tokens() -> torch.Tensor:
    return torch.randint(64, (3, 7), generator=torch.Generator().manual_seed(1))


def trained(steps: int = 3, **options: Any) -> Any:
    """A sparse model after some steps of AdamW."""
    model = topkast.sparsify(dense(), **CONVERT, **options)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(steps):
        model(input_ids=tokens(), labels=tokens()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens()).logits


def test_a_converted_model_reads_a_file_of_its_state_dict(tmp_path: Path) -> None:
    """safetensors' ``save_model`` and ``load_model`` leave out the second name of a tied weight."""
    model = trained(refresh_every=2)
    safetensors_torch.save_model(model, str(tmp_path / "sparse.safetensors"))
    again = topkast.sparsify(dense(), **CONVERT, refresh_every=2)
    assert not torch.equal(logits(again), logits(model))
    assert safetensors_torch.load_model(again, tmp_path / "sparse.safetensors") == (set(), [])
    assert torch.equal(logits(again), logits(model))
    state = again.state_dict()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_a_densified_model_is_read_as_a_dense_one(tmp_path: Path) -> None:
    model = trained()
    topkast.densify(model).save_pretrained(tmp_path)
    again, facts = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(facts.values()), facts
    assert torch.equal(logits(again), logits(model))


def test_the_base_of_a_densified_model_is_read_as_a_dense_one(tmp_path: Path) -> None:
    model = trained()
    topkast.densify(model).base_model.save_pretrained(tmp_path)
    again = transformers.GPT2Model.from_pretrained(tmp_path)
    with torch.no_grad():
        hidden, expected = (part(input_ids=tokens())[0] for part in (again, model.base_model))
    assert torch.equal(hidden, expected)


def test_a_dense_state_dict_with_all_values_makes_the_same_sparse_model(tmp_path: Path) -> None:
    """The sets are chosen from θ, so they are the same if no step was made since the last refresh."""
    model = trained()
    topkast.refresh(model)
    model.save_pretrained(tmp_path, state_dict=topkast.dense_state_dict(model, values="all"))
    read, facts = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(facts.values()), facts
    assert not torch.equal(logits(read), logits(model)), "all of θ, not W_A"
    again = topkast.sparsify(read, **CONVERT)
    assert torch.equal(logits(again), logits(model))
    ours = sites(model)
    for name, site in sites(again).items():
        assert torch.equal(site.theta(), ours[name].theta())
        assert all(map(torch.equal, site.sets(), ours[name].sets()))


def test_layers_that_are_loaded_in_another_precision_keep_it(tmp_path: Path) -> None:
    """T5 keeps ``wo`` in float32. Values, reservoir and gradients have the precision of the dense weight."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 2}
    transformers.T5EncoderModel(transformers.T5Config(**sizes)).save_pretrained(tmp_path)
    model = transformers.T5EncoderModel.from_pretrained(tmp_path, dtype=torch.float16)
    before = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert set(before.values()) == {torch.float16, torch.float32}
    topkast.sparsify(model, **CONVERT)
    assert {name: parameter.dtype for name, parameter in model.named_parameters()} == before
    assert {before[name] for name in sites(model)} == {torch.float16, torch.float32}
    model(input_ids=tokens()).last_hidden_state.float().square().mean().backward()
    for name, site in sites(model).items():
        assert site.original.grad is not None
        assert site.reservoir.dtype == site.original.grad.dtype == before[name], name
