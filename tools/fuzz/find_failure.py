"""Draw cases of one kind until the time is over, and shrink a failure: the process of a kind, see ``__main__``."""

from __future__ import annotations

import importlib
import json
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings

BATCH = 50  # cases between two looks at the clock
SHRINK = 30  # seconds, at most, in which a failure is made smaller


def search(kind: str, seed: int, seconds: float, folder: Path, most: int = 3) -> dict[str, Any]:
    """The number of cases by word, and the smallest case of each failure with its error, and the seconds until it was
    found.

    Args:
        kind: the name of a module in ``kinds``.
        seed: decides the cases.
        seconds: no batch of cases begins later.
        folder: the file ``case`` in it always holds the case that runs, in case that the process ends.
        most: the search ends after so many failures.
    """
    module = importlib.import_module(f"topkast.tools.fuzz.kinds.{kind}")
    counts: Counter[str] = Counter()
    failures: list[dict[str, Any]] = []
    begin, batch = time.monotonic(), 0
    end = begin + seconds
    after: list[int] = []
    last: list[Any] = [None, None]

    def one(case: Any) -> None:
        if after and time.monotonic() > begin + after[0] + SHRINK and case != last[0]:
            return
        (folder / "case").write_text(repr(case))
        try:
            word = module.check(case) or "held"
        except Exception:
            last[:] = case, traceback.format_exc()
            after.append(round(time.monotonic() - begin))
            raise
        if time.monotonic() <= end:
            counts[word] += 1

    while time.monotonic() < end:
        draws = settings(
            max_examples=BATCH,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
            verbosity=hypothesis.Verbosity.quiet,
        )
        after.clear()
        try:
            hypothesis.seed(seed * 100_003 + batch)(draws(given(module.cases)(one)))()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            seconds_until = after[0] if after else round(time.monotonic() - begin)
            failures.append({"case": repr(last[0]), "error": str(last[1] or error), "after": seconds_until})
            if len(failures) == most:
                break
        batch += 1
    return {"cases": dict(counts), "failures": failures}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    where = Path(sys.argv[4])
    found = search(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), where, int(sys.argv[5]))
    (where / "end.json").write_text(json.dumps(found))
