"""``import topkast`` stays quick: the slow packages are imported by the functions that need them."""

from __future__ import annotations

import subprocess
import sys

import pytest

import topkast
from topkast.runtime import extras

SLOW = ("torch._dynamo", "torch._inductor", "torch.onnx", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "scipy")


def test_import_loads_no_slow_package() -> None:
    code = f"import sys, topkast; print([name for name in {SLOW} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "[]"


def test_what_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name in ("onnx", "scipy") else object())
    with pytest.raises(topkast.MissingPackageError, match=r"topkast\.export needs onnx, .* 'topkast\[onnx\]'"):
        topkast.export(None, "model.onnx", ())
    with pytest.raises(ImportError, match=r"topkast\.onnx\.session needs onnx, "):
        topkast.onnx.session("model.onnx")
    with pytest.raises(ImportError, match=r"topkast\.advise needs scipy, .* 'topkast\[statistics\]'"):
        topkast.advise(lambda: None, None)
