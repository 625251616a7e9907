"""The code that Inductor generates for the forward and the backward of a sparse model on a GPU, without a GPU.

Dynamo and AOTAutograd trace the model on the CPU, because autograd has no CUDA in a build without it. Then all fake
tensors of the joint graph move to the GPU, our passes run, and Inductor generates code from there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_map

from topkast.passes.aten import PassLog
from topkast.passes.aten.joint_pass import JointPass
from topkast.passes.dynamo.insert_refresh import keyed_sites
from topkast.runtime.triton import products

from .absent_gpu import absent_gpu

R = TypeVar("R")
GPU = torch.device("cuda", 0)


def move_to_gpu(graph: fx.Graph, stay: Iterable[fx.Node]) -> None:
    """Give every node of an ATen graph a value on the GPU, except ``stay``: the keys of sites."""
    stays = set(stay)

    def moved(value: Any) -> Any:
        if not isinstance(value, FakeTensor):
            return value
        with value.fake_mode:
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=GPU)

    for node in graph.nodes:
        if "val" in node.meta and node not in stays:
            node.meta["val"] = tree_map(moved, node.meta["val"])
        if node.kwargs.get("device") is not None:
            node.kwargs = {**node.kwargs, "device": GPU}


class OnGPU(JointPass):
    """The joint pipeline, on a graph that was traced on the CPU."""

    def __init__(self, log: PassLog, keys: Iterable[int], launches: bool) -> None:
        super().__init__(log, keys if launches else ())
        self.sites = tuple(keys)
        self.graphs: list[fx.Graph] = []

    def __call__(self, graph: fx.Graph) -> None:
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        move_to_gpu(graph, [inputs[position] for position in self.sites])
        super().__call__(graph)
        self.graphs.append(graph)


@contextlib.contextmanager
def _block_kernels() -> Iterator[None]:
    """Every product gets the kernel "triton"."""
    on_gpu = mock.patch.object(products, "runs_on", lambda device: device.type == "cuda")
    with mock.patch.dict(os.environ, {"TOPKAST_KERNEL": "triton"}), on_gpu:
        yield


def generated(
    model: nn.Module, x: torch.Tensor, launches: bool, read: Callable[[list[str], fx.Graph, PassLog], R]
) -> R:
    """Generate the code of one graph.

    Args:
        model: a converted model on the CPU, in the dtype that it runs in.
        x: its input.
        launches: whether Inductor launches the kernels; else our operators do.
        read: called with the code of the forward and of the backward, the joint graph, and the log of the passes, while
            there seems to be a GPU.

    Returns:
        what ``read`` returns.
    """
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner

    found: list[R] = []

    def inner(module: fx.GraphModule, _: Any, **rest: Any) -> Any:
        inputs = [node.meta["val"] for node in module.graph.find_nodes(op="placeholder")]
        return compile_fx_inner(module, inputs, **rest)

    def backend(module: fx.GraphModule, inputs: list[Any]) -> Any:
        log = PassLog()
        rewrite = OnGPU(log, keyed_sites(module, inputs), launches)
        with absent_gpu() as texts, _block_kernels():
            patches = {"joint_custom_pre_pass": rewrite}
            compile_fx(module, inputs, inner_compile=inner, config_patches=patches)
            found.append(read(texts, rewrite.graphs[0], log))
        return module.forward

    torch._dynamo.reset()
    torch.compile(model, backend=backend, fullgraph=True)(x)
    return found[0]
