"""What the user asked for, checked in one place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from topkast.runtime.errors import ConfigError
from topkast.runtime.methods import METHODS
from topkast.runtime.rule import Rule
from topkast.runtime.state.reservoirs import KINDS

DISTRIBUTIONS = ("uniform", "erk", "global")
EXPLORERS = ("topk", "random")
INITIAL = ("auto", None, "random", "dense")


def _number(name: str, value: Any, low: float, high: float = math.inf, integer: bool = False) -> None:
    kinds = (int,) if integer else (int, float)
    inside = isinstance(value, kinds) and not isinstance(value, bool) and low <= value < high
    if not inside:
        kind = "an integer" if integer else "a number"
        upper = f"{high:g})" if high < math.inf else "inf)"
        raise ConfigError(f"{name}={value!r}: must be {kind} in [{low:g}, {upper}")


def _choice(name: str, value: Any, allowed: tuple[str | bool | None, ...]) -> None:
    if not any(value is one or (isinstance(one, str) and value == one) for one in allowed):  # 1 is not True
        raise ConfigError(f"{name}={value!r}: must be one of {', '.join(map(repr, allowed))}")


def pair(name: str, fwd: Any, bwd: Any) -> tuple[float, float]:
    """Check a (forward, backward) sparsity; ``bwd=None`` means twice the forward density."""
    _number(f"{name}fwd", fwd, 0, 1)
    if bwd is None:
        bwd = max(0.0, round(1 - 2 * (1 - fwd), 12))
    _number(f"{name}bwd", bwd, 0, 1)
    if bwd > fwd:
        raise ConfigError(f"{name}bwd={bwd!r}: must be at most fwd={fwd!r}, since the backward set holds the forward")
    return float(fwd), float(bwd)


def _globs(name: str, value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    found = (value,) if isinstance(value, str) else tuple(value)
    if not found or not all(isinstance(glob, str) for glob in found):
        raise ConfigError(f"{name}={value!r}: must be a glob over parameter names, or a list of them")
    return found


def _processes() -> int:
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


@dataclass(frozen=True)
class Config:
    """Arguments of :func:`topkast.compile`, validated; see there for what each means."""

    fwd: float = 0.9
    bwd: float | None = None
    block: tuple[int, int] = (1, 1)
    balanced: bool | None = None
    distribution: Any = "uniform"
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None
    refresh_every: int = 100
    refresh_in_background: bool = False
    stop_exploring_after: int | None = None
    explore: str = "topk"
    exploration_l2: float = 0.0
    exploration_decay: float | None = None
    initial: str | None = "auto"
    method: str = "topkast"
    drop_fraction: float = 0.3
    reservoir: str = "device"
    seed: int | None = None
    min_size: int = 4096

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        _choice("method", self.method, tuple(METHODS))
        self._check_method()
        for name, value in zip(("fwd", "bwd"), self._pair("", self.fwd, self.bwd), strict=True):
            put(name, value)
        block = self.block
        if not (isinstance(block, (tuple, list)) and len(block) == 2 and all(type(b) is int and b > 0 for b in block)):
            raise ConfigError(f"block={block!r}: must be two positive integers, (rows, columns)")
        put("block", tuple(block))
        _choice("balanced", self.balanced, (None, True, False))
        _choice("refresh_in_background", self.refresh_in_background, (True, False))
        if isinstance(self.distribution, Mapping):
            if not self.distribution:
                raise ConfigError("distribution={}: must name at least one glob")
            put("distribution", {g: self._entry(g, v) for g, v in self.distribution.items()})
        else:
            _choice("distribution", self.distribution, DISTRIBUTIONS)
        put("include", _globs("include", self.include))
        put("exclude", _globs("exclude", self.exclude))
        _number("refresh_every", self.refresh_every, 1, integer=True)
        if self.stop_exploring_after is not None:
            _number("stop_exploring_after", self.stop_exploring_after, 0, integer=True)
        _choice("explore", self.explore, EXPLORERS)
        _number("exploration_l2", self.exploration_l2, 0)
        if self.exploration_decay is not None:
            _number("exploration_decay", self.exploration_decay, 0)
        _choice("initial", self.initial, INITIAL)
        _number("drop_fraction", self.drop_fraction, 0, 1)
        _choice("reservoir", self.reservoir, KINDS)
        if self.seed is not None:
            _number("seed", self.seed, 0, integer=True)
        _number("min_size", self.min_size, 1, integer=True)

    def _check_method(self) -> None:
        method = METHODS[self.method]
        optional = {name for other in METHODS.values() for name in other.uses}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in optional and field.name not in method.uses and value != field.default:
                used = f"it uses {', '.join(method.uses)}" if method.uses else "it uses no argument of that kind"
                raise ConfigError(f"{field.name}={value!r}: method={self.method!r} does not use it; {used}")
        if self.method == "gmp" and not self.stop_exploring_after:
            raise ConfigError(
                f"stop_exploring_after={self.stop_exploring_after!r}: must be an integer above 0 for method='gmp', "
                "the step at which the final sparsity is reached"
            )
        if self.method == "rigl" and _processes() > 1:
            raise ConfigError("method='rigl': each process would grow by its own gradient, so sets would part ways")

    def _pair(self, name: str, fwd: Any, bwd: Any) -> tuple[float, float]:
        method = METHODS[self.method]
        if "bwd" in method.uses:
            return pair(name, fwd, bwd)
        if bwd is not None:
            raise ConfigError(
                f"{name}bwd={bwd!r}: must be None, method={self.method!r} chooses the backward set itself"
            )
        return pair(name, fwd, fwd if method.bwd is None else method.bwd)

    def _entry(self, glob: Any, value: Any) -> tuple[float, float]:
        if not (isinstance(value, (tuple, list)) and len(value) == 2):
            raise ConfigError(f"distribution[{glob!r}]={value!r}: must be (fwd, bwd)")
        return self._pair(f"distribution[{glob!r}] ", *value)

    def rule(self, balanced: bool) -> Rule:
        """The part that a site keeps; without a seed, torch's own decides what is drawn at random.

        Args:
            balanced: whether that site's sets are, see :func:`topkast.compiler.convert.distribute.distribute`.
        """
        penalised = "exploration_decay" in METHODS[self.method].uses
        return Rule(
            method=self.method,
            refresh_every=self.refresh_every,
            refresh_in_background=self.refresh_in_background,
            stop_exploring_after=self.stop_exploring_after,
            explore=self.explore,
            exploration_l2=self.exploration_l2,
            exploration_decay=self.exploration_decay if penalised else 0.0,
            drop_fraction=self.drop_fraction,
            balanced=balanced,
            reservoir=self.reservoir,
            seed=torch.initial_seed() if self.seed is None else self.seed,
        )
