"""The table of options: the name, the allowed values and the meaning of each option that a user can set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from topkast.runtime.errors import ConfigError
from topkast.runtime.methods import METHODS
from topkast.runtime.rule import Rule
from topkast.runtime.state.content.reservoirs import KINDS

from .options import block_shape, choice, globs, integer, number, option, optional, options, shares
from .start import Start


def one_of_methods(name: str, value: Any) -> Any:
    """One of topkast's methods, or one that the user has registered."""
    return choice(*METHODS)(name, value)


@dataclass(frozen=True)
class Config:
    """The options that stay with a model. Each option is declared here and nowhere else.

    The signature and the docstring of :func:`topkast.compile`, the rule that a site keeps, the header of a checkpoint
    and the table in the docs are made from these fields. A method names the options that only some methods use
    (``Method.uses``).

    Raises:
        ConfigError: a value is not allowed, or the method does not use it.
    """

    fwd: float = option(
        0.9,
        "Forward sparsity: the share of each weight that is zero in the forward pass, in [0, 1).",
        check=number(0, 1),
    )
    bwd: float | None = option(
        None,
        "Backward sparsity: the share of each weight that gets no gradient, in [0, ``fwd``]; None means twice the "
        "forward density.",
        "So ``fwd=0.9`` gives 0.8; a density of 1 is the most. Only the method ``topkast`` takes this option: "
        "``magnitude-ste`` and ``gmp`` use 0, the other methods use ``fwd``.",
        check=optional(number(0, 1)),
    )
    block: tuple[int, int] = option(
        (1, 1),
        "Rows and columns of the units that are kept or dropped together; the weight is seen as a matrix "
        "[out, the rest].",
        "The score of a unit is its L2 norm. A matrix that the block does not divide is padded with zeros. A matrix "
        "that is smaller than the block stays dense.",
        check=block_shape,
    )
    balanced: bool | None = option(
        None,
        "Whether every row of blocks has the same number of blocks in A, and the same number in B; None means yes, "
        "unless that changes the density by more than a third.",
        "True (constant fan-in): each number is whole and at least one, so the density can differ a little from what "
        "was asked. False: the largest blocks anywhere in the weight are kept, as in the paper; then an output can be "
        "left without an input. None: True if a row would have 3/4 of a block in A or more. Measured "
        "(``tools/results/study``): True is better at densities of 0.1 and 0.02 and with square blocks, and nowhere "
        "worse by more than chance. ONNX Runtime's own block format needs True.",
        check=choice(None, True, False),
        kept_by_site=True,
    )
    distribution: str | Mapping[str, tuple[float, float]] = option(
        "uniform",
        'How the density is shared out among the weights: ``"uniform"``, ``"erk"``, or a dict from globs over '
        "parameter names to (fwd, bwd).",
        '``"uniform"`` gives every weight the same density; ``"erk"`` (Erdős-Rényi-Kernel, Evci et al. 2020) gives '
        "small weights more. In a dict the first glob that matches a name counts; a weight that no glob matches gets "
        "``fwd`` and ``bwd``.",
        check=shares("uniform", "erk"),
    )
    include: Sequence[str] | None = option(
        None,
        "One glob or several over parameter names: only these weights can become sparse.",
        "The full name of a weight makes it sparse also if it is small or belongs to a first convolution, which stay "
        "dense otherwise.",
        check=optional(globs),
    )
    exclude: Sequence[str] | None = option(
        None, "One glob or several over parameter names: these weights stay dense.", check=optional(globs)
    )
    refresh_every: int = option(
        100, "Optimizer steps between two choices of A and B.", check=integer(1), kept_by_site=True
    )
    refresh_growth: float = option(
        1.0,
        "The factor between two intervals: each one is so many times as long as the one before, at least 1.",
        "The first interval has ``refresh_every`` steps; lengths are rounded to whole steps.",
        check=number(1),
        kept_by_site=True,
    )
    fwd_start: float | None = option(
        None,
        "Forward sparsity at the start, in [``bwd``, ``fwd``]: A begins denser and falls to ``fwd`` by a cubic; None: "
        "``fwd`` from the start.",
        "B falls in proportion to A; ``bwd`` is its sparsity at the start (None: twice the density of A there). The "
        "tensors keep their shapes, so nothing is compiled again; they have the memory of the start, while the work of "
        'the products follows A and B. Needs ``fwd_reached_after`` and ``distribution="uniform"``.',
        check=optional(number(0, 1)),
        kept_by_site=True,
    )
    fwd_reached_after: int | None = option(
        None,
        "Optimizer steps after which A has the density of ``fwd``, if ``fwd_start`` is given.",
        check=optional(integer(1)),
        kept_by_site=True,
    )
    refresh_in_background: bool = option(
        False,
        "Whether CPU threads choose the sets while training goes on; the sets then come into force one refresh later.",
        "They are applied to the values of that later time. The end of exploration and :func:`topkast.refresh` do not "
        'wait for a thread. On a GPU with ``reservoir="device"`` θ is copied to the host for it. An error in a thread '
        "is raised as ``RefreshError`` at the next refresh, or when the model is saved before that. False: a refresh "
        "chooses the sets and applies them at once.",
        check=choice(True, False),
        kept_by_site=True,
    )
    stop_exploring_after: int | None = option(
        None,
        "Optimizer steps after which B = A; None means never.",
        'The methods ``"set"`` and ``"rigl"`` exchange fewer weights towards this step and none after it. The method '
        '``"gmp"`` reaches ``fwd`` at this step.',
        check=optional(integer(0)),
        kept_by_site=True,
    )
    explore: str = option(
        "topk",
        'How B \\ A is chosen: ``"topk"`` takes the largest, ``"random"`` draws it anew at each refresh.',
        "The second is the paper's ablation.",
        check=choice("topk", "random"),
        kept_by_site=True,
    )
    exploration_l2: float = option(
        0.0,
        "λ of the paper's penalty, which is added to the gradient once in an optimizer step.",
        "It is added as SGD adds ``weight_decay``: λθ on A, λθ / D_A on B \\ A.",
        check=number(0),
        kept_by_site=True,
    )
    exploration_decay: float | None = option(
        None,
        "c of a decoupled decay: after each optimizer step θ ← θ - min(lr·c, ¼)·θ on B \\ A; None means 4 / the root "
        "mean square of A's weights.",
        "Adam moves a weight by lr in a step, so the default holds explored weights at a quarter of the size of A's, "
        "in a model of any scale; measured (``tools/results/study``). ``exploration_decay=0, exploration_l2=λ`` is the "
        "paper's penalty instead.",
        check=optional(number(0)),
        kept_by_site=True,
    )
    initial: str | None = option(
        "auto",
        'Norm of W_A at the start: ``"auto"`` makes a large norm smaller in a fresh model, ``"random"`` gives the norm '
        "of a random set of the same size, None leaves θ as it is.",
        'Each θ is multiplied by one number, which the report shows. ``"auto"``: if A is the largest weights, more '
        "than a tenth and at most a quarter of them, W_A gets the norm of the largest tenth (or of a random set, if "
        "that is larger), provided that all such weights of the model look as an initialiser drew them. Measured "
        "(``tools/results/study``): better at a fifth and high learning rates. A model that was trained stays as it "
        'is. ``"random"``: every W_A gets the norm √density·‖θ‖, so use this only for training from scratch.',
        check=choice("auto", None, "random"),
        free_at_load=True,
    )
    method: str = option(
        "topkast",
        f"The rule that chooses the sets: {', '.join(f'``{name!r}``' for name in METHODS)}.".replace("'", '"'),
        " ".join(f'``"{name}"``: {method.says}' for name, method in METHODS.items())
        + " B = A, unless said otherwise. :func:`topkast.register_method` adds a method of your own. An option that "
        + "the method does not use is an error.",
        check=one_of_methods,
        kept_by_site=True,
    )
    drop_fraction: float = option(
        0.3,
        'Share of A that the methods ``"set"`` and ``"rigl"`` exchange at a refresh, in [0, 1).',
        "A weight that enters starts at zero.",
        check=number(0, 1),
        kept_by_site=True,
    )
    reservoir: str = option(
        "device",
        'Where the values outside B are kept: ``"device"``, ``"host"`` (pinned memory if there is a GPU) or ``"disk"`` '
        "(a mapped temporary file).",
        check=choice(*KINDS),
        kept_by_site=True,
        free_at_load=True,
    )
    seed: int | None = option(
        None,
        "Seed of the sets that are drawn at random; None takes torch's.",
        "``topkast.save`` keeps the seed, a state dict does not: give a seed if you resume from a state dict.",
        check=optional(number(0, 2**63, whole=True)),
        kept_by_site=True,
    )
    min_size: int = option(4096, "Weights with fewer elements stay dense.", check=integer(1))

    def __post_init__(self) -> None:
        one_of_methods("method", self.method)  # first, because the method decides which other options are used
        self._check_method()
        found = {one.name: one.check(one.name, getattr(self, one.name)) for one in options(Config)}
        found["fwd"], found["bwd"] = self._pair("", self.fwd, self.bwd)
        if self.fwd_start is not None or self.fwd_reached_after is not None:
            found["bwd"] = self._check_start()
        if isinstance(found["distribution"], dict):
            shared = found["distribution"].items()
            found["distribution"] = {g: self._pair(f"distribution[{g!r}] ", *value) for g, value in shared}
        for name, value in found.items():
            object.__setattr__(self, name, value)

    def _check_method(self) -> None:
        method = METHODS[self.method]
        of_some = {name for other in METHODS.values() for name in other.uses}
        for one in options(Config):
            value = getattr(self, one.name)
            unused = one.name in of_some and one.name not in method.uses
            if unused and one.check(one.name, value) != one.default:
                used = f"it uses {', '.join(method.uses)}" if method.uses else "it uses no argument of that kind"
                raise ConfigError(f"{one.name}={value!r}: method={self.method!r} does not use it; {used}")
        if self.method == "gmp" and not self.stop_exploring_after:
            raise ConfigError(
                f"stop_exploring_after={self.stop_exploring_after!r}: must be an integer above 0 for method='gmp', "
                "the step at which the final sparsity is reached"
            )
        if self.method == "rigl" and _processes() > 1:
            raise ConfigError("method='rigl': each process would grow by its own gradient, so sets would part ways")

    def _check_start(self) -> float:
        """Check the three options of a density that falls, and return B's sparsity at the start."""
        start, reached = self.fwd_start, self.fwd_reached_after
        if start is None or reached is None:
            raise ConfigError(f"fwd_start={start!r}, fwd_reached_after={reached!r}: must be given together")
        if start > self.fwd:
            raise ConfigError(f"fwd_start={start!r}: must be at most fwd={self.fwd!r}, since A becomes sparser")
        if self.distribution != "uniform":
            raise ConfigError(f"distribution={self.distribution!r}: must be 'uniform' if fwd_start is given")
        if self.bwd is not None and self.bwd > start:
            raise ConfigError(f"bwd={self.bwd!r}: must be at most fwd_start={start!r}, since B holds A at the start")
        return pair("", start, self.bwd)[1]

    def _pair(self, name: str, fwd: Any, bwd: Any) -> tuple[float, float]:
        method = METHODS[self.method]
        if "bwd" in method.uses:
            return pair(name, fwd, bwd)
        if bwd is not None:
            raise ConfigError(
                f"{name}bwd={bwd!r}: must be None, method={self.method!r} chooses the backward set itself"
            )
        return pair(name, fwd, fwd if method.bwd is None else method.bwd)

    def rule(self, balanced: bool) -> Rule:
        """The options that a site keeps. If no seed is set, torch's own seed is used for random draws.

        Args:
            balanced: whether the site's sets are balanced, see
                :func:`topkast.compiler.convert.distribute.distribute`.
        """
        kept = {one.name: getattr(self, one.name) for one in options(Config) if one.kept_by_site}
        kept |= {"balanced": balanced, "seed": torch.initial_seed() if self.seed is None else self.seed}
        if "exploration_decay" not in METHODS[self.method].uses:
            kept["exploration_decay"] = 0.0
        return Rule(**kept)


def pair(name: str, fwd: Any, bwd: Any) -> tuple[float, float]:
    """Check a (forward, backward) sparsity; ``bwd=None`` means twice the forward density."""
    share = number(0, 1)
    share(f"{name}fwd", fwd)
    if bwd is None:
        bwd = max(0.0, round(1 - 2 * (1 - fwd), 12))
    share(f"{name}bwd", bwd)
    if bwd > fwd:
        raise ConfigError(f"{name}bwd={bwd!r}: must be at most fwd={fwd!r}, since the backward set holds the forward")
    return float(fwd), float(bwd)


def _processes() -> int:
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


OPTIONS = (*options(Config), *options(Start))  # all options except the backend, which only topkast.compile has
