"""A model keeps to its own device, whatever ``torch.set_default_device`` says.

"meta" stands for the GPU: what is made on it by oversight holds no values, and is found at once.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import topkast
from topkast.tests.compiler.checkpoint.test_checkpoint import same, state_of
from topkast.tests.support.truth.builders import CASES

RULES: dict[str, dict[str, Any]] = {
    "random": {"explore": "random", "seed": 3},
    "blocks, host": {"block": (4, 4), "reservoir": "host"},
    "disk, background": {"reservoir": "disk", "refresh_in_background": True},
}


@pytest.mark.long
@pytest.mark.parametrize("name, rule, kernel", [
    ("mlp", "random", "native"), ("cnn", "blocks, host", "native"), ("cnn", "disk, background", "dense"),
    ("mlp", "random", "reference"),
])  # fmt: skip
def test_training_under_another_default_device(
    name: str, rule: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOPKAST_KERNEL", kernel)
    case, found = CASES[name], {}
    batches = case.batches(5)
    for default in ("cpu", "meta"):
        torch._dynamo.reset()
        options = {"min_size": 20, "refresh_every": 2, "backend": "aot_eager", **RULES[rule]}
        model = topkast.compile(case.model(), 0.8, 0.6, **options)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        with torch.device(default):
            for args, target in batches:
                case.loss(model(*args), target).backward()
                optimizer.step()
                optimizer.zero_grad()
            topkast.refresh(model)
        found[default] = state_of(model, optimizer)
    assert same(found["cpu"], found["meta"])
