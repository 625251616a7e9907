"""Find out why a compiled model ran a training step eagerly."""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType
from typing import Any

import torch
from torch import nn

from topkast.runtime.training.eager_steps import Watch

from .own_code import own_codes

LOGS = "TORCH_LOGS='graph_breaks,recompiles' shows what Dynamo does"


def why_eager(model: nn.Module, watch: Watch) -> str:
    """The likely cause why the last step ran eagerly, and the remedy.

    Args:
        model: a model that topkast compiled.
        watch: the model's watch.
    """
    from torch._dynamo import eval_frame

    config: Any = torch._dynamo.config
    if watch.failed is not None:
        return f"compiling failed with {watch.failed}, which torch._dynamo.config.suppress_errors hides"
    if config.disable or eval_frame._stance.stance == "force_eager":
        return "compiling is switched off in this process (TORCH_COMPILE_DISABLE or torch.compiler.set_stance)"
    if not watch.entered:
        return (
            "neither the model nor a module of it was called, so other code read the weights; call model(...), or a "
            "module that owns them, instead of its forward"
        )
    limit = config.recompile_limit
    for code in _codes(model):
        if len(eval_frame._debug_get_cache_entry_list(code)) >= limit:
            return (
                f"Dynamo has compiled {code.co_name} ({code.co_filename}:{code.co_firstlineno}) {limit} times, and "
                "torch._dynamo.config.recompile_limit allows no more; TORCH_LOGS=recompiles says why it had to"
            )
    hidden = "an error that torch._dynamo.config.suppress_errors hides, or " if config.suppress_errors else ""
    return f"Dynamo left it to Python ({hidden}torch.compiler.disable, or code that cannot be traced); {LOGS}"


def _codes(model: nn.Module) -> Iterator[CodeType]:
    """The code objects with which Dynamo may have stored graphs of the model."""
    yield from own_codes()
    for kind in {type(module) for module in model.modules()}:
        code = getattr(kind.forward, "__code__", None)
        if code is not None:
            yield code
