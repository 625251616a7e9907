"""Draw cases of one kind until the time is over, and shrink a failure: the process of a kind, see ``__main__``."""

from __future__ import annotations

import ast
import importlib
import json
import os
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings

BATCH = 50  # cases between two looks at the clock
SHRINK = 30  # seconds, at most, in which a failure is made smaller


def processor() -> float:
    """Seconds of a core that this process and those it has waited for have used."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


CLOCKS: dict[str, Callable[[], float]] = {"clock": time.monotonic, "processor": processor}


def search(kind: str, seed: int, seconds: float, folder: Path, most: int = 3, by: str = "clock") -> dict[str, Any]:
    """The number of cases by word, and the smallest case of each failure with its error, the seconds and the seconds of
    a core until it was found.

    Args:
        kind: the name of a module in ``kinds``.
        seed: decides the cases.
        seconds: no batch of cases begins later.
        folder: the file ``case`` in it always holds the case that runs, in case that the process ends.
        most: the search ends after so many failures.
        by: what the seconds are measured by, "clock" or "processor": other work on the machine does not count then.
    """
    module = importlib.import_module(f"topkast.tools.fuzz.kinds.{kind}")
    counts: Counter[str] = Counter()
    failures: list[dict[str, Any]] = []
    begin, began, batch = time.monotonic(), processor(), 0
    now = CLOCKS[by]
    end = now() + seconds
    after: list[tuple[int, int]] = []  # by the clock, and of a core
    last: list[Any] = [None, None]

    def one(case: Any) -> None:
        if after and time.monotonic() > begin + after[0][0] + SHRINK and case != last[0]:
            return
        (folder / "case").write_text(repr(case))
        try:
            word = module.check(case) or "held"
        except Exception:
            last[:] = case, traceback.format_exc()
            after.append((round(time.monotonic() - begin), round(processor() - began)))
            raise
        if now() <= end:
            counts[word] += 1

    while now() < end:
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
            clock, core = after[0] if after else (round(time.monotonic() - begin), round(processor() - began))
            text = str(last[1] or error)
            failures.append({"case": repr(last[0]), "error": text, "after": clock, "after of a core": core})
            if len(failures) == most:
                break
        batch += 1
    return {"cases": dict(counts), "failures": failures}


def holds(kind: str, case: str) -> bool:
    """Whether a case, as a failure gives it, does not fail here."""
    try:
        importlib.import_module(f"topkast.tools.fuzz.kinds.{kind}").check(ast.literal_eval(case))
    except Exception:
        return False
    return True


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    where = Path(sys.argv[4])
    found = search(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), where, int(sys.argv[5]), *sys.argv[6:])
    (where / "end.json").write_text(json.dumps(found))
