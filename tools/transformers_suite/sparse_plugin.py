"""A plugin of pytest: each transformers model that a test moves to a device is made sparse there, once.

    python -m pytest -p topkast.tools.transformers_suite.sparse_plugin tests/models/bert/test_modeling_bert.py

Each test's record in the junit file says how many models were made sparse in it, and why others stayed dense. A test
file builds the same small models hundreds of times, and tracing them would be most of the time: which weights can be
sparse is asked once for each class, with the same names and shapes.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator
from functools import wraps
from typing import Any

import pytest
import transformers

import topkast
from topkast.compiler.convert.select import Selection, select

SPARSE = "models made sparse"
DENSE = "models left dense"
_dense_to = transformers.PreTrainedModel.to
_made: Counter[str] = Counter()
_selections: dict[Any, Selection] = {}


@wraps(select)
def selected_once(model: Any, config: Any, example_inputs: Any = None) -> Selection:
    """As ``select``, from memory for a model of the same class, names, ties and shapes."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    facts = tuple(
        (name, names[id(parameter)], parameter.shape, parameter.dtype, parameter.requires_grad, type(parameter))
        for name, parameter in model.named_parameters(remove_duplicate=False)
    )
    key = (type(model), facts)
    if key not in _selections:
        _selections[key] = select(model, config, example_inputs)
    return _selections[key]


def to(self: Any, *args: Any, **kwargs: Any) -> Any:
    """As the model's own, then :func:`topkast.sparsify`. A model which cannot be converted stays dense."""
    moved = _dense_to(self, *args, **kwargs)
    if any(parameter.is_meta for parameter in moved.parameters()):
        _made["its weights lie on the meta device"] += 1
    elif not any("_topkast" in module.__dict__ for module in moved.modules()):  # the record of a conversion
        try:
            topkast.sparsify(moved, fwd=0.5, bwd=0.3, min_size=64)
            _made[SPARSE] += 1
        except topkast.TopkastError as error:
            _made[f"{type(error).__name__}: {error}".partition("\n")[0]] += 1
    return moved


def pytest_configure(config: pytest.Config) -> None:
    """Put the method into the class that all models share."""
    transformers.PreTrainedModel.to = to  # type: ignore[method-assign, assignment]
    importlib.import_module("topkast.compiler.convert.sparsify").select = selected_once  # type: ignore[attr-defined]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Count what is made sparse while a test runs; the record also stands if the test fails."""
    _made.clear()
    try:
        return (yield)
    finally:
        item.user_properties.append((SPARSE, _made.pop(SPARSE, 0)))
        item.user_properties.extend((DENSE, f"{count} of them: {reason}") for reason, count in _made.items())
