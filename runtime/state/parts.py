"""A change of sites that happens as a whole: it is prepared first, then carried out to its end.

An exception can come between any two lines: Ctrl-C is one. If it came between the copies of a change, the values would
be those of one index and the columns those of another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from topkast.runtime.layout import Index

if TYPE_CHECKING:
    from .site import Site

HALF = "a change of its sets failed in the middle"


@dataclass(frozen=True)
class Held:
    """What a refresh changes of a site.

    Args:
        values: B's, [values].
        reservoir: the values outside B.
        index: of A and B.
        ever: bits of what was ever in A.
        kept: what follows each value, one number for each: a gradient, optimizer state.
        starts: for each of ``kept`` what a weight gets there that enters B; None: its value.
    """

    values: Tensor
    reservoir: Tensor
    index: Index
    ever: Tensor
    kept: list[Tensor]
    starts: list[float | None]

    def tensors(self) -> list[Tensor]:
        """All that lies where the values do: everything but the reservoir."""
        return [self.values, *self.index, self.ever, *self.kept]


@dataclass
class Change:
    """What is to be, made beside what is.

    Args:
        parts: new tensors, at home; None: the site's stay as they are.
        fields: attribute of the site -> new value.
        then: called at the end; what it does must be allowed to happen twice.
        moves: what the site's copies do at the same time, see runtime/state/copies.py; None: not known yet.
    """

    parts: Held | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    then: Callable[[], None] | None = None
    moves: list[tuple[Site, Held, Change]] | None = None


def finish(sites: Iterable[Site], apply: Callable[[], None]) -> None:
    """Carry out a change to its end. An exception that comes meanwhile goes on afterwards.

    Args:
        sites: those that ``apply`` changes. They are marked as broken until it has ended; if it fails twice, they stay
            so, and every later use of them raises.
        apply: makes the change; gives the same result if it is begun again, wherever it was left.
    """
    sites = list(sites)
    came: BaseException | None = None
    failures = 0
    while failures < 2:
        try:
            for site in sites:
                site.broken = HALF
            apply()
            for site in sites:
                site.broken = None
            break
        except BaseException as error:
            came = error
            failures += isinstance(error, Exception)
    if came is not None:
        raise came
