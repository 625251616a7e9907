"""``topkast.compile``: the one line in front of an unchanged training loop."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from topkast.compiler.convert.meta.rehearse import Init
from topkast.compiler.convert.sparsify import M, convert
from topkast.runtime.errors import ConfigError
from topkast.runtime.state.model import sites
from topkast.runtime.state.refresh import refresh as refresh_sites
from topkast.runtime.training.eager_steps import notice_eager_step
from topkast.runtime.training.optimizer_hooks import advance

from .backend import check_backend, compile_module
from .config import Config


def compile(
    model: M,
    fwd: float = 0.9,
    bwd: float | None = None,
    *,
    example_inputs: Any = None,
    init: Init | None = None,
    device: Any = None,
    block: tuple[int, int] = (1, 1),
    balanced: bool | None = None,
    distribution: str | Mapping[str, tuple[float, float]] = "uniform",
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    refresh_every: int = 100,
    refresh_in_background: bool = False,
    stop_exploring_after: int | None = None,
    explore: str = "topk",
    exploration_l2: float = 0.0,
    exploration_decay: float | None = None,
    initial: str | None = "auto",
    method: str = "topkast",
    drop_fraction: float = 0.3,
    reservoir: str = "device",
    seed: int | None = None,
    min_size: int = 4096,
    backend: str = "inductor",
    **torch_compile_options: Any,
) -> M:
    """Make a model train sparse, in place, and compile it. The training loop stays as it is.

    The weights of matrix products and convolutions keep, in the forward pass, only the set A of their largest entries;
    gradients, optimizer state and updates exist for the larger set B; both are chosen again every ``refresh_every``
    steps from all weights (Jayakumar et al. 2020, arXiv 2106.03517, section 2).

    Optimizers that treat each weight by itself work unchanged, and so do those that use a weight's norm (LAMB, LARS),
    which is then that of B's values. Others (Muon, Adafactor, LBFGS) raise ``OptimizerError`` at their first step.

    Args:
        model: any ``torch.nn.Module``, an ``fx.GraphModule`` or an exported program's module among them.
        fwd: share of each weight that is zero in the forward pass, in [0, 1).
        bwd: share that gets no gradient, in [0, fwd]; None means twice the forward density (0.9 gives 0.8), capped at
            dense. Only for method "topkast"; the others set it: 0 for "magnitude-ste" and "gmp", fwd for the rest.
        example_inputs: what the model is called with (a tuple of positional arguments, a dict of keywords, or one
            tensor), to trace which parameters are weights of which ops. None: the model's own ``dummy_inputs``, else
            symbolic tracing, else the modules' structure; the report says which.
        init: for a model with parameters or buffers on the meta device (built under ``torch.device("meta")``): called
            with every module in the order of ``nn.Module.apply``, to fill the tensors the module holds. None: what
            initialises a module is the nearest ``_init_weights(module)`` at or above it (transformers); unless that
            writes to all of its tensors, its own ``reset_parameters()`` comes first. Each weight is made sparse
            as soon as no later module's initialisation touches it, so about one module is dense at any time. It is
            run on the meta tensors before, to see what it touches. The parameters become new objects: make the
            optimizer afterwards.
        device: where the tensors of such a model are made; None: "cpu".
        block: (rows, columns) of the units that are kept or dropped together, of the weight seen as a matrix
            [out, the rest], scored by their L2 norm. A matrix that it does not divide is padded with zeros; one
            smaller than the block stays dense.
        balanced: whether every row of blocks has as many in A, and as many in B (constant fan-in), a whole number and
            at least one, so a density may be somewhat other than asked. False: the largest anywhere in the weight, as
            the paper has it; then outputs may be left without an input. None: True where a row would have 3/4 of a
            block in A or more, which changes no density by more than a third: measured better at densities of 0.1 and
            0.02 and with square blocks, nowhere worse by more than luck (``tools/results/study``), and what ONNX
            Runtime's own block format needs.
        distribution: "uniform" (every weight the same), "erk" (Erdős-Rényi-Kernel, Evci et al. 2020), "global" (one
            threshold over all weights at the start, whose counts then stay), or a dict of globs over parameter names to
            (fwd, bwd), the first match counting and the arguments for the rest.
        include: glob or globs over parameter names; only these are made sparse. A full name beats the defaults that
            keep small weights and a first convolution dense.
        exclude: glob or globs of what stays dense.
        refresh_every: optimizer steps between two choices of the sets.
        refresh_in_background: let CPU threads choose the sets while training goes on. Those that θ gives at one
            refresh come into force at the next, ``refresh_every`` steps later, on the values as they are then; the end
            of exploration and :func:`topkast.refresh` wait for nothing. On a GPU with ``reservoir="device"`` θ is
            copied to the host for it. What fails in a thread is raised as ``RefreshError`` at the next refresh, and
            where the model is saved before it. False: a refresh chooses and applies at once.
        stop_exploring_after: optimizer steps after which B = A; None: never. Methods "set" and "rigl": from when on the
            sets stand still; the share they exchange falls to zero by then. Method "gmp": when ``fwd`` is reached.
        explore: "topk", or "random" for B \\ A drawn at random at each refresh (the paper's ablation).
        exploration_l2: λ of the paper's penalty, added to the gradient once an optimizer step, as SGD does with
            ``weight_decay``: λθ on A, λθ / D_A on B \\ A.
        exploration_decay: c of the decoupled form: after each optimizer step θ ← θ - min(lr·c, ¼)·θ on B \\ A. None:
            4 / the root mean square of A's weights, so that Adam, which moves a weight by lr a step, holds what is
            explored at a quarter of that, in a model of any scale; measured (``tools/results/study``). The paper's
            penalty instead: ``exploration_decay=0, exploration_l2=λ``.
        initial: the norm of W_A at the start; each θ is multiplied by one number, which the report shows. "auto": where
            the largest are more than a tenth and at most a quarter of a weight, that of the largest tenth (or of a
            random set, if that is more), provided that all such weights of the model look as an initialiser drew them:
            measured better at a fifth and high learning rates (``tools/results/study``). A model that was trained stays
            as it is. "random": that of a random set of its size, √density·‖θ‖, and "dense": ‖θ‖, for every weight, so
            only for training from scratch. None: θ as it is.
        method: how sets are chosen; B = A unless said. "topkast"; "static", drawn at random once; "static-magnitude",
            the largest at the start; "set", random at the start, then at each refresh the smallest are exchanged for
            random ones (Mocanu et al. 2018); "rigl", the same for those of the largest gradient, at the end of the
            step (Evci et al. 2020), of one process, each weight in one product of a backward; "magnitude-ste",
            "topkast" with a dense B and no penalty; "gmp", dense at first, pruned by size along a cubic (Zhu and Gupta
            2017), in memory for the dense model. What an argument says that the method does not use is an error.
        drop_fraction: share of A that "set" and "rigl" exchange at a refresh, in [0, 1); what enters starts at zero.
        reservoir: where θ outside B is kept: "device", "host" (pinned with a GPU) or "disk" (a mapped temporary file).
        seed: of sets that are drawn at random; None takes torch's own. topkast.save keeps it, a state dict does not.
        min_size: weights with fewer elements stay dense.
        backend: "inductor", "aot_eager" (the same passes, no code generation; on a CPU without a C++ compiler it runs
            instead of Inductor, with a warning) or "eager" (converted, not compiled). A module with sparse weights that
            the program calls from outside of the model's own call is compiled too. A training step that ran eagerly
            all the same is warned of once, and stands in the report with the reason.
        torch_compile_options: ``fullgraph``, ``dynamic``, ``mode``, ``options``, ``disable`` of ``torch.compile``.

    Returns:
        The same object.

    Raises:
        ConfigError: an argument is outside what is allowed, or matches nothing; the model is as it was.
        ModelError: the model cannot be converted; it is as it was.
        ReservoirError: ``reservoir="disk"``, and the disk has no room; the model is as it was.
    """
    check_backend(backend, torch_compile_options)
    config = Config(
        fwd=fwd,
        bwd=bwd,
        block=block,
        balanced=balanced,
        distribution=distribution,
        include=include,  # type: ignore[arg-type]
        exclude=exclude,  # type: ignore[arg-type]
        refresh_every=refresh_every,
        refresh_in_background=refresh_in_background,
        stop_exploring_after=stop_exploring_after,
        explore=explore,
        exploration_l2=exploration_l2,
        exploration_decay=exploration_decay,
        initial=initial,
        method=method,
        drop_fraction=drop_fraction,
        reservoir=reservoir,
        seed=seed,
        min_size=min_size,
    )

    def compile_it(converted: torch.nn.Module) -> None:
        converted._topkast.backend = backend  # type: ignore[union-attr]
        compile_module(converted, backend, torch_compile_options)

    return convert(model, config, example_inputs, init, device, compile_it)


def refresh(model: torch.nn.Module) -> None:
    """Choose A and B of every site again, now. Between a forward and its backward that backward becomes an error.

    With ``refresh_in_background`` too: what a thread has chosen before is dropped.
    """
    refresh_sites(sites(model).values())


@torch.no_grad()
def step(model: torch.nn.Module, lr: float | None = None) -> None:
    """Say that an optimizer step is complete, in a loop without a ``torch.optim`` optimizer (which says it itself).

    Args:
        model: a converted model.
        lr: the step's learning rate, by which ``exploration_decay`` is scaled; without it nothing is decayed, and a
            warning says so once.

    Raises:
        ConfigError: ``exploration_l2`` is set: it belongs into the gradient before the step, where only an optimizer's
            hook can put it.
    """
    for site in sites(model).values():
        if site.rule.exploration_l2:
            raise ConfigError(
                f"exploration_l2={site.rule.exploration_l2}: needs a torch.optim optimizer; use exploration_decay"
            )
        if lr is None and site.rule.exploration_decay != 0:
            warnings.warn("topkast.step without lr: exploration_decay is not applied", stacklevel=2)
        advance(site, lr)
    notice_eager_step(sites(model).values())
