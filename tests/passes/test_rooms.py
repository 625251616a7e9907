"""To import one room of passes imports no other: training needs no onnx."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("room", ["aten", pytest.param("dynamo", marks=pytest.mark.long)])
def test_training_passes_do_not_import_onnx(room: str) -> None:
    code = f"import sys, topkast.passes.{room}; print('onnx' in sys.modules, 'topkast.passes.onnx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
