"""DeepSpeed's engine is refused at its first training forward. A stand-in of the engine holds the model as the real one
does: without nn.Module's registration."""

from __future__ import annotations

import functools
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import topkast

ENGINE = """
from torch import nn

class DeepSpeedEngine(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.__dict__["_modules"]["module"] = model
        self.__dict__["module"] = model

    def forward(self, *args):
        return self.module(*args)
"""


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    name = "deepspeed.runtime.engine"
    for part in ("deepspeed", "deepspeed.runtime", name):
        monkeypatch.setitem(sys.modules, part, ModuleType(part))
    exec(ENGINE, vars(sys.modules[name]))
    return vars(sys.modules[name])["DeepSpeedEngine"]


@pytest.mark.parametrize("convert", [topkast.sparsify, functools.partial(topkast.compile, backend="eager")])
def test_refused(convert: Any, engine: Any) -> None:
    model, x = convert(nn.Sequential(nn.Linear(8, 8)), fwd=0.5, bwd=0.25, min_size=1), torch.randn(2, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    held = engine(model)
    with pytest.raises(topkast.ModelError, match=r"DeepSpeed's engine would give each process .* its own sets; use"):
        held(x)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    held.eval()(x)  # an evaluation changes nothing
    model.train()(x).sum().backward()  # nor is anything else in the process refused
