"""minGPT's and nanoGPT's rules of weight decay, in our own words: a sparse GPT's groups are those of the dense one.

minGPT walks all modules, judges each parameter by the end of its name and the type of the module that it is seen from,
and asserts that each was judged exactly once. nanoGPT asks each parameter for its number of dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import topkast
from topkast.tests.support.truth.builders import Case
from topkast.tests.support.truth.lockstep import Trio, plain, sites_of

WIDTH, LENGTH, LETTERS = 24, 12, 41
SPARSE: dict[str, Any] = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 3, "min_size": 1}
LAYOUTS: dict[str, dict[str, Any]] = {
    "rows": {"balanced": True},
    "free": {"balanced": False},
    "blocks": {"block": (4, 2)},
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(WIDTH, 3 * WIDTH), "c_proj": nn.Linear(WIDTH, WIDTH)})
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        heads = self.attn["c_attn"](self.ln_1(x)).unflatten(-1, (3, 2, WIDTH // 2)).permute(2, 0, 3, 1, 4)
        x = x + self.attn["c_proj"](F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(LETTERS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.h, self.ln_f = nn.Sequential(Block(), Block()), nn.LayerNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, LETTERS, bias=False)
        if tied:
            self.wte.weight = self.lm_head.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        return self.lm_head(self.ln_f(self.h(x)))


def tokens(generator: torch.Generator) -> tuple[tuple[Tensor, ...], Tensor]:
    drawn = torch.randint(0, LETTERS, (3, LENGTH), generator=generator)
    return (drawn,), drawn.roll(-1, 1)


def next_letter(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


CASE = Case("gpt", GPT, (), ("h.0.attn.c_attn.weight", "h.1.mlp.2.weight", "lm_head.weight"), next_letter, tokens)

Groups = tuple[list[str], list[str]]  # names of those that decay, and of the others


def by_name_and_type(model: nn.Module) -> Groups:
    """minGPT's rule. A parameter is seen from its module and from all modules around it, each time with another end."""
    decay, others = set(), set()
    for path, module in model.named_modules():
        for end, _ in module.named_parameters():
            name = f"{path}.{end}" if path else end
            if end.endswith("bias"):
                others.add(name)
            elif end.endswith("weight") and isinstance(module, nn.Linear):
                decay.add(name)
            elif end.endswith("weight") and isinstance(module, (nn.LayerNorm, nn.Embedding)):
                others.add(name)
    known = dict(model.named_parameters()).keys()
    assert not decay & others, f"judged both ways: {sorted(decay & others)}"
    assert decay | others == known, f"not judged, or not there: {sorted((decay | others) ^ known)}"
    return sorted(decay), sorted(others)


def by_dims(model: nn.Module) -> Groups:
    """nanoGPT's rule."""
    found = dict(model.named_parameters())
    return [n for n, p in found.items() if p.dim() >= 2], [n for n, p in found.items() if p.dim() < 2]


RULES: dict[str, Callable[[nn.Module], Groups]] = {"minGPT": by_name_and_type, "nanoGPT": by_dims}


def dense(tied: bool = False) -> GPT:
    torch.manual_seed(0)
    return GPT(tied)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("rule", "tied"), [("minGPT", False), ("nanoGPT", False), ("nanoGPT", True)])
def test_groups_are_those_of_the_dense_model(rule: str, tied: bool, layout: str) -> None:
    sparse = topkast.sparsify(dense(tied), **SPARSE, **LAYOUTS[layout])
    decay, others = RULES[rule](sparse)
    assert (decay, others) == RULES[rule](dense(tied))
    assert len(sites_of(sparse)) == 8 + (not tied) and sites_of(sparse).keys() <= set(decay)


@pytest.mark.parametrize("convert", ["sparsify", "compile"])
def test_groups_stay_after_training_and_loading(convert: str, tmp_path: Any) -> None:
    """nanoGPT and minGPT make their optimizer anew when they go on."""
    if convert == "sparsify":
        model = topkast.sparsify(dense(), **SPARSE)
    else:
        model = topkast.compile(dense(), **SPARSE, backend="aot_eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for (drawn,), target in CASE.batches(4):
        optimizer.zero_grad()
        next_letter(model(drawn), target).backward()
        optimizer.step()
    torch.save(model.state_dict(), tmp_path / "ckpt.pt")
    again = topkast.sparsify(dense(), **SPARSE)
    again.load_state_dict(torch.load(tmp_path / "ckpt.pt"))
    for rule in RULES.values():
        assert rule(model) == rule(again) == rule(dense())


@pytest.mark.parametrize("rule", RULES)
def test_trains_as_the_oracle_under_the_rule(rule: str) -> None:
    """The oracle's groups are those that the dense model's parameters have by their names."""

    def loop(system: Any, optimizer: Any, trio: Trio) -> Any:
        if system is trio.ours:
            held = dict(system.model.named_parameters())
            groups = RULES[rule](system.model)
        else:
            held, groups = {**system.theta, **system.dense}, RULES[rule](dense())
        assert held.keys() == {*groups[0], *groups[1]}
        optimizer = torch.optim.AdamW(
            [
                {"params": [held[name] for name in groups[0]], "weight_decay": 0.3},
                {"params": [held[name] for name in groups[1]], "weight_decay": 0.0},
            ],
            lr=1e-2,
            eps=1e-4,
        )
        system.watch(optimizer)
        yield from plain(system, optimizer, trio, steps=7)

    assert Trio(CASE, {**SPARSE, "backend": "eager"}, None).run(loop) == 7
