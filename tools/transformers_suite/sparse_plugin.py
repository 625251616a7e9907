"""A plugin of pytest: each transformers model is made sparse as soon as it is built.

    python -m pytest -p topkast.tools.transformers_suite.sparse_plugin tests/models/bert/test_modeling_bert.py

A model is converted at the end of its outermost ``__init__``: a model that is a part of another model is not converted
by itself. ``from_pretrained`` builds its model on the meta device; that model is converted when its weights are loaded.
``from_pretrained`` builds a dense model and cannot read a sparse state dict. So ``save_pretrained`` of a sparse model
gets the state dict of the dense model, which holds all of θ: the loaded model has the same sets and values.

Each test's record in the junit file says how many models were made sparse in it, and why others stayed dense. A test
file builds the same small models hundreds of times, and tracing them would be most of the time: which weights can be
sparse is asked once for each class, with the same names and shapes.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import pytest
import transformers

import topkast
from topkast.compiler.convert.select import Selection, select

SPARSE = "models made sparse"
DENSE = "models left dense"
_base = transformers.PreTrainedModel
_made: Counter[str] = Counter()
_selections: dict[Any, Selection] = {}
_under_way = 0  # calls of __init__ and from_pretrained that have not ended


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


def make_sparse(model: Any) -> None:
    """:func:`topkast.sparsify`. A model which cannot be converted stays dense, and the reason is counted."""
    if any(parameter.is_meta for parameter in model.parameters()):
        _made["its weights lie on the meta device"] += 1
    elif not any("_topkast" in module.__dict__ for module in model.modules()):  # the record of a conversion
        try:
            topkast.sparsify(model, fwd=0.5, bwd=0.3, min_size=64)
            _made[SPARSE] += 1
        except topkast.TopkastError as error:
            _made[f"{type(error).__name__}: {error}".partition("\n")[0]] += 1


@contextmanager
def outermost() -> Iterator[bool]:
    """Count a call while it runs. The value is True if no such call is around it."""
    global _under_way
    _under_way += 1
    try:
        yield _under_way == 1
    finally:
        _under_way -= 1


def convert_at_the_end(cls: Any) -> None:
    """Let the class's ``__init__`` convert the model that it has built. If the class has none, it gets one, because the
    one that it inherits may be of a mixin that is no model."""
    own: Callable[..., None] | None = vars(cls).get("__init__")

    @wraps(cls.__init__)
    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        with outermost() as whole:
            if own is None:
                super(cls, self).__init__(*args, **kwargs)
            else:
                own(self, *args, **kwargs)
        if whole:
            make_sparse(self)

    cls.__init__ = build


def convert_what_is_loaded(load: Callable[..., Any]) -> classmethod[Any, Any, Any]:
    """``from_pretrained``, which returns a model or a tuple of a model and facts about the loading."""

    @wraps(load)
    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        with outermost() as whole:
            loaded = load(cls, *args, **kwargs)
        if whole:
            make_sparse(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    return classmethod(from_pretrained)


def save_all_values(save: Callable[..., None]) -> Callable[..., None]:
    """``save_pretrained``, which writes a sparse model as a dense one unless the caller gives a state dict."""

    @wraps(save)
    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> None:
        if "_topkast" in vars(self) and kwargs.get("state_dict") is None:
            kwargs["state_dict"] = topkast.dense_state_dict(self, values="all")
        save(self, *args, **kwargs)

    return save_pretrained


def pytest_configure(config: pytest.Config) -> None:
    """Reach the classes of all models: those which are there, and each new one when Python has made it."""
    importlib.import_module("topkast.compiler.convert.sparsify").select = selected_once  # type: ignore[attr-defined]
    _base.from_pretrained = convert_what_is_loaded(_base.from_pretrained.__func__)  # type: ignore[attr-defined, assignment]
    _base.save_pretrained = save_all_values(_base.save_pretrained)  # type: ignore[method-assign]
    given = _base.__init_subclass__.__func__  # type: ignore[attr-defined]

    def new_class(cls: Any, **kwargs: Any) -> None:
        given(cls, **kwargs)
        convert_at_the_end(cls)

    _base.__init_subclass__ = classmethod(new_class)  # type: ignore[assignment]
    there = [_base]
    for cls in there:
        convert_at_the_end(cls)
        there += cls.__subclasses__()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Count what is made sparse while a test runs; the record also stands if the test fails."""
    _made.clear()
    try:
        return (yield)
    finally:
        item.user_properties.append((SPARSE, _made.pop(SPARSE, 0)))
        item.user_properties.extend((DENSE, f"{count} of them: {reason}") for reason, count in _made.items())
