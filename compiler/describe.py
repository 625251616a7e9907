"""Make a function's signature and its docstring from the records of the function's options."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Sequence
from inspect import Parameter
from typing import Any, TypeVar

from .options import Option

F = TypeVar("F", bound=Callable[..., Any])
PLACE = "    {options}"  # the line of a docstring that the options replace


def with_options(records: Sequence[Option], rest: str = "") -> Callable[[F], F]:
    """Let a function whose last parameter is ``**options`` show each option by name, with its default and meaning.

    Args:
        records: the options. Options that the function names itself keep their place in the signature.
        rest: the name under which further keywords are shown; empty if there are none.
    """

    def describe(function: F) -> F:
        shown = inspect.signature(function)
        own = {name: p for name, p in shown.parameters.items() if p.kind is Parameter.POSITIONAL_OR_KEYWORD}
        more = [
            Parameter(one.name, Parameter.KEYWORD_ONLY, default=one.default, annotation=one.annotation)
            for one in records
            if one.name not in own
        ]
        others = [Parameter(rest, Parameter.VAR_KEYWORD, annotation="Any")] if rest else []
        function.__signature__ = shown.replace(parameters=[*own.values(), *more, *others])  # type: ignore[attr-defined]
        if function.__doc__:  # python -OO removes docstrings
            function.__doc__ = inspect.cleandoc(function.__doc__).replace(PLACE, "\n".join(map(_entry, records)))
        return function

    return describe


def _entry(one: Option) -> str:
    text = f"{one.name}: {one.says} {one.more}".rstrip()
    return textwrap.fill(text, 116, initial_indent=" " * 4, subsequent_indent=" " * 8, break_on_hyphens=False)
