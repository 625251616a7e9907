"""The ``torch.compile`` backend: capture by Dynamo, our passes on the joint graph, then Inductor or plain ATen."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import fx
from torch._dynamo import trace_rules
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.backends.registry import register_backend

from topkast import passes
from topkast.passes.insert_refresh import insert_refresh
from topkast.runtime.errors import ConfigError
from topkast.runtime.renew import refresh_due
from topkast.runtime.site import Site
from topkast.runtime.state import sites

from .traceable import hides, in_the_open, within

BACKENDS = ("inductor", "aot_eager", "eager")

# What computes an operator is not to be compiled itself, where Dynamo has left a frame of the model to Python.
for _part in (
    *("choose", "gradient", "grouped", "kernels", "layout", "methods", "native", "ops", "record", "reference", "rows"),
    "triton",
):
    trace_rules.add(f"topkast.runtime.{_part}")
# Read outside of any graph, a weight is no graph of its own: it would be one for each site, none of which can fuse.
torch._dynamo.eval_frame.skip_code(Site.forward.__code__)


@contextlib.contextmanager
def _traced_to_products(module: fx.GraphModule) -> Iterator[None]:
    """While a graph with an LSTM is traced: without oneDNN, which would be one opaque operator for a whole layer."""
    recurrent = any(getattr(node.target, "__name__", "") == "lstm" for node in module.graph.nodes)
    before = torch._C._get_mkldnn_enabled()
    # Not torch.backends.mkldnn.flags, which sets its other flags too and warns where one is for other devices.
    torch._C._set_mkldnn_enabled(before and not recurrent)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


def _inductor(module: fx.GraphModule, inputs: list[Any], mode: str | None, options: dict[str, Any] | None) -> Any:
    from torch._inductor.compile_fx import compile_fx

    patches = torch._inductor.list_mode_options(mode) if mode not in (None, "default") else {}
    patches = {**patches, **(options or {}), "joint_custom_pre_pass": passes.JointPass()}
    with _traced_to_products(module):
        return compile_fx(module, inputs, config_patches=patches)


def _split(joint: fx.GraphModule, inputs: Any, **rest: Any) -> tuple[fx.GraphModule, fx.GraphModule]:
    passes.joint(joint.graph)
    joint.recompile()
    return min_cut_rematerialization_partition(joint, inputs, **rest)


def _plain(module: fx.GraphModule, inputs: Any) -> Callable[..., Any]:
    return make_boxed_func(module.forward)


def _aot_eager(module: fx.GraphModule, inputs: list[Any]) -> Any:
    compiler = aot_autograd(
        fw_compiler=_plain,
        bw_compiler=_plain,
        inference_compiler=lambda graph, _: make_boxed_func(passes.inference(graph).forward),
        partition_fn=_split,
    )
    with _traced_to_products(module):
        return compiler(module, inputs)


@register_backend(name="topkast")  # the entry point says the same to programs that never import us
def topkast_backend(
    module: fx.GraphModule,
    inputs: list[Any],
    *,
    mode: str | None = None,
    options: dict[str, Any] | None = None,
) -> Callable[..., Any]:
    """Backend "topkast" of ``torch.compile``, for a model that went through :func:`topkast.sparsify`.

    Args:
        module, inputs: the captured graph and its inputs, as Dynamo gives them.
        mode, options: as ``torch.compile`` has them for Inductor.
    """
    return insert_refresh(module, inputs, lambda: _inductor(module, inputs, mode, options))


def topkast_aot_eager(module: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
    """The same passes, run op by op without Inductor: quick to compile, for tests and debugging."""
    return insert_refresh(module, inputs, lambda: _aot_eager(module, inputs))


def compile_module(module: torch.nn.Module, backend: str, options: dict[str, Any]) -> None:
    """Compile in place through ``nn.Module.compile``; "eager" leaves the converted module as it is."""
    if backend == "inductor":
        module.compile(backend=topkast_backend, **options)
    elif backend == "aot_eager":
        module.compile(backend=topkast_aot_eager, **options)
    recurrent = any(isinstance(part, torch.nn.RNNBase) for part in module.modules())
    if recurrent and module._compiled_call_impl is not None:
        # Without this Dynamo leaves recurrent modules out of its graphs, and their products dense.
        module._compiled_call_impl = torch._dynamo.config.patch(allow_rnn=True)(module._compiled_call_impl)
    if hides(module) and module._compiled_call_impl is not None:
        module._compiled_call_impl = within(in_the_open, module._compiled_call_impl)
    if module._compiled_call_impl is not None:
        module._compiled_call_impl = _refreshed(module, module._compiled_call_impl)


def _refreshed(module: torch.nn.Module, call: Callable[..., Any]) -> Callable[..., Any]:
    """``call`` behind what the root's own hook does in eager mode: a forward may run no graph that has a site."""

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            refresh_due(sites(module).values())
        return call(*args, **kwargs)

    return run


def check_backend(backend: str, options: dict[str, Any]) -> None:
    """Raise ConfigError for a backend or an option of ``torch.compile`` that is not there."""
    if backend not in BACKENDS:
        raise ConfigError(f"backend={backend!r}: must be one of {', '.join(map(repr, BACKENDS))}")
    allowed = {"inductor": ("fullgraph", "dynamic", "mode", "options", "disable")}.get(
        backend, ("fullgraph", "dynamic", "disable")
    )
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise ConfigError(
            f"unknown arguments {', '.join(unknown)}: not of topkast.compile, and for backend={backend!r} "
            f"torch.compile takes {', '.join(allowed)}"
        )
