"""The rule by which a site's sets are chosen again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any


class Rule:
    """The options that a site keeps, with one attribute for each option.

    :class:`topkast.compiler.config.Config` defines these options and makes the rule; see :func:`topkast.compile` for
    the meaning of each option. A rule has a definite value for every option: ``balanced`` is a bool, ``seed`` an
    integer. A rule never changes; :meth:`replaced` makes another rule.
    """

    def __init__(self, **options: Any) -> None:
        self.__dict__.update(options)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    @property
    def shrinks(self) -> bool:
        """Whether B gets fewer units in the course of the training."""
        return self.stop_exploring_after is not None or self.fwd_start is not None

    def replaced(self, **options: Any) -> Rule:
        """The same rule, except for the given options."""
        return Rule(**{**self.__dict__, **options})

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name}: a rule never changes; replaced() makes another")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rule) and self.__dict__ == other.__dict__

    def __repr__(self) -> str:
        return f"Rule({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"
