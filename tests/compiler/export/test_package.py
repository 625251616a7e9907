"""``topkast.package``: a file of AOTInductor with our operators, which a process that imports topkast runs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import topkast
from topkast.compiler.export.package import _forward_only
from topkast.runtime.state.model import sites

RUN = """
import sys, torch
if sys.argv[3] == "with":
    import topkast
x, wanted = torch.load(sys.argv[2])
run = torch._inductor.aoti_load_package(sys.argv[1])
for rows in (len(x), 3):
    given = run(x=x[:rows], scale=torch.tensor(2.0))
    for name, y in wanted.items():
        torch.testing.assert_close(given[name], y[:rows])
"""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 64, 3, padding=1)
        self.up, self.down = nn.Linear(64, 512), nn.Linear(512, 128)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        h = self.conv(x).relu().mean((2, 3))
        return {"h": h, "y": self.down(self.up(h).relu()) * scale}


X, SCALE = torch.randn(8, 16, 6, 6, generator=torch.Generator().manual_seed(0)), torch.tensor(2.0)


def made() -> nn.Module:
    torch.manual_seed(0)
    names = ["conv.weight", "up.weight", "down.weight"]
    return topkast.sparsify(Net(), fwd=0.9, bwd=0.8, block=(4, 1), include=names).eval()


@pytest.mark.long
def test_another_process_runs_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPKAST_KERNEL", "native")
    model = made()
    batch = {0: torch.export.Dim("batch", min=1, max=512)}
    path = topkast.package(
        model, tmp_path / "net.pt2", {"x": X, "scale": SCALE}, dynamic_shapes={"x": batch, "scale": {}}
    )
    assert [file.name for file in tmp_path.iterdir()] == ["net.pt2"]
    with zipfile.ZipFile(path) as file:
        code = b"".join(file.read(name) for name in file.namelist() if name.endswith(".json"))
    assert b"topkast::spmm" in code and b"topkast::conv" in code and b"reservoir" not in code
    with torch.no_grad():
        torch.save((X, model(X, SCALE)), tmp_path / "wanted")
    ends = [
        subprocess.run(
            [sys.executable, "-W", "error", "-c", RUN, str(path), str(tmp_path / "wanted"), imported],
            capture_output=True,
            text=True,
        )
        for imported in ("with", "without")
    ]
    assert ends[0].returncode == 0, ends[0].stderr
    assert ends[1].returncode != 0 and "Could not find schema for topkast::" in ends[1].stderr, "as the page says"


@pytest.mark.parametrize("inference", [False, True])
def test_torch_export_of_a_sparse_model(inference: bool, tmp_path: Path) -> None:
    """What torch's own exporter makes of a sparse model: a program that reads each weight by our operator."""
    model = made()
    if inference:
        topkast.save(model, tmp_path / "run")
        model = Net()
        topkast.load(model, tmp_path / "run", inference=True)
    with torch.no_grad():
        program = torch.export.export(model, (X, SCALE))
        assert len(program.graph.find_nodes(op="call_function", target=torch.ops.topkast.weight.default)) == 3
        for given, wanted in zip(program.module()(X, SCALE).values(), model(X, SCALE).values(), strict=True):
            assert torch.equal(given, wanted)


def test_the_file_gets_a_alone() -> None:
    model = made()
    twin = _forward_only(model)
    with torch.no_grad():
        assert all(map(torch.equal, twin(X, SCALE).values(), model(X, SCALE).values()))
    for name, site in sites(twin).items():
        assert site.original.numel() == sites(model)[name].n_fwd * 4 and site.reservoir.numel() == 0
    assert sum(site.original.numel() for site in sites(model).values()) > 1.9 * sum(
        site.original.numel() for site in sites(twin).values()
    )


def _wrong(path: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    def run(x: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return {name: change(y) for name, y in made()(x, scale).items()}

    return run


@pytest.mark.parametrize("change", [lambda y: y + 1e-3, lambda y: y[:1], torch.Tensor.double, lambda y: y * torch.nan])
def test_a_file_with_other_results_does_not_appear(
    change: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        torch._inductor, "aoti_compile_and_package", lambda program, package_path, **rest: Path(package_path).touch()
    )
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda path: _wrong(path, change))
    with pytest.raises(topkast.ExportError, match="does not agree with the model"):
        topkast.package(made(), tmp_path / "net.pt2", (X, SCALE))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda path: _wrong(path, lambda y: y))
    topkast.package(made(), tmp_path / "net.pt2", (X, SCALE))
    assert [file.name for file in tmp_path.iterdir()] == ["net.pt2"]


class Branching(Net):
    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        return super().forward(x if float(scale) > 0 else -x, scale)


def test_what_cannot_be_packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(topkast.ModelError, match="has not converted"):
        topkast.package(Net(), tmp_path / "net.pt2", (X, SCALE))
    with pytest.raises(topkast.ExportError, match=r"must end in \.pt2; topkast\.export writes ONNX"):
        topkast.package(made(), tmp_path / "net.onnx", (X, SCALE))
    with pytest.raises(topkast.ExportError, match=r"the folder .* does not exist"):
        topkast.package(made(), tmp_path / "none" / "net.pt2", (X, SCALE))
    with pytest.raises(topkast.ExportError, match="could not compile the model"):
        topkast.package(topkast.sparsify(Branching()), tmp_path / "net.pt2", (X, SCALE))
    monkeypatch.setenv("CXX", "no-such-compiler")
    missing = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})  # monkeypatch would remove the option
    with missing, pytest.raises(topkast.ExportError, match="InvalidCxxCompiler"):
        topkast.package(made(), tmp_path / "net.pt2", (X, SCALE))
    assert list(tmp_path.iterdir()) == []
