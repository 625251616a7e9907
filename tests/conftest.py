"""What every test starts from, and the session's summary of what was compared with the oracle."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

# The CUDA kernels run in Triton's interpreter where there is no GPU; Triton asks when it is first imported, which
# Inductor and the imports below may do. On the CPU they are used only where a test names them in TOPKAST_KERNEL.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# First: transformers and timm import torchvision, which may have been built for another torch.
import topkast.tools.zoo.model_entry  # noqa: F401
from topkast.runtime.methods import METHODS
from topkast.tests.support.truth import budget, lockstep, ways

# What is tested must not depend on what was faster today, and the oracle sums in the order of dense products; the
# native kernels have tests/runtime/native/test_native.py, in whole models tests/test_exact_kernels.py, the planner
# tests/runtime/planner/test_planner.py. With another kernel, plain PyTorch's sums run in further orders if its eager
# budget is missed.
if os.environ.setdefault("TOPKAST_KERNEL", "dense") != "dense":
    lockstep.FURTHER.update(ways.SUMS)

# The tensors are tiny, and pytest-xdist already gives every core a process.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Same seed, no compiled code and no leftover mode or registered method from the test before."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    torch.set_grad_enabled(True)
    methods = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(methods)
    torch._dynamo.reset()
    assert torch._C._is_torch_function_enabled(), "the test has left tensor subclasses, and fx, switched off"


def pytest_sessionfinish(session: pytest.Session) -> None:
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["oracle"] = tuple(budget.TALLY[key] for key in ("steps", "worst", "where"))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: Any) -> None:
    """xdist: one worker is done."""
    if "oracle" in getattr(node, "workeroutput", {}):
        budget.tally(*node.workeroutput["oracle"])


def pytest_terminal_summary(terminalreporter: Any) -> None:
    steps, worst, where = (budget.TALLY[key] for key in ("steps", "worst", "where"))
    if steps:
        found = f"largest error {worst:.2f} of its budget ({where})" if worst else "all equal bit for bit"
        terminalreporter.write_line(f"oracle: {steps} steps compared, {found}")
