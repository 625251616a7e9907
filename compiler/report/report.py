"""``topkast.report``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from .facts import Facts, facts_of
from .table import render, to_text


class Report(Facts):
    """The facts of :func:`topkast.report`; ``print`` shows them as tables, :meth:`to_dict` returns plain data."""

    def to_dict(self) -> dict[str, Any]:
        """The same facts, as data that ``json.dumps`` accepts."""
        return asdict(self)

    def __rich__(self) -> Any:
        return render(self)

    def __str__(self) -> str:
        return to_text(self)


def report(model: Any) -> Report:
    """Report which weights are sparse and which are dense, the costs compared with dense training, and warnings.

    Counts come from the current tensors. Fused kernels appear only after they have run, so call this function after a
    training step.

    Args:
        model: a model converted by topkast, or a wrapper of such a model.

    Returns:
        The facts. ``print`` shows them as tables.

    Raises:
        ModelError: the model was not converted.
    """
    return Report(**vars(facts_of(model)))
