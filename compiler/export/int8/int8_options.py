"""The arguments of ``topkast.export`` that are for int8: ``keep_float`` and ``calibration``."""

from __future__ import annotations

import glob
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from topkast.compiler.export.weights import sparse_weights
from topkast.passes.onnx.formats import AUTO
from topkast.runtime.errors import ConfigError

WITH_INT8 = ("int8", AUTO)  # precisions that may give integers
KEPT = "keep_float names it"


@dataclass(frozen=True)
class Int8Options:
    """The arguments, checked.

    Args:
        patterns: globs of the names of weights that stay in float32, each with the reason.
        budget: the largest allowed change, as a share; None: there is no limit.
        batches: inputs to measure with; None: nothing is measured.
    """

    patterns: list[tuple[str, str]] = field(default_factory=list)
    budget: float | None = None
    batches: list[Any] | None = None


def read_int8_options(plain: nn.Module, model: Any, precision: str, keep_float: Any, calibration: Any) -> Int8Options:
    """Check the arguments, and the values of the weights that become int8.

    Args:
        plain: the densified ``model``.
        model: the model, for the names of its sparse weights.
        precision, keep_float, calibration: as given to ``topkast.export``.

    Raises:
        ConfigError: an argument is of the wrong type or does not fit the others, or a weight holds NaN or infinities.
    """
    for name, value in (("keep_float", keep_float), ("calibration", calibration)):
        if value is not None and precision not in WITH_INT8:
            raise ConfigError(
                f"{name}={_short(value)}: is for precision='int8' or 'auto', the precision is {precision!r}"
            )
    if precision not in WITH_INT8:
        return Int8Options()
    patterns, budget = _keep_float(keep_float)
    batches = _batches(calibration)
    if budget is not None and batches is None:
        raise ConfigError(f"keep_float={keep_float!r}: a budget is measured with calibration=, which is missing")
    weights = {name: weight for name, _, weight in sparse_weights(plain, model)}
    tied: dict[int, list[str]] = {}
    for name, parameter in plain.named_parameters(remove_duplicate=False):
        tied.setdefault(id(parameter), []).append(name)
    kept = list[str]()  # the file may have any of a weight's names
    for pattern in patterns:
        names = [name for group in tied.values() if any(fnmatchcase(n, pattern) for n in group) for name in group]
        if not names:
            raise ConfigError(f"keep_float={pattern!r}: matches no parameter; the sparse ones are {', '.join(weights)}")
        kept += names
    for name, weight in weights.items():
        if precision != AUTO and name not in kept and not bool(weight.isfinite().all()):
            raise ConfigError(
                f"precision='int8': {name} holds NaN or infinities; keep_float={name!r} keeps it in float"
            )
    return Int8Options([(glob.escape(name), KEPT) for name in kept], budget, batches)


def _keep_float(value: Any) -> tuple[list[str], float | None]:
    if value is None:
        return [], None
    if isinstance(value, str):
        return [value], None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"keep_float={value!r}: a budget must be a number above 0, such as 0.01 for 1 %")
        return [], float(value)
    if isinstance(value, Sequence) and all(isinstance(pattern, str) for pattern in value):
        return list(value), None
    raise ConfigError(
        f"keep_float={_short(value)}: must be a list of globs of parameter names, or a budget as a number, such as 0.01"
    )


def _batches(value: Any) -> list[Any] | None:
    if value is None:
        return None
    if isinstance(value, (Tensor, Mapping, str)) or not isinstance(value, Iterable):
        raise ConfigError(
            f"calibration={_short(value)}: must be a list or another iterable of batches, each like example_inputs"
        )
    batches = list(value)
    if not batches:
        raise ConfigError("calibration: holds no batch")
    return batches


def _short(value: Any) -> str:
    return repr(value) if isinstance(value, (str, int, float, bool)) else f"a {type(value).__name__}"
