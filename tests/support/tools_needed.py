"""Programs that are not a part of the tests' environment, such as a compiler for another processor."""

from __future__ import annotations

import importlib.util
import os
import shutil

import pytest


def need(*, programs: tuple[str, ...] = (), packages: tuple[str, ...] = (), get: str) -> None:
    """Skip the test if something is missing. In CI, whose script installs everything, the test fails instead.

    Args:
        programs: found in PATH.
        packages: of Python.
        get: the command that installs all of them.
    """
    missing = [name for name in programs if shutil.which(name) is None]
    missing += [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        reason = f"{', '.join(missing)} missing: {get}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
