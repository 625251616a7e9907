"""Random sequences of calls. A dense copy of θ and the file's content are kept beside, and say what must hold."""

from __future__ import annotations

import copy
import pickle
import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

import topkast

from .trained import assert_sound, everything, same, train, trained

OPTIMIZERS: dict[str, Any] = {
    "adamw": lambda p: torch.optim.AdamW(p, 0.05),
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01),
}
RULES: tuple[dict[str, Any], ...] = (
    {},
    {"reservoir": "host"},
    {"reservoir": "disk", "block": (2, 2)},
    {"explore": "random", "exploration_decay": 0.0},
    {"method": "rigl", "bwd": None},
    {"refresh_in_background": True},
    {"balanced": False, "stop_exploring_after": 5},
)
ACTIONS = (
    *("step", "step", "step", "refresh", "save", "load", "load", "dense", "state dict", "copy", "pickle", "optimizer"),
    *("average", "wrap", "append", "evaluate", "frozen", "accumulate"),
)
cases = st.tuples(
    st.integers(0, len(RULES) - 1),
    st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 5)), min_size=1, max_size=14),
)


class Run:
    """A model in training, and what must be true of it."""

    def __init__(self, rule: int, folder: Path) -> None:
        self.rule, self.folder = RULES[rule], folder
        self.model, self.optimizer = trained(1, **self.rule)
        self.root: Any = self.model
        self.saved: Any = None
        self.count = 0

    def theta(self) -> dict[str, torch.Tensor]:
        return {key: value.clone() for key, value in topkast.dense_state_dict(self.root, "all").items()}

    def step(self, number: int) -> None:
        for seed in range(1 + number % 3):
            topkast_masks = topkast.masks(self.root)
            before = self.theta()
            out = self.model(torch.randn(4, 12, generator=torch.Generator().manual_seed(self.count + seed)))
            chosen = topkast.masks(self.root)  # a forward that is due refreshes
            if "method" not in self.rule:
                assert same(self.theta(), before), "a refresh has changed θ"
            held = self.theta()
            out.square().sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            after = self.theta()
            # RigL refreshes in the step, and what enters starts at zero.
            for name, (_, bwd) in chosen.items() if "method" not in self.rule else ():
                assert torch.equal(after[name][~bwd], held[name][~bwd]), f"{name}: a step has moved θ outside B"
            assert topkast_masks.keys() == chosen.keys()
        self.count += 1

    def refresh(self, number: int) -> None:
        before = self.theta()
        topkast.refresh(self.root)
        if "method" not in self.rule:
            assert same(self.theta(), before), "a refresh has changed θ"

    def save(self, number: int) -> None:
        topkast.save(self.root, self.folder / "file", self.optimizer)
        self.saved = everything(self.root, self.optimizer), [type(part) for part in self.root.modules()]
        self.kind = type(self.optimizer)

    def load(self, number: int) -> None:
        if self.saved is None:
            return
        before = everything(self.root, self.optimizer)
        fits = self.saved[1] == [type(part) for part in self.root.modules()] and self.kind is type(self.optimizer)
        fits &= self.saved[0][0].keys() == before[0].keys()
        try:
            topkast.load(self.root, self.folder / "file", self.optimizer)
        except topkast.CheckpointError:
            assert not fits, "refused, though it is of this model"
            assert same(everything(self.root, self.optimizer), before), "refused, and changed"
            return
        assert same(everything(self.root, self.optimizer), self.saved[0]), "loaded, and it is not what was saved"

    def dense(self, number: int) -> None:
        theta = self.theta()
        topkast.load_dense_state_dict(self.root, theta)
        assert same(self.theta(), theta), "dense weights came back different"
        assert list(theta) == list(topkast.densify(self.root).state_dict()), "other keys than the dense model's"

    def state_dict(self, number: int) -> None:
        kept = copy.deepcopy(self.root.state_dict())
        self.step(0)
        self.root.load_state_dict(kept)
        assert same(dict(self.root.state_dict()), dict(kept)), "a state dict came back different"

    def copy(self, number: int) -> None:
        before = everything(self.root)
        twin = copy.deepcopy(self.root)
        assert same(everything(twin)[0], before[0]), "a copy is different"
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(1.0)
        assert same(everything(self.root), before), "a change of a copy has changed its source"

    def pickle(self, number: int) -> None:
        twin = pickle.loads(pickle.dumps(self.root))
        assert same(everything(twin)[0], everything(self.root)[0]), "a pickle is different"

    def optimizer_(self, number: int) -> None:
        self.optimizer = OPTIMIZERS[sorted(OPTIMIZERS)[number % 3]](self.root.parameters())

    def average(self, number: int) -> None:
        average = topkast.averaged(self.root)
        self.step(0)
        average.update_parameters(self.root)
        assert all(value.isfinite().all() for value in average.state_dict().values() if value.is_floating_point())

    def wrap(self, number: int) -> None:
        self.model = nn.Sequential(self.root) if self.model is self.root else self.root

    def append(self, number: int) -> None:
        if len(self.root) < 6:
            layer = nn.Linear(8, 8)
            self.root.append(layer)
            self.optimizer.add_param_group({"params": list(layer.parameters())})
            assert f"{len(self.root) - 1}.weight" in topkast.dense_state_dict(self.root), "an added layer is dropped"

    def evaluate(self, number: int) -> None:
        before = everything(self.root, self.optimizer)
        self.model.eval()
        with torch.no_grad():
            self.model(torch.ones(2, 12))
        self.model.train()
        assert same(everything(self.root, self.optimizer), before), "an evaluation has changed the model"

    def frozen(self, number: int) -> None:
        flag = self.root[0].weight.requires_grad
        parameter = self.root[0]._parameters["weight"]
        parameter.requires_grad_(False)
        self.model(torch.ones(2, 12))
        parameter.requires_grad_(flag)

    def accumulate(self, number: int) -> None:
        for _ in range(2):
            self.model(torch.ones(3, 12)).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def check(case: Any) -> str:
    rule, actions = case
    with tempfile.TemporaryDirectory() as folder:
        run = Run(rule, Path(folder))
        for action, number in actions:
            name = {"optimizer": "optimizer_", "state dict": "state_dict"}.get(action, action)
            getattr(run, name)(number)
            assert_sound(run.root)
        train(run.root, run.optimizer, 2)
        assert_sound(run.root)
    return "held"
