"""``topkast.compile``: the one line that a user adds before an unchanged training loop."""

from __future__ import annotations

import contextlib
import math
import warnings
from typing import Any

import torch

from topkast.compiler.convert.sparsify import M, convert
from topkast.runtime.errors import ConfigError
from topkast.runtime.memory_pages import keep_blocks
from topkast.runtime.state.model import find, sites
from topkast.runtime.state.refresh import refresh as refresh_sites
from topkast.runtime.state.sharding.whole_tensors import reshard
from topkast.runtime.training.eager_steps import notice_eager_step
from topkast.runtime.training.optimizer_hooks import advance

from .backend import BACKEND, check_backend, compile_module
from .config import OPTIONS, Config
from .describe import with_options
from .options import pick
from .start import Start

ARGUMENTS = (*OPTIONS, BACKEND)


@with_options(ARGUMENTS, rest="torch_compile_options")
def compile(model: M, fwd: float = Config.fwd, bwd: float | None = Config.bwd, **options: Any) -> M:
    """Make a model train sparse, in place, and compile the model. The training loop stays unchanged.

    In the forward pass, the weights of matrix products and convolutions use only the set A of their largest entries.
    Gradients, optimizer state and updates exist for the larger set B. Both sets are chosen again from all weights every
    ``refresh_every`` steps (Jayakumar et al. 2020, arXiv 2106.03517, section 2).

    Optimizers that treat each entry of a weight by itself work unchanged. Optimizers that use a weight's norm (LAMB,
    LARS) also work; their norm is then the norm of B's values. Other optimizers (Muon, Adafactor, LBFGS) raise
    ``OptimizerError`` at their first step.

    Args:
        model: any ``torch.nn.Module``, for example an ``fx.GraphModule`` or an exported program's module.
        {options}
        torch_compile_options: ``fullgraph``, ``dynamic``, ``mode``, ``options``, ``disable`` of ``torch.compile``.

    Returns:
        The same object.

    Raises:
        ConfigError: an argument has a value that is not allowed, or matches nothing. The model is unchanged.
        ModelError: the model cannot be converted. The model is unchanged.
        ReservoirError: ``reservoir="disk"``, and the disk has no room. The model is unchanged.
        CheckpointError: ``init`` is the path of a checkpoint that is damaged or of another model. The model is
            unchanged.
    """
    backend = options.pop(BACKEND.name, BACKEND.default)
    own = {one.name for one in OPTIONS}
    torch_compile_options = {name: value for name, value in options.items() if name not in own}
    check_backend(backend, torch_compile_options)

    def compile_it(converted: torch.nn.Module) -> None:
        converted._topkast.backend = backend  # type: ignore[union-attr]
        compile_module(converted, backend, torch_compile_options)

    config = Config(fwd, bwd, **pick(Config, options))
    compiled = convert(model, config, Start(**pick(Start, options)), compile_it)
    if any(parameter.is_cpu for parameter in compiled.parameters()):
        keep_blocks()
    return compiled


def refresh(model: torch.nn.Module) -> None:
    """Choose A and B of every site again, now. After a call between a forward and its backward, the backward fails.

    With ``refresh_in_background`` the sets are also chosen now; the sets that a thread has prepared are dropped. All
    ranks of a sharded model call this function together.

    Args:
        model: a converted model, or a wrapper of such a model.

    Raises:
        ModelError: the model was not converted.
    """
    reshard(find(model)[0])
    refresh_sites(sites(model).values())


def _rate(lr: Any) -> float:
    one = isinstance(lr, torch.Tensor) and lr.numel() == 1 and not lr.is_complex()
    if one or (isinstance(lr, (int, float)) and not isinstance(lr, bool)):
        with contextlib.suppress(OverflowError):  # an integer may be larger than any float
            found = float(lr)
            if 0 <= found < math.inf:
                return found
    raise ConfigError(f"lr={lr!r}: must be a finite number of 0 or more, or None")


@torch.no_grad()
def step(model: torch.nn.Module, lr: float | None = None) -> None:
    """Tell the model that an optimizer step is complete.

    Only a loop without a ``torch.optim`` optimizer needs this call; a ``torch.optim`` optimizer reports its own steps.

    Args:
        model: a converted model, or a wrapper of such a model.
        lr: the step's learning rate, by which ``exploration_decay`` is scaled. None: nothing is decayed, and a warning
            says so once.

    Raises:
        ConfigError: ``lr`` is no finite number of 0 or more; or ``exploration_l2`` is set. This term must be added to
            the gradient before the step, and only an optimizer's hook can do that.
        ModelError: the model was not converted, or was loaded for inference.
    """
    if lr is not None:
        lr = _rate(lr)
    for site in sites(model).values():
        site.check_trainable("an optimizer step")
        if site.rule.exploration_l2:
            raise ConfigError(
                f"exploration_l2={site.rule.exploration_l2}: needs a torch.optim optimizer; use exploration_decay"
            )
        if lr is None and site.rule.exploration_decay != 0:
            warnings.warn("topkast.step without lr: exploration_decay is not applied", stacklevel=2)
    advance([(site, lr) for site in sites(model).values()])
    notice_eager_step(sites(model).values())
