"""The command ``topkast``: what each command answers, as tables and as JSON, also on hostile files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import topkast
from topkast.compiler.checkpoint.tensor_file import SUMS
from topkast.compiler.cli import doctor
from topkast.compiler.cli.main import COMMANDS, main
from topkast.runtime.planner import cache

MODULE = """
import torch
def make_model():
    return torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.ReLU(), torch.nn.Linear(30, 4))
def inputs():
    return torch.ones(2, 20)
"""
HOSTILE = "\x1b[2J[red]weight\x07\u202e"


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of two sparse weights, in a folder that also holds the model's code."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "architecture_of_the_test.py").write_text(MODULE)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4))
    model = topkast.sparsify(model, 0.9, 0.8, min_size=1)
    topkast.save(model, tmp_path / "run.safetensors", torch.optim.Adam(model.parameters()))
    return tmp_path / "run.safetensors"


def answered(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> str:
    assert main([str(argument) for argument in arguments]) == status
    return capsys.readouterr().out


def as_json(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(answered(capsys, *arguments, "--json", status=status))
    return found


def test_report_needs_only_the_file(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = as_json(capsys, "report", checkpoint)
    weight = data["weights"][0]
    assert weight["name"] == "0.weight" and weight["shape"] == [30, 20] and weight["block"] == [1, 1]
    assert weight["density_a"] == pytest.approx(0.1, abs=0.01) and weight["density_b"] == pytest.approx(0.2, abs=0.01)
    assert data["options"] == {"fwd": 0.9, "bwd": 0.8, "min_size": 1} and data["optimizer"] == "torch.optim.adam.Adam"
    assert data["file_bytes"] == checkpoint.stat().st_size and data["step"] == "0"
    text = answered(capsys, "report", checkpoint)
    assert "30 x 20" in text and "10.0%" in text and "min_size=1" in text


def test_report_of_a_hostile_file(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with safe_open(checkpoint, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in list(file.keys())}
        header = {key: value for key, value in file.metadata().items() if key != SUMS}
    sites = json.loads(header["sites"])
    header["sites"] = json.dumps({HOSTILE: sites.pop("0.weight"), **sites})
    save_file(tensors, checkpoint, metadata={**header, "topkast_version": HOSTILE})
    text = answered(capsys, "report", checkpoint)
    assert text.count(r"\x1b[2J[red]weight\x07\u202e") == 2
    assert not set("\x1b\x07\u202e") & set(text)
    header["sites"] = json.dumps({"0.weight": {"shape": ["a"]}})
    save_file(tensors, checkpoint, metadata=header)
    assert "header's 'sites' is broken" in answered(capsys, "report", checkpoint, status=2)
    save_file(tensors, checkpoint, metadata={"format": HOSTILE})
    assert "not written by topkast.save" in as_json(capsys, "report", checkpoint, status=2)["error"]


def test_export_takes_the_architecture_from_a_function(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = "architecture_of_the_test:make_model"
    data = as_json(
        *(capsys, "export", checkpoint, "model.onnx", "--model", model),
        *("--inputs", "architecture_of_the_test:inputs", "--format", "dense"),
    )
    assert data["bytes"] == Path("model.onnx").stat().st_size and data["formats"]["0.weight"] == "dense"
    trained = topkast.sparsify(nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4)), 0.9, 0.8, min_size=1)
    topkast.load(trained, checkpoint)
    session = onnxruntime.InferenceSession("model.onnx")
    x = torch.randn(3, 20)
    (given,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(given), trained(x))


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("architecture", "must be MODULE:FUNCTION"),
        ("no_such_module_here:make", "No module named 'no_such_module_here'"),
        ("architecture_of_the_test:nothing", "has no function 'nothing'"),
        ("architecture_of_the_test:inputs", "returns a Tensor, and not a torch.nn.Module"),
    ],
)
def test_export_refuses_other_functions(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], model: str, why: str
) -> None:
    assert why in answered(capsys, "export", checkpoint, "m.onnx", "--model", model, "--shape", "2x20", status=2)
    assert not Path("m.onnx").exists()


def test_doctor_names_what_is_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "has_compiler", lambda: True)
    monkeypatch.setattr(doctor.native_library, "path", lambda: Path("here"))
    whole = as_json(capsys, "doctor", "--no-speed")
    assert whole["missing"] == [] and whole["versions"]["torch"] == torch.__version__ and "speed" not in whole
    monkeypatch.setattr(doctor, "has_compiler", lambda: False)
    monkeypatch.setattr(doctor.native_library, "path", lambda: None)
    monkeypatch.setattr(doctor, "missing", lambda extra: ["onnx"] if extra == "onnx" else [])
    text = answered(capsys, "doctor", "--no-speed", status=1)
    assert "apt install g++" in text and "no native kernels" in text and "onnx: pip install 'topkast[onnx]'" in text


def test_the_speed_test_times_both_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "WIDTH", 64)
    found = doctor.speed(0.05)
    assert found["ratio"] == found["sparse_ms"] / found["dense_ms"] > 0


def test_cache_clear_deletes_only_the_planners_times(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TOPKAST_CACHE", str(tmp_path))
    cache.remembered("one", lambda: {"native": 1e-3})
    (tmp_path / "notes.txt").write_text("mine")
    assert as_json(capsys, "cache", "clear") == {"folder": str(tmp_path), "deleted": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cleared", "notes.txt"]
    assert "no times to delete" in answered(capsys, "cache", "clear")


def test_help_has_an_example_of_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, status in ((["--help"], 0), (["--version"], 0), ([], 2)):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == status
    text = capsys.readouterr().out
    assert f"topkast {topkast.__version__}" in text
    assert [command.NAME for command in COMMANDS if command.EXAMPLES[0] not in text] == []


RECORD: dict[str, Any] = {"version": "0", "format": "custom", "precision": "fp32", "max_error": None, "shrunk": []}
WEIGHT = {
    "name": HOSTILE,
    "shape": [2, 2],
    "format": HOSTILE,
    "block": None,
    "density": 0.5,
    "bytes": 1,
    "why": HOSTILE,
}


@pytest.mark.parametrize(
    ("record", "status"),
    [
        (json.dumps({**RECORD, "sites": [{**WEIGHT, "dense_bytes": 16}]}), 0),
        (json.dumps({**RECORD, "sites": [{**WEIGHT, "dense_bytes": "x"}]}), 2),
        (json.dumps({**RECORD, "sites": [{**WEIGHT, "dense_bytes": 16, "density": "x"}]}), 2),
        (json.dumps({**RECORD, "sites": 3}), 2),
        ("[" * 5000, 2),
        ("{", 2),
        ("null", 2),
    ],
)
def test_inspect_of_a_hostile_file(
    record: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    y = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "g", [y], [helper.make_empty_tensor_value_info("y")]
    )
    model = helper.make_model(graph)
    model.metadata_props.add(key="topkast", value=record)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    text = answered(capsys, "inspect", tmp_path / "m.onnx", status=status)
    assert not set("\x1b\x07\u202e") & set(text)
    assert ("damaged" in text or "no metadata" in text) == (status == 2)
