"""Damaged files: some bytes changed, or the end cut off."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def run_damaged(whole: bytes, run: Callable[[bytes], object], count: int = 400) -> tuple[int, int]:
    """Damage a file in many ways and run it each time; (how often it ran, how often it was refused).

    A refusal is an error of ONNX Runtime or a ValueError; any other error is a failure.
    """
    rng = np.random.default_rng(0)
    taken = refused = 0
    for i in range(count):
        damaged = bytearray(whole)
        if i % 4 == 0:
            del damaged[rng.integers(len(damaged)) :]
        for at in rng.integers(len(damaged), size=rng.integers(1, 4)) if damaged else ():
            damaged[at] = rng.integers(256)
        try:
            run(bytes(damaged))
            taken += 1
        except Exception as error:
            assert "onnxruntime" in type(error).__module__ or isinstance(error, ValueError)
            refused += 1
    return taken, refused
