"""The sdist is complete, the wheel made from the sdist runs where there is neither this clone nor a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import topkast
from topkast.runtime.kernels import native_library
from topkast.tests.support.installed import environment, link, link_requirements
from topkast.tools.common.places import ROOT
from topkast.tools.release.readme_lines import SHOW, readme_lines, run_in_emptiness

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(native_library.path() is None, reason="the native library was not built"),
]
DATA = ("py.typed", "runtime/triton/configs.json", "compiler/report/shown/page.html")
# A user's script in tools/examples -> the packages it needs beside topkast[onnx], what it prints.
USERS = {
    "users/finetune": (("transformers", "accelerate"), "the shared folder holds the same bits"),
    "users/vision": (("timm", "lightning"), "the checkpoint holds the same bits"),
    "own_method": ((), "it ends in the same bits"),
    "users/check_package": ((), "files as recorded; missing here: 1"),  # the C++ compiler
}
# torchvision, which timm imports, may be built for another torch. No model here calls its operators.
IMPORT_TIMM = """
import sys, torch
try:
    import timm
except RuntimeError:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("timm", "torchvision")]:
        del sys.modules[name]
    operators = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
TRAIN = """
import torch, topkast
model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64))
model = topkast.compile(model, fwd=0.9, bwd=0.8)
optimizer = torch.optim.AdamW(model.parameters())
for _ in range(3):
    model(torch.randn(32, 64)).square().mean().backward()
    optimizer.step()
topkast.save(model, "checkpoint", optimizer)
print(topkast.report(model), topkast.__version__)
try:
    topkast.export(model, "model.onnx", (torch.randn(2, 64),))
except topkast.MissingPackageError as error:
    print(error)
"""


def build(kind: str, tree: Path, out: Path) -> Path:
    """Build an sdist or a wheel of a tree with what is installed here."""
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(out), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = out.glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel from an sdist. It takes the library that is built in this clone: to compile takes minutes."""
    folder = tmp_path_factory.mktemp("release")
    # The sdist of a copy, because the build writes into its tree.
    tree = folder / "tree"
    skipped = shutil.ignore_patterns(".git", ".venv*", "build", "dist", "*.egg-info", "__pycache__", "*.so", ".*_cache")
    shutil.copytree(ROOT, tree, ignore=skipped)
    with tarfile.open(build("sdist", tree, folder / "sdist")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(folder / "unpacked", filter="data")
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "runtime" / "native").glob("*/*.*")}
    assert {*sources, *DATA, "LICENSE", "README.md", "setup.py"} <= names
    (unpacked,) = (folder / "unpacked").iterdir()
    library = native_library.path()
    assert library is not None
    shutil.copy(library, unpacked / "runtime" / "native" / "libtopkast.so")
    plain = build("wheel", unpacked, folder / "plain")
    tools = {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    repair = [sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", str(folder / "dist"), str(plain)]
    done = subprocess.run(repair, capture_output=True, text=True, env=os.environ | tools)
    assert done.returncode == 0, done.stderr
    (made,) = (folder / "dist").iterdir()
    return made


def test_the_wheel_holds_the_package_and_one_library(wheel: Path) -> None:
    assert wheel.name.startswith(f"topkast-{topkast.__version__}-py3-none-manylinux"), wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = {
        str(path.relative_to(ROOT))
        for room in ("compiler", "passes", "runtime")
        for path in (ROOT / room).rglob("*.py")
    }
    assert {f"topkast/{name}" for name in {*modules, *DATA, "__init__.py"}} <= names
    assert [name for name in names if ".so" in name] == ["topkast/runtime/native/libtopkast.so"]
    assert not [name for name in names if name.startswith(("topkast/tests", "topkast/tools", "topkast.libs"))]


def test_the_wheel_runs_with_nothing_but_what_it_asks_for(wheel: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "env", wheel)
    trains_with = link_requirements(tmp_path / "env")
    assert "torch" in trains_with and not {"onnx", "onnxruntime", "scipy"} & set(trains_with)
    trained = run_in_emptiness(python, TRAIN)
    assert trained.returncode == 0, trained.stderr
    assert topkast.__version__ in trained.stdout and "pip install 'topkast[onnx]'" in trained.stdout
    version = subprocess.run([str(python.with_name("topkast")), "--version"], capture_output=True, text=True)
    assert version.stdout == f"topkast {topkast.__version__}\n", version.stderr
    link_requirements(tmp_path / "env", "onnx")
    done = run_in_emptiness(python, readme_lines() + SHOW)
    assert done.returncode == 0, done.stderr
    assert f"library {tmp_path.resolve()}" in done.stdout, done.stdout


def run_script(python: Path, name: str, *words: Path) -> str:
    """The lines that a script of tools/examples prints."""
    path = ROOT / "tools" / "examples" / f"{name}.py"
    arguments = [str(path), *map(str, words)]
    code = f"import runpy, sys; sys.argv = {arguments}; runpy.run_path({str(path)!r}, run_name='__main__')"
    done = run_in_emptiness(python, (IMPORT_TIMM if name == "users/vision" else "") + code)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_five_users(wheel: Path, tmp_path: Path, subtests: pytest.Subtests) -> None:
    """Each script runs on the wheel alone; what the fine-tuner hands over runs where topkast and torch are missing."""
    python = environment(tmp_path / "env", wheel)
    link_requirements(tmp_path / "env", "onnx")
    for name, (packages, shown) in USERS.items():
        with subtests.test(name):
            for package in packages:
                pytest.importorskip(package, exc_type=(ImportError, RuntimeError))
            link(tmp_path / "env", packages)
            folder = tmp_path / name
            folder.mkdir(parents=True)
            assert shown in run_script(python, name, folder)
    bare = environment(tmp_path / "bare", None)
    link(tmp_path / "bare", ["onnxruntime"])
    assert "results are those of training" in run_script(bare, "users/deploy", tmp_path / "users/finetune/deployed")
