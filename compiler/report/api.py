"""``topkast.report``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from .facts import Facts, facts_of
from .table import render, to_text


class Report(Facts):
    """The facts of :func:`report`; ``print`` shows them as tables, :meth:`to_dict` gives plain data."""

    def to_dict(self) -> dict[str, Any]:
        """The same, as data that ``json.dumps`` takes."""
        return asdict(self)

    def __rich__(self) -> Any:
        return render(self)

    def __str__(self) -> str:
        return to_text(self)


def report(model: Any) -> Report:
    """Say what is sparse and what is not, what it costs against dense, and what looks wrong.

    Counts come from the tensors as they are now; what is fused is what has run so far, so call it after a step.

    Args:
        model: a model converted by topkast, or a wrapper of it.

    Raises:
        ModelError: the model was not converted.
    """
    return Report(**vars(facts_of(model)))
