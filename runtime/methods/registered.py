"""The methods by name, and how a user adds one."""

from __future__ import annotations

import inspect
from typing import TypeVar

from topkast.runtime.errors import ConfigError

from .gmp import GMP
from .magnitude_ste import MagnitudeSTE
from .method import Method
from .rigl import RigL
from .set import SET
from .static import Static, StaticMagnitude
from .topkast import TopKAST

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (TopKAST, Static, StaticMagnitude, SET, RigL, MagnitudeSTE, GMP)
}
OWN = frozenset(METHODS)
USES = frozenset(name for method in METHODS.values() for name in method.uses)

M = TypeVar("M", bound=type[Method])


def register_method(method: M) -> M:
    """Make a class of your own a value of ``method`` in :func:`topkast.compile`; usable as a decorator.

    Register the method in every process that converts, loads or unpickles a model with it, before it does so.

    Args:
        method: a subclass of :class:`topkast.Method` that can be made without arguments. A class that is defined again
            under the same name, as in a notebook, takes the place of the first for models that are converted later.

    Returns:
        The same class.

    Raises:
        ConfigError: the class is no subclass, is abstract, lacks a field, uses an option that no method has, or has the
            name of one of topkast's own methods or of another registered class.
    """
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise ConfigError(f"method: {method!r} must be a subclass of topkast.Method")
    if inspect.isabstract(method):
        raise ConfigError(f"method: {method.__name__} does not define {', '.join(sorted(method.__abstractmethods__))}")
    for field, kind in (("name", str), ("says", str), ("uses", tuple)):
        if not isinstance(getattr(method, field, None), kind):
            raise ConfigError(f"method: {method.__name__}.{field} must be a {kind.__name__}")
    if unknown := sorted(set(method.uses) - USES):
        raise ConfigError(
            f"method: {method.__name__}.uses has {', '.join(map(repr, unknown))}; allowed: {', '.join(sorted(USES))}"
        )
    before = METHODS.get(method.name)
    same = before is not None and _place(before) == _place(method)
    if method.name in OWN or (before is not None and not same):
        raise ConfigError(f"method: the name {method.name!r} belongs to {before.__name__}")  # type: ignore[union-attr]
    METHODS[method.name] = method
    return method


def _place(method: type[Method]) -> tuple[str, str]:
    """Where a class is defined: the file, which may be run and imported too, and the name in the file."""
    return method.renew.__code__.co_filename, method.__qualname__
