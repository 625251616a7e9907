"""What compiling costs with Inductor: topkast.compile beside plain torch.compile, both from empty caches."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch._inductor.utils import fresh_cache

import topkast

from .model_entry import Entry, loss_of

# One of a kind: generating code takes most of the time of a model, and it is the same code that is left as it was.
SAMPLE = {
    ("torchvision", "resnet18"),  # a convolutional network
    ("timm", "deit_tiny_patch16_224"),  # a vision transformer
    ("transformers", "llama"),  # a decoder
    ("transformers", "t5"),  # an encoder with a decoder
    ("transformers", "mixtral"),  # a mixture of experts
    ("torch.nn", "LSTM 8"),
}


def compile_times(entry: Entry) -> dict[str, Any] | None:
    """Seconds of computing from the dense model to the end of the first backward; None out of :data:`SAMPLE`.

    Plain torch.compile leaves recurrent layers to Python, in their own operator; ours compiles them.
    Ours include the choice of the weights, by tracing, and of the kernels, by measuring, as a user has them.
    """
    if (entry.suite, entry.name) not in SAMPLE:
        return None
    plain = _seconds(entry, None)
    sparse = _seconds(entry, {"min_size": 1, "example_inputs": entry.example(), **entry.options})
    return {"seconds with Inductor": {"plain": round(plain, 1), "topkast": round(sparse, 1)}}


def _seconds(entry: Entry, options: dict[str, Any] | None) -> float:
    model = entry.model()
    args, kwargs = entry.at(1)
    torch._dynamo.reset()
    # In this process and the compilers it starts, whose time is counted: clocks are of no use on a busy machine.
    with fresh_cache(), _empty_planner(), torch._inductor.config.patch(compile_threads=1):
        start = _computed()
        compiled: nn.Module | None = topkast.compile(model, **options) if options is not None else model
        if options is None:
            model.compile()
        assert compiled is not None
        loss_of(compiled(*args, **kwargs)).backward()
        return _computed() - start


def _computed() -> float:
    """Seconds of computing of this process and of its children so far."""
    return sum(os.times()[:4])


@contextlib.contextmanager
def _empty_planner() -> Iterator[None]:
    """Kernels are measured as for a user, and nothing is known from an earlier run."""
    before = {name: os.environ.get(name) for name in ("TOPKAST_KERNEL", "TOPKAST_CACHE")}
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(TOPKAST_KERNEL="measure", TOPKAST_CACHE=folder)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                os.environ.update({name: value} if value is not None else {})
