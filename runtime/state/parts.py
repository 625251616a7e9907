"""The tensors of a site as a refresh takes and returns them, and a change that happens as a whole.

A change is prepared first, then carried out to its end. An exception can come between any two lines: Ctrl-C is one. If
it came between the copies of a change, the values would be those of one index and the columns those of another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor

from topkast.runtime.layout import Index

HALF = "a change of its sets failed in the middle"


@dataclass(frozen=True)
class Parts:
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

    def beside_reservoir(self) -> Parts:
        """The same with every tensor where the reservoir is."""
        home = self.reservoir.device
        return Parts(
            self.values.to(home),
            self.reservoir,
            Index(*(tensor.to(home) for tensor in self.index)),
            self.ever.to(home),
            [tensor.to(home) for tensor in self.kept],
            self.starts,
        )

    def scaled(self, factor: float) -> Parts:
        """All of θ multiplied by a number, in new tensors."""
        return replace(self, values=self.values * factor, reservoir=self.reservoir * factor)


@dataclass(frozen=True)
class Snapshot:
    """The sets that an unwritten copy had before it followed its source, and the fields that belong to them."""

    index: Index
    ever: Tensor
    fields: dict[str, Any]


Copy = Callable[[Tensor, Tensor], Any]  # (target, source), made in the order of the calls


@dataclass
class Change:
    """What is to be, made beside what is.

    Args:
        parts: new tensors, at home; None: the site's stay as they are.
        fields: attribute of the site -> new value.
        after: called at the end; what it does must be allowed to happen twice.
        of_copies: what the site's copies do at the same time, see runtime/state/copies.py; None: not known yet.
    """

    parts: Parts | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    after: Callable[[], None] | None = None
    of_copies: list[tuple[Changing, Parts, Change]] | None = None


class Changing(Protocol):
    """What can be changed as a whole."""

    def break_off(self, why: str) -> None:
        """It cannot be used any more."""

    def mend(self) -> None:
        """It can be used again."""

    def write(self, live: Parts | None, change: Change, copy: Copy = Tensor.copy_) -> None:
        """Make the change; the same result if it is begun again."""


def carry_out(sites: Iterable[Changing], apply: Callable[[], None]) -> None:
    """Carry out a change to its end. An exception that comes meanwhile goes on afterwards.

    Args:
        sites: those that ``apply`` changes. They are marked as broken until it has ended; if it fails twice, they stay
            so, and every later use of them raises.
        apply: makes the change; gives the same result if it is begun again, wherever it was left.
    """
    sites = list(sites)
    raised: BaseException | None = None
    failures = 0
    while failures < 2:
        try:
            for site in sites:
                site.break_off(HALF)
            apply()
            for site in sites:
                site.mend()
            break
        except BaseException as error:
            raised = error
            failures += isinstance(error, Exception)
    if raised is not None:
        raise raised
