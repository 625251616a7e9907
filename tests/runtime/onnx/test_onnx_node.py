"""tools/examples/run.mjs: a file on topkast's kernels from Node.js, against the session of Python and against float64.

The test needs Node.js and the packages onnxruntime-node and koffi, in the current folder or in ``NODE_PATH``.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import topkast
from topkast.tests.runtime.onnx.test_onnx_library import check
from topkast.tests.support.models.product_files import sparse_file, sparse_matrix
from topkast.tools.common.places import ROOT

PROGRAM = ROOT / "tools" / "examples" / "run.mjs"


def missing() -> str | None:
    """Why the example cannot run here; None if it can."""
    node = shutil.which("node")
    if node is None:
        return "there is no node"
    for package in ("onnxruntime-node", "koffi"):
        if subprocess.run([node, "-e", f"require.resolve('{package}')"], capture_output=True).returncode:
            return f"node does not find the package {package}; npm install it, and set NODE_PATH to its node_modules"
    return None


def run(file: Path, library: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["node", str(PROGRAM), str(file), library, "x", "y", "3", "30"], capture_output=True, text=True
    )


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")
def test_the_program_is_valid() -> None:
    assert subprocess.run(["node", "--check", str(PROGRAM)], capture_output=True, text=True).stderr == ""
    done = subprocess.run(["node", str(PROGRAM)], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("usage: node run.mjs")


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_from_node(tmp_path: Path) -> None:
    matrix, bias = sparse_matrix(20, 30, (4, 1), 0.3), np.linspace(-1, 1, 20, dtype=np.float32)
    file = tmp_path / "m.onnx"
    file.write_bytes(sparse_file(matrix, (4, 1), bias).SerializeToString())
    x = (np.float32(0.01) * np.arange(90, dtype=np.float32)).reshape(3, 30)
    done = run(file, str(topkast.onnx.library_path()))
    assert done.returncode == 0, done.stderr
    y = np.array(done.stdout.split(), np.float32).reshape(3, 20)
    assert np.array_equal(y, topkast.onnx.session(file).run(None, {"x": x})[0])
    check(y, x, matrix, bias, "from Node.js")
    failed = run(file, str(tmp_path / "none.so"))
    assert failed.returncode != 0 and "none.so" in failed.stderr
    failed = run(file, "-")
    assert failed.returncode != 0 and "not a registered function" in failed.stderr, "this file needs the library"

    model = topkast.sparsify(nn.Sequential(nn.Linear(30, 20)), min_size=1, include="*", block=(4, 1))
    names = {"input_names": ["x"], "output_names": ["y"]}
    topkast.export(model, file, (torch.from_numpy(x),), format="custom", **names)
    with torch.no_grad():
        wanted = model(torch.from_numpy(x)).numpy()
    for library in (str(topkast.onnx.library_path()), "-"):
        done = run(file, library)
        assert done.returncode == 0, done.stderr
        np.testing.assert_allclose(np.array(done.stdout.split(), np.float32).reshape(3, 20), wanted, atol=1e-6)
