"""The ``torch.compile`` backend: capture by Dynamo, our passes on the joint graph, then Inductor or plain ATen.

Dynamo and Inductor are imported inside functions, because their import takes longer than torch's own, and a program
that only loads, reports or densifies a model needs neither.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx

from topkast.compiler.capture.cpp_compiler import lacks_compiler
from topkast.compiler.capture.entry import Entries
from topkast.compiler.capture.no_gain import notice_no_gain
from topkast.compiler.capture.op_table import op_name
from topkast.compiler.capture.trace_recurrent import as_one_operator, mostly_recurrent
from topkast.compiler.capture.traceable import hides, in_the_open, within
from topkast.compiler.capture.why_eager import why_eager
from topkast.compiler.report.pass_logs import keep_log
from topkast.passes import aten as passes
from topkast.passes.aten import PassLog
from topkast.passes.dynamo.count_launches import count_launches
from topkast.passes.dynamo.insert_refresh import insert_refresh, keyed_sites
from topkast.runtime.devices import check_graph_inputs
from topkast.runtime.doing import doing
from topkast.runtime.errors import ConfigError
from topkast.runtime.state.model import sites
from topkast.runtime.training.eager_steps import Watch

from .options import Option, choice

BACKEND = Option(
    "backend",
    "inductor",
    "str",
    choice("inductor", "aot_eager", "eager"),
    'What compiles the model: ``"inductor"``, ``"aot_eager"`` (the same passes, no generated code) or ``"eager"`` '
    "(converted, not compiled).",
    "On a CPU without a C++ compiler ``aot_eager`` runs instead of Inductor, with a warning. If most sparse weights "
    "belong to recurrent layers, the model is compiled once for all shapes, with ``aot_eager`` unless ``mode`` or "
    "``options`` are given. A module with sparse "
    "weights that the program calls from outside of the model's own call is compiled too. If a training step ran "
    "eagerly all the same, a warning says so once, and the report gives the reason.",
)


@contextlib.contextmanager
def traced_to_products(module: fx.GraphModule) -> Iterator[None]:
    """Switch oneDNN off while a graph with an LSTM is traced: it would make a whole layer one opaque operator."""
    recurrent = any(op_name(node) == "lstm" for node in module.graph.nodes)
    before = torch._C._get_mkldnn_enabled()
    # Not torch.backends.mkldnn.flags, which sets its other flags too and warns where one is for other devices.
    torch._C._set_mkldnn_enabled(before and not recurrent)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


def _inductor(
    module: fx.GraphModule, inputs: list[Any], log: PassLog, mode: str | None, options: dict[str, Any] | None
) -> Any:
    from torch._inductor.compile_fx import compile_fx

    from topkast.passes.aten import lower_products
    from topkast.passes.aten.joint_pass import JointPass

    lower_products.install()
    patches = torch._inductor.list_mode_options(mode) if mode not in (None, "default") else {}
    devices = [one.device for one in inputs if isinstance(one, torch.Tensor)]
    on_gpu = any(device.type == "cuda" for device in devices)
    keyed = keyed_sites(module, inputs) if on_gpu else {}  # only for a GPU does Inductor launch products itself
    keys = () if any(site.grows_by_gradient for site in keyed.values()) else keyed
    patches = {**patches, **(options or {}), "joint_custom_pre_pass": JointPass(log, keys)}
    with torch._inductor.config.patch(patches):
        config = torch._inductor.config
        check_graph_inputs(config.triton.cudagraphs, config.graph_partition, devices)
    with traced_to_products(module), _passes_always_run() if on_gpu else contextlib.nullcontext():
        return compile_fx(module, inputs, config_patches=patches)


def _passes_always_run() -> contextlib.AbstractContextManager[Any]:
    """AOTAutograd's cache is off: with a graph from there no pass runs, and nobody would know which products Inductor
    launches. Inductor's own cache, of the generated code, stays on."""
    from torch._functorch import config

    return config.patch(enable_autograd_cache=False)


def _plain(module: fx.GraphModule, inputs: Any) -> Callable[..., Any]:
    from functorch.compile import make_boxed_func

    return make_boxed_func(module.forward)


def _aot_eager(module: fx.GraphModule, inputs: list[Any], log: PassLog) -> Any:
    from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
    from torch._dynamo.backends.common import aot_autograd

    def split(joint: fx.GraphModule, inputs: Any, **rest: Any) -> tuple[fx.GraphModule, fx.GraphModule]:
        passes.joint(joint.graph, log)
        joint.recompile()
        return min_cut_rematerialization_partition(joint, inputs, **rest)

    compiler = aot_autograd(
        fw_compiler=_plain,
        bw_compiler=_plain,
        inference_compiler=lambda graph, _: make_boxed_func(passes.inference(graph, log).forward),
        partition_fn=split,
    )
    with traced_to_products(module):
        return compiler(module, inputs)


def _inductor_if_possible(
    module: fx.GraphModule, inputs: list[Any], log: PassLog, mode: str | None, options: dict[str, Any] | None
) -> Any:
    if lacks_compiler(inputs, options):
        return _aot_eager(module, inputs, log)
    return _inductor(module, inputs, log, mode, options)


def _behind_refresh(
    module: fx.GraphModule, inputs: list[Any], compile_graph: Callable[[PassLog], Any]
) -> Callable[..., Any]:
    """The compiled graph, called after its refresh. The log of its passes is kept for the report. Dynamo may hide an
    error, so the error is also recorded with the sites of the graph."""
    log, sites = PassLog(), list(keyed_sites(module, inputs).values())
    keep_log(log, sites)
    try:
        with doing("compiling"):
            compiled = insert_refresh(module, inputs, lambda: count_launches(compile_graph(log), log))
        notice_no_gain(log, sites)
        return compiled
    except Exception as error:
        for site in sites:
            watch = site.__dict__.get("watch")
            if watch is not None:
                watch.failed = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        raise


def topkast_backend(
    module: fx.GraphModule,
    inputs: list[Any],
    *,
    mode: str | None = None,
    options: dict[str, Any] | None = None,
) -> Callable[..., Any]:
    """Backend "topkast" of ``torch.compile``, for a model that went through :func:`topkast.sparsify`.

    The package's entry point makes the name known to ``torch.compile``.

    Args:
        module, inputs: the captured graph and its inputs, as Dynamo gives them.
        mode, options: the arguments of ``torch.compile`` of these names, for Inductor.
    """
    return _behind_refresh(module, inputs, lambda log: _inductor_if_possible(module, inputs, log, mode, options))


def topkast_aot_eager(module: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
    """Backend "topkast_aot_eager": the same passes, then operators run one by one without Inductor.

    It compiles quickly and is meant for tests and debugging.
    """
    return _behind_refresh(module, inputs, lambda log: _aot_eager(module, inputs, log))


def compile_module(module: torch.nn.Module, backend: str, options: dict[str, Any]) -> None:
    """Compile in place, as ``nn.Module.compile`` does; "eager" leaves the converted module as it is.

    Args:
        module: a converted module. A submodule that can be called by itself is compiled at its first call.
        backend: a name that :data:`BACKEND` allows.
        options: further arguments of ``torch.compile``.
    """
    if backend == "eager":
        return
    function = topkast_backend if backend == "inductor" else topkast_aot_eager
    without_code = backend == "inductor" and not {"mode", "options"} & set(options)

    def compile(part: torch.nn.Module, call: Callable[..., Any]) -> Callable[..., Any]:
        if without_code and mostly_recurrent(part):
            compiled = torch.compile(call, backend=topkast_aot_eager, **{"dynamic": True, **options})
        else:
            compiled = torch.compile(call, backend=function, **options)
        if any(isinstance(one, torch.nn.RNNBase) for one in part.modules()):
            # Without this Dynamo leaves recurrent modules out of its graphs, and their products dense.
            compiled = within(as_one_operator, torch._dynamo.config.patch(allow_rnn=True)(compiled))
        return within(in_the_open, compiled) if hides(part) else compiled

    compile(module, module.forward)  # torch.compile raises its errors about the options here
    if without_code and mostly_recurrent(module):
        module._topkast.backend = "aot_eager (most sparse weights are recurrent)"  # type: ignore[union-attr]
    watch = Watch(backend)
    Entries(compile, (backend, repr(sorted(options.items()))), watch).install(module)
    if not options.get("disable"):
        watch.explain = lambda: why_eager(module, watch)
        module._topkast.watch = watch  # type: ignore[union-attr]
        for site in sites(module).values():
            site.set_watch(watch)


def check_backend(backend: str, options: dict[str, Any]) -> None:
    """Raise ConfigError if the backend or an option of ``torch.compile`` does not exist."""
    BACKEND.check(BACKEND.name, backend)
    allowed = {"inductor": ("fullgraph", "dynamic", "mode", "options", "disable")}.get(
        backend, ("fullgraph", "dynamic", "disable")
    )
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise ConfigError(
            f"unknown arguments {', '.join(unknown)}: not of topkast.compile, and for backend={backend!r} "
            f"torch.compile takes {', '.join(allowed)}"
        )
    for name in ("fullgraph", "dynamic", "disable"):
        kinds = (True, False, None) if name == "dynamic" else (True, False)
        if name in options and not any(options[name] is one for one in kinds):
            raise ConfigError(f"{name}={options[name]!r}: must be {' or '.join(map(str, kinds))}")
    mode, of_inductor = options.get("mode"), options.get("options")
    if mode is not None and of_inductor is not None:
        raise ConfigError(f"mode={mode!r}: torch.compile takes mode or options, not both")
    if mode is not None and mode not in (known := ["default", *torch._inductor.list_mode_options()]):
        raise ConfigError(f"mode={mode!r}: must be one of {', '.join(map(repr, dict.fromkeys(known)))}")
    if of_inductor is not None and not isinstance(of_inductor, dict):
        raise ConfigError(f"options={of_inductor!r}: must be a dict of options of Inductor")
    if wrong := sorted(map(repr, set(of_inductor or ()) - set(torch._inductor.list_options()))):
        raise ConfigError(
            f"options: {', '.join(wrong)} not known to Inductor; torch._inductor.list_options() lists all"
        )
