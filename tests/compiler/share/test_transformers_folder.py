"""Folders of transformers: plain transformers reads W_A, ``topkast.from_pretrained`` reads the sparse model."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import topkast
from topkast.compiler.checkpoint.tensor_file import SUMS
from topkast.runtime.errors import CheckpointError, ConfigError, ModelError
from topkast.runtime.state.model import sites

transformers: Any = pytest.importorskip("transformers")

SIZES = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16}
CONVERT: dict[str, Any] = {"fwd": 0.8, "bwd": 0.5, "min_size": 1, "refresh_every": 2, "seed": 3}


def dense() -> Any:
    """A small GPT-2 without dropout; its output layer and its embedding are one tied weight."""
    torch.manual_seed(0)
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = transformers.GPT2Config(**SIZES, **still, bos_token_id=1, eos_token_id=1, loss_type="ForCausalLM")
    return transformers.GPT2LMHeadModel(config)


def tokens(seed: int = 1) -> torch.Tensor:
    return torch.randint(64, (3, 7), generator=torch.Generator().manual_seed(seed))


def train(model: Any, steps: int = 3) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for step in range(steps):
        model(input_ids=tokens(step), labels=tokens(step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def trained(**options: Any) -> Any:
    return train(topkast.sparsify(dense(), **{**CONVERT, **options}))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens()).logits


def assert_same(one: Any, other: Any) -> None:
    """Values, sets, θ, clock and seed are equal, bit for bit."""
    states = one.state_dict(), other.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    for name, site in sites(one).items():
        twin = sites(other)[name]
        assert (site.name, site.rule, site.churn) == (twin.name, twin.rule, twin.churn)
        assert torch.equal(site.theta(), twin.theta())


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "shards": ({"max_shard_size": "20KB"}, {}),
    "variant": ({"variant": "small"}, {}),
    "blocks": ({}, {"block": (4, 1), "distribution": {"*attn*": (0.9, 0.7)}}),
    "unbalanced": ({}, {"balanced": False, "explore": "random"}),
    "gradual": ({}, {"method": "gmp", "bwd": None, "stop_exploring_after": 10}),
    "disk": ({}, {"reservoir": "disk"}),
    "background": ({}, {"refresh_in_background": True}),
}


SLOW = ("blocks", "unbalanced", "disk", "background")


@pytest.mark.parametrize("case", [pytest.param(n, marks=pytest.mark.long) if n in SLOW else n for n in CASES])
def test_round_trip(tmp_path: Path, case: str) -> None:
    """The dense model, the sparse model, and the next training steps."""
    saving, options = CASES[case]
    model = trained(**options)
    model.save_pretrained(tmp_path, **saving)
    loading = {key: value for key, value in saving.items() if key == "variant"}
    plain, facts = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True, **loading)
    assert not any(facts.values()), facts
    again = topkast.from_pretrained(tmp_path, **loading)
    assert torch.equal(logits(plain), logits(model.eval()))
    assert_same(model, again)
    assert topkast.report(again).config == topkast.report(model).config
    assert topkast.report(again).dense == topkast.report(model).dense
    train(model.train())
    train(again.train())
    assert_same(model, again)
    assert again.lm_head.weight is again.transformer.wte.weight


@pytest.mark.long
def test_the_folder_in_a_process_without_topkast(tmp_path: Path) -> None:
    model = trained().eval()
    model.save_pretrained(tmp_path / "model")
    torch.save((tokens(), logits(model), topkast.dense_state_dict(model)), tmp_path / "expected")
    program = """
import sys, torch
from transformers import AutoModel, AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("model")
ids, logits, state = torch.load("expected", weights_only=False)
assert list(model.state_dict()) == list(state)
assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
with torch.no_grad():
    assert torch.equal(model(input_ids=ids).logits, logits)
AutoModel.from_pretrained("model")
assert "topkast" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_sparse_state_dict_is_written_as_dense(tmp_path: Path) -> None:
    """accelerate's way: ``save_pretrained(folder, state_dict=accelerator.get_state_dict(model))``."""
    model = trained()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    weights = topkast.dense_state_dict(model)["transformer.h.0.mlp.c_fc.weight"].clone()
    train(model, 1)
    model.save_pretrained(tmp_path, state_dict=before)
    assert torch.equal(load_file(tmp_path / "model.safetensors")["transformer.h.0.mlp.c_fc.weight"], weights)
    again = topkast.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in before.items())


def test_another_state_dict_is_written_as_given(tmp_path: Path) -> None:
    """Then the sets do not belong to the folder, so an older file of sets is removed."""
    model = trained()
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path, state_dict=topkast.dense_state_dict(model, values="all"))
    assert not (tmp_path / "topkast.safetensors").exists()
    theta = load_file(tmp_path / "model.safetensors")["transformer.h.0.mlp.c_fc.weight"]
    assert torch.equal(theta, sites(model)["transformer.h.0.mlp.c_fc.weight"].theta())


def test_a_part_of_a_model(tmp_path: Path) -> None:
    model = trained()
    model.transformer.save_pretrained(tmp_path)
    again = topkast.from_pretrained(tmp_path)
    assert type(again) is transformers.GPT2Model
    expected = {name.removeprefix("transformer."): site.theta() for name, site in sites(model).items()}
    assert list(sites(again)) == list(expected)
    assert all(torch.equal(site.theta(), expected[name]) for name, site in sites(again).items())


def test_other_processes_than_the_main_one_write_nothing(tmp_path: Path) -> None:
    trained().save_pretrained(tmp_path, is_main_process=False)
    assert list(tmp_path.iterdir()) == []


def test_the_card_has_the_table_and_never_replaces_the_users_own(tmp_path: Path) -> None:
    model = trained()
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "| `2 × transformer.h.*.mlp.c_fc` | 32×128 |" in card
    assert "method='topkast', fwd=0.8, bwd=0.5" in card
    (tmp_path / "README.md").write_text("mine")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_copy_and_a_dense_copy(tmp_path: Path) -> None:
    model = trained()
    copy.deepcopy(model).save_pretrained(tmp_path / "copy")
    assert_same(model, topkast.from_pretrained(tmp_path / "copy"))
    topkast.densify(model).save_pretrained(tmp_path / "dense")
    assert not (tmp_path / "dense" / "topkast.safetensors").exists()
    with pytest.raises(ModelError, match="part of a copy"):
        copy.deepcopy(model).transformer.save_pretrained(tmp_path / "part")


def test_the_backend_comes_back(tmp_path: Path) -> None:
    model = topkast.compile(dense(), **CONVERT, backend="aot_eager")
    model.save_pretrained(tmp_path)
    assert topkast.report(topkast.from_pretrained(tmp_path)).backend == topkast.report(model).backend
    assert topkast.report(topkast.from_pretrained(tmp_path, backend="eager")).backend.startswith("eager")
    with pytest.raises(ConfigError, match="backend"):
        topkast.from_pretrained(tmp_path, backend="other")


# --- bad folders ---


def rewritten(path: Path, **fields: str) -> None:
    with safe_open(path, framework="pt") as file:
        header = {key: value for key, value in file.metadata().items() if key != SUMS}
    save_file(load_file(path), path, metadata={**header, **fields})


def without_sets(folder: Path) -> None:
    (folder / "topkast.safetensors").unlink()


def cut_short(folder: Path) -> None:
    content = (folder / "topkast.safetensors").read_bytes()
    (folder / "topkast.safetensors").write_bytes(content[: len(content) // 2])


def newer(folder: Path) -> None:
    rewritten(folder / "topkast.safetensors", format_version="99")


def another_file(folder: Path) -> None:
    save_file({"a": torch.zeros(1)}, folder / "topkast.safetensors")


def broken_header(folder: Path) -> None:
    rewritten(folder / "topkast.safetensors", sites="{")


def without_an_entry(folder: Path) -> None:
    rewritten(folder / "topkast.safetensors", sites=json.dumps({"transformer.h.0.mlp.c_fc.weight": {}}))


def retrained_without_topkast(folder: Path) -> None:
    plain = transformers.GPT2LMHeadModel.from_pretrained(folder)
    train(plain, 1)
    plain.save_pretrained(folder)


def another_model(folder: Path) -> None:
    config = transformers.GPT2Config(**{**SIZES, "n_embd": 16}, bos_token_id=1, eos_token_id=1)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)


def missing_tensor(folder: Path) -> None:
    path = folder / "topkast.safetensors"
    with safe_open(path, framework="pt") as file:
        header = {key: value for key, value in file.metadata().items() if key != SUMS}
    tensors = load_file(path)
    del tensors[next(key for key in tensors if key.endswith(".reservoir"))]
    save_file(tensors, path, metadata=header)


BAD: dict[Callable[[Path], None], str] = {
    without_sets: "holds no topkast.safetensors",
    cut_short: "not a whole safetensors file",
    newer: "format version 99",
    another_file: "not the sets of a sparse model",
    broken_header: "header's 'sites' is missing or broken",
    without_an_entry: "transformer.h.0.mlp.c_fc.weight",
    retrained_without_topkast: "is another weight there",
    another_model: "do not belong to the model",
    missing_tensor: "missing: .*reservoir",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    trained().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("damage", BAD, ids=lambda damage: damage.__name__)
def test_bad_folders(saved: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(saved, folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=BAD[damage]):
        topkast.from_pretrained(folder)


def test_no_folder_and_no_class(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        topkast.from_pretrained(tmp_path / "nothing")
    folder = tmp_path / "folder"
    shutil.copytree(saved, folder)
    (folder / "config.json").write_text('{"architectures": ["NoSuchModel"]}')
    with pytest.raises(ConfigError, match="NoSuchModel"):
        topkast.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match="kind"):
        topkast.from_pretrained(folder)
