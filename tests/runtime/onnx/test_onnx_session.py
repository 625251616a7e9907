"""Sessions of exported files as users open them: beside another provider, and from C."""

from __future__ import annotations

import os
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import topkast
from topkast.passes.onnx.convert import Wanted
from topkast.runtime import native
from topkast.runtime.errors import ConfigError, DeviceError
from topkast.runtime.onnx import providers
from topkast.tests.runtime.onnx.test_onnx_library import check
from topkast.tests.support.models.product_files import dense_file, sparse_file, sparse_matrix
from topkast.tests.support.protobuf import convert
from topkast.tools.common.places import ROOT

pytestmark = pytest.mark.skipif(native.path() is None, reason="the ONNX Runtime library is not built")
CUDA = ["CUDAExecutionProvider", "CPUExecutionProvider"]


def stand_in(monkeypatch: pytest.MonkeyPatch, there: list[str]) -> list[Any]:
    """Sessions that say they run on the providers ``there`` and run on the CPU; what they are asked for."""
    asked: list[Any] = []

    class Session(onnxruntime.InferenceSession):
        def __init__(self, file: Any, options: Any, providers: Any) -> None:
            asked.append(providers)
            super().__init__(file, options, providers=["CPUExecutionProvider"])

        def get_providers(self) -> list[str]:
            return there

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    return asked


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = topkast.sparsify(nn.Sequential(*(nn.Linear(64, 64) for _ in range(5))), 0.5, min_size=1)
    path = tmp_path_factory.mktemp("exported") / "m.onnx"
    return topkast.export(model, path, torch.randn(3, 64), format="custom").path


def written(format: str) -> onnx.ModelProto:
    """[2, batch, 5, 160] times 96 x 160, in 16 x 16 blocks."""
    matrix = sparse_matrix(96, 160, (16, 16), 0.1)
    matrix[-16:] = matrix[16:32]  # no full row: it would make the others' padding too long
    file = dense_file(matrix, np.ones(96, np.float32), (2, "batch", 5))
    (site,) = convert(file, Wanted(format, blocks=[(16, 16)]))
    assert site.format == format
    return file


@pytest.mark.parametrize("as_bytes", [False, True])
def test_custom_nodes_beside_cuda_are_named(as_bytes: bool, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = stand_in(monkeypatch, CUDA)
    with pytest.warns(UserWarning, match=r"0\.weight.* and 2 more: .*on the CPU, not on CUDA") as said:
        topkast.onnx.session(exported.read_bytes() if as_bytes else exported, providers=CUDA)
    assert asked == [CUDA] and len(said) == 1 and said[0].filename == __file__
    # Five products of 64 to 64 floats, one row as long as the file leaves the batch open.
    assert f"up to {5 * 2 * 64 * 4:,} bytes" in str(said[0].message) and 'format="block"' in str(said[0].message)


def test_the_copied_bytes_follow_the_shapes_in_the_file() -> None:
    said = providers.cost(written("custom"), "CUDAExecutionProvider")
    assert said is not None and f"up to {4 * 2 * 5 * (96 + 160):,} bytes" in said
    assert providers.cost(written("dense"), "CUDAExecutionProvider") is None


def test_standard_formats_and_cpu_providers_are_no_cause_to_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    custom = written("custom").SerializeToString()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        topkast.onnx.session(custom)
        if "AzureExecutionProvider" in onnxruntime.get_available_providers():  # has no memory of its own
            topkast.onnx.session(custom, providers=["AzureExecutionProvider", "CPUExecutionProvider"])
        stand_in(monkeypatch, CUDA)
        for format in ("block", "compact", "sparse_initializer", "dense"):
            topkast.onnx.session(written(format).SerializeToString(), providers=CUDA)


def test_a_provider_that_does_not_start_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, ["CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: CUDA)
    file = sparse_file(sparse_matrix(20, 30, (4, 1), 0.3), (4, 1), None).SerializeToString()
    with pytest.warns(UserWarning, match="CUDAExecutionProvider could not be started, so the file runs on CPU"):
        topkast.onnx.session(file, providers=[("CUDAExecutionProvider", {"device_id": "0"}), "CPUExecutionProvider"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_without_cuda_the_file_runs_on_the_cpu() -> None:
    """As onnxruntime warns where it was built without CUDA, and as we do where onnxruntime-gpu finds none."""
    matrix = sparse_matrix(20, 30, (4, 1), 0.3)
    file = sparse_file(matrix, (4, 1), None).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    with pytest.warns(UserWarning, match="could not be started|not in available provider names"):
        made = topkast.onnx.session(file, sess_options=options, providers=CUDA)
    assert made.get_providers() == ["CPUExecutionProvider"]
    x = np.eye(30, dtype=np.float32)
    assert np.array_equal(made.run(None, {"x": x})[0], matrix.T)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a package without CUDA, and in one with CUDA on a machine without a GPU."""
    file = written("block").SerializeToString()
    for asked in (["CUDAExecutionProvider"], [("CUDAExecutionProvider", {"device_id": "0"})]):
        with pytest.raises(
            DeviceError, match=r"providers=\['CUDAExecutionProvider'\]: none can be started here.*add 'CPU"
        ):
            topkast.onnx.session(file, providers=asked)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: CUDA)
    stand_in(monkeypatch, ["CPUExecutionProvider"])
    with pytest.raises(DeviceError, match="ONNX Runtime has CPUExecutionProvider"):
        topkast.onnx.session(file, providers=["CUDAExecutionProvider"])


@pytest.mark.parametrize("format", ["custom", "block", "compact", "sparse_initializer", "dense"])
def test_a_session_says_where_its_nodes_run(format: str) -> None:
    file = written(format)
    made = topkast.onnx.session(file.SerializeToString())
    if not hasattr(made, "get_provider_graph_assignment_info"):
        with pytest.raises(ConfigError, match=r"1\.24"):
            topkast.onnx.placement(made)
        return
    found = topkast.onnx.placement(made)
    assert list(found) == ["CPUExecutionProvider"]
    own = [name for name, _, domain in found["CPUExecutionProvider"] if domain == "topkast"]
    assert len(own) == (format == "custom")
    x = np.ones((2, 1, 5, 160), np.float32)
    assert made.run(None, {"x": x})[0].shape == (2, 1, 5, 96)
    plain = onnxruntime.InferenceSession(written("dense").SerializeToString(), providers=["CPUExecutionProvider"])
    with pytest.raises(ConfigError, match=r"make the session with topkast\.onnx\.session"):
        topkast.onnx.placement(plain)


def c_library() -> Path | None:
    """ONNX Runtime's C library, which lies in its wheel for Linux."""
    assert onnxruntime.__file__ is not None
    return next(iter(sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))), None)


@pytest.mark.skipif(c_library() is None, reason="this wheel of ONNX Runtime holds no C library")
@pytest.mark.parametrize("compiler", ["cc", "c++"])
def test_from_c(compiler: str, tmp_path: Path) -> None:
    """tools/examples/run.c, as C and as C++, against the session of Python and against float64."""
    library, source = c_library(), ROOT / "tools" / "examples" / "run.c"
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}")
    assert library is not None
    (tmp_path / "libonnxruntime.so.1").symlink_to(library)  # by this name the loader asks for it
    language = ["-x", "c++" if compiler == "c++" else "c"]
    command = [compiler, *language, "-Wall", "-Wextra", "-Werror", "-I", str(ROOT / "tests" / "support" / "include")]
    subprocess.run(
        [*command, str(source), "-x", "none", str(tmp_path / "libonnxruntime.so.1"), "-o", str(tmp_path / "run")],
        check=True,
    )

    matrix, bias = sparse_matrix(20, 30, (4, 1), 0.3), np.linspace(-1, 1, 20, dtype=np.float32)
    file = tmp_path / "m.onnx"
    file.write_bytes(sparse_file(matrix, (4, 1), bias).SerializeToString())

    def run(library: str) -> subprocess.CompletedProcess[str]:
        words = [str(tmp_path / "run"), str(file), library, "x", "y", "3", "30"]
        environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
        return subprocess.run(words, capture_output=True, text=True, check=False, env=environment)

    done = run(str(topkast.onnx.library_path()))
    assert done.returncode == 0, done.stderr
    x = (np.float32(0.01) * np.arange(90, dtype=np.float32)).reshape(3, 30)
    y = np.array(done.stdout.split(), np.float32).reshape(3, 20)
    assert np.array_equal(y, topkast.onnx.session(file).run(None, {"x": x})[0])
    check(y, x, matrix, bias, "from C")
    failed = run(str(tmp_path / "none.so"))
    assert failed.returncode == 1 and "none.so" in failed.stderr
