"""A training step whose graph launches the Triton kernels itself, in the emulator, against the step with operators.

TRITON_INTERPRET=0 python -m topkast.tests.support.ptx.launched 90
"""

from __future__ import annotations

import copy
import os
import sys
import warnings
from typing import Any
from unittest import mock

import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import fx, nn
from torch._dynamo.backends.common import aot_autograd

import topkast
from topkast.compiler.backend import topkast_aot_eager
from topkast.passes.aten import PassLog
from topkast.passes.aten.finish import launch_kernels
from topkast.passes.aten.joint_pass import JointPass
from topkast.passes.dynamo.count_launches import count_launches
from topkast.passes.dynamo.insert_refresh import keyed_sites
from topkast.runtime.state.model import sites

from .driver import emulated


def _boxed(module: fx.GraphModule, _: Any) -> Any:
    return make_boxed_func(module.forward)


def launching(module: fx.GraphModule, inputs: list[Any]) -> Any:
    """The passes as Inductor runs them, then operators and launches one by one."""
    log = PassLog()
    rewrite = JointPass(log, keyed_sites(module, inputs))

    def split(joint: fx.GraphModule, inputs: Any, **rest: Any) -> Any:
        rewrite(joint.graph)
        joint.recompile()
        assert "topkast" not in str(joint.graph), joint.graph
        return min_cut_rematerialization_partition(joint, inputs, **rest)

    compiler = aot_autograd(fw_compiler=_boxed, bw_compiler=_boxed, partition_fn=split)
    return count_launches(compiler(module, inputs), log)


def step(model: nn.Module, x: torch.Tensor, backend: Any) -> list[torch.Tensor]:
    """Result and gradients."""
    torch._dynamo.reset()
    x = x.clone().requires_grad_()
    y = torch.compile(model, backend=backend)(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in model.parameters())]


def main(capability: int) -> int:
    warnings.simplefilter("ignore")
    os.environ["TOPKAST_KERNEL"] = "triton"
    torch.manual_seed(0)
    with emulated(capability), mock.patch.object(launch_kernels, "traceable", lambda kernel, _: kernel == "triton"):
        model = nn.Sequential(nn.Linear(64, 48), nn.GELU(), nn.Linear(48, 64))
        topkast.sparsify(model, 0.6, 0.4, block=(16, 16), min_size=1)
        plain, x = copy.deepcopy(model), torch.randn(40, 64)
        ours = step(model, x, launching)
        theirs = step(plain, x, topkast_aot_eager)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        for site, other_site in zip(sites(model).values(), sites(plain).values(), strict=True):
            assert site.turned is not None
            assert site.ran == other_site.ran and sum(site.ran.values()) == 3, (site.ran, other_site.ran)
    print("right")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
