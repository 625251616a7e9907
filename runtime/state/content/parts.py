"""The tensors of a site as a refresh takes and returns them, and a change that is applied as a whole.

A change is prepared first and then applied completely. An exception (for example Ctrl-C) can come between any two
lines. If an exception stopped the copies of a change, the values would belong to one index and the columns to another.
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
    """The tensors of a site that a refresh changes.

    Args:
        values: B's values, [values].
        reservoir: the values outside B.
        index: the index of A and B.
        ever: bits that say which units were ever in A.
        kept: tensors with one number for each value, which move with the values: a gradient, optimizer state.
        starts: for each tensor of ``kept`` the number for a weight that enters B; None: the weight's value.
    """

    values: Tensor
    reservoir: Tensor
    index: Index
    ever: Tensor
    kept: list[Tensor]
    starts: list[float | None]

    def tensors(self) -> list[Tensor]:
        """All tensors on the values' device: every part except the reservoir."""
        return [self.values, *self.index, self.ever, *self.kept]

    def beside_reservoir(self) -> Parts:
        """The same parts, with every tensor on the reservoir's device."""
        home = self.reservoir.device
        return Parts(
            self.values.to(home),
            self.reservoir,
            self.index.to(home),
            self.ever.to(home),
            [tensor.to(home) for tensor in self.kept],
            self.starts,
        )

    def scaled(self, factor: float) -> Parts:
        """The same parts with all of θ multiplied by a number, in new tensors."""
        return replace(self, values=self.values * factor, reservoir=self.reservoir * factor)


@dataclass(frozen=True)
class Snapshot:
    """The sets that a copy had before it got new sets from its source, and the fields that belong to these sets.
    Nothing was written to the copy before."""

    index: Index
    ever: Tensor
    fields: dict[str, Any]


Copy = Callable[[Tensor, Tensor], Any]  # (target, source), called in the order of the copies


@dataclass
class Change:
    """The new state of a site, prepared while the old state is still in use.

    Args:
        parts: new tensors, on the reservoir's device. None: the site's tensors stay the same.
        fields: attribute of the site -> new value.
        after: called at the end. The call may happen twice, so it must allow this.
        of_copies: the changes of the site's copies at the same time, see runtime/state/change/copies.py. None: not
        known yet.
    """

    parts: Parts | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    after: Callable[[], None] | None = None
    of_copies: list[tuple[Changing, Parts, Change]] | None = None


class Changing(Protocol):
    """An object that can be changed as a whole."""

    def mark_broken(self, why: str | None) -> None:
        """The object cannot be used any more, for this reason; None: it can be used again."""

    def write(self, live: Parts | None, change: Change, copy: Copy = Tensor.copy_) -> None:
        """Apply the change. A second call from the start gives the same result."""


def carry_out(sites: Iterable[Changing], apply: Callable[[], None]) -> None:
    """Apply a change completely. If an exception comes during the change, it is raised again afterwards.

    Args:
        sites: the sites that ``apply`` changes. They are marked as broken until ``apply`` has ended. If ``apply`` fails
            twice, they stay broken, and every later use of them raises an error.
        apply: makes the change. If it was stopped at any line, a second call from the start gives the same result.
    """
    sites = list(sites)
    raised: BaseException | None = None
    failures = 0
    while failures < 2:
        try:
            for site in sites:
                site.mark_broken(HALF)
            apply()
            for site in sites:
                site.mark_broken(None)
            break
        except BaseException as error:
            raised = error
            failures += isinstance(error, Exception)
    if raised is not None:
        raise raised
