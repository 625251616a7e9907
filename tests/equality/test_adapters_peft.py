"""LoRA on a sparse base: trains, saves, loads, merges, as on a dense one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import topkast
from topkast.runtime.state.model import sites

peft = pytest.importorskip("peft")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(12, 16), nn.Linear(16, 9)

    def forward(self, x: Any) -> Any:
        return self.out(torch.relu(self.into(x)))


def base() -> nn.Module:
    torch.manual_seed(0)
    return topkast.sparsify(Net(), 0.8, 0.5, min_size=1, refresh_every=2)


def adapted(model: nn.Module) -> Any:
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, target_modules=["into", "out"], init_lora_weights=False)
    return peft.get_peft_model(model, config)


def train(model: Any, steps: int = 3) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(5, 12, generator=generator)).square().mean().backward()
        optimizer.step()


def test_adapters_train_as_on_the_dense_model() -> None:
    model = base()
    plain = adapted(topkast.densify(model))
    theta = {name: site.theta() for name, site in sites(model).items()}
    sparse = adapted(model)
    train(sparse)
    train(plain)
    x = torch.randn(3, 12)
    torch.testing.assert_close(sparse(x), plain(x))
    names = ["base_model.model.into.base_layer.weight", "base_model.model.out.base_layer.weight"]
    assert [n for n, _ in sparse.named_parameters() if "base_layer.weight" in n] == names
    for site, before in zip(sites(model).values(), theta.values(), strict=True):
        assert torch.equal(site.theta(), before), "the base is frozen"


def test_adapters_are_saved_and_loaded(tmp_path: Path) -> None:
    sparse = adapted(base())
    train(sparse)
    sparse.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(base(), tmp_path)
    x = torch.randn(3, 12)
    assert torch.equal(again(x), sparse(x))


@pytest.mark.parametrize("safe", [False, True])
def test_merging_writes_theta(safe: bool) -> None:
    """θ is what the merged dense layer's weight would be; A and B are chosen from it."""
    sparse = adapted(base())
    train(sparse)
    plain = adapted(topkast.densify(base()))
    plain.load_state_dict({k: v for k, v in copy.deepcopy(sparse.state_dict()).items() if "lora" in k}, strict=False)
    merged, expected = (m.merge_and_unload(safe_merge=safe) for m in (sparse, plain))
    assert list(sites(merged)) == ["into.weight", "out.weight"]
    for name, site in sites(merged).items():
        torch.testing.assert_close(site.theta(), expected.get_parameter(name).detach())
        fwd, size = site.sets()[0], site.theta().abs()
        least, most = torch.where(fwd, size, torch.inf), torch.where(fwd, 0, size)
        inside, outside = (least.amin(1), most.amax(1)) if site.rule.balanced else (least.min(), most.max())
        assert int(fwd.sum()) == site.n_fwd and bool((inside >= outside).all())
    merged.requires_grad_(True)
    train(merged)
    assert all(site.refreshed_at for site in sites(merged).values())
