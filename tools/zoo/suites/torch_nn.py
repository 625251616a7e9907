"""torch.nn: every module with a weight matrix in torch's own test database, on its own sample inputs.

Of a module with many samples (the database has 857 for one) those at equal distances are taken.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.testing._internal.common_modules import module_db

from topkast.tools.zoo.model_entry import Batch, Entry

SAMPLES = 5


@functools.cache
def _samples(info: Any) -> list[Any]:
    torch.manual_seed(0)
    return info.module_inputs_func(info, device="cpu", dtype=torch.float32, requires_grad=False, training=True)


def _build(info: Any, index: int) -> nn.Module:
    given = _samples(info)[index].constructor_input
    return info.module_cls(*given.args, **given.kwargs)


def _batch(info: Any, index: int, _: torch.Generator) -> Batch:
    given = _samples(info)[index].forward_input
    return given.args, given.kwargs


def _of(info: Any) -> Iterator[Entry]:
    count = len(_samples(info))
    for index in sorted({round(i * (count - 1) / (SAMPLES - 1)) for i in range(SAMPLES)}):
        if any(p.ndim > 1 for p in _build(info, index).parameters()):
            build, batch = functools.partial(_build, info, index), functools.partial(_batch, info, index)
            name = info.name.removeprefix("nn.")
            # A convolution by itself is the first one of its model, which stays dense unless it is asked for.
            options = {"include": "weight"} if name.startswith("Conv") else {}
            yield Entry("torch.nn", f"{name} {index}", name, build, batch, options)


def entries() -> list[Entry]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of modules that say what they will not do
        return [entry for info in module_db for entry in _of(info)]
