"""Lion of lion_pytorch against the oracle."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from topkast.tests.support.truth.builders import CASES
from topkast.tests.support.truth.lockstep import Trio, plain

lion_pytorch = pytest.importorskip("lion_pytorch")

SPARSE: dict[str, Any] = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 3, "backend": "eager"}


def test_equals_the_oracle() -> None:
    Trio(CASES["mlp"], SPARSE, partial(lion_pytorch.Lion, lr=1e-2, weight_decay=0.1)).run(partial(plain, steps=14))
