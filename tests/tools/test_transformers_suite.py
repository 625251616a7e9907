"""The comparison of transformers' tests, dense and sparse, from two small junit files; the plugin on small models."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from topkast.tools.transformers_suite import __main__ as suite

CASES = """<testsuites><testsuite name="pytest">
<testcase classname="tests.test_m.MTest" name="same"/>
<testcase classname="tests.test_m.MTest" name="lost">{lost}</testcase>
<testcase classname="tests.test_m.MTest" name="broken"><failure message="AssertionError: dense too"/></testcase>
<testcase classname="tests.test_m.MTest" name="left">{left}</testcase>
</testsuite></testsuites>"""
BUILDS = """
import torch, topkast
from transformers import ViTConfig, ViTForImageClassification, ViTModel, ViTPreTrainedModel

config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=4,
                   patch_size=2, num_labels=2)

def test_one_made_of_another():
    topkast.masks(ViTForImageClassification(config))

def test_saved_and_loaded(tmp_path):
    model = ViTModel(config).eval()
    model.save_pretrained(tmp_path)
    again, facts = ViTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(facts.values())
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name

def test_a_class_of_its_own():
    class Small(ViTModel):
        def __init__(self, config):
            super().__init__(config)
            assert not hasattr(self, "_topkast")
    topkast.masks(Small(config))

def test_built_by_a_mixin():
    class Mixin:
        def __init__(self, config):
            super().__init__(config)
            self.vit = ViTModel(config)
            self.post_init()
    class Mixed(Mixin, ViTPreTrainedModel):
        pass
    assert "_topkast" in vars(Mixed(config))

def test_on_meta():
    with torch.device("meta"):
        ViTModel(config)
"""
SPARSE = '<properties><property name="models made sparse" value="2"/></properties>'
FAILED = SPARSE + '<failure message="OSError: /home/someone/model.bin is gone&#10;second line">trace</failure>'


@pytest.fixture
def found(tmp_path: Path) -> dict[str, dict]:
    for kind, lost, left in (("dense", "", ""), ("sparse", FAILED, '<skipped message="no GPU"/>')):
        (tmp_path / f"{kind}.xml").write_text(CASES.format(lost=lost, left=left))
    return {"m": suite.compared(suite.read(tmp_path / "dense.xml"), suite.read(tmp_path / "sparse.xml"), "m")}


def test_without_a_reason_the_exit_code_is_1(found: dict[str, dict], capsys: pytest.CaptureFixture[str]) -> None:
    """What passes dense counts if it fails or is skipped sparse; what fails dense does not."""
    facts = found["m"]
    assert (facts["passed dense"], facts["passed sparse"], facts["passed with a sparse model"]) == (3, 1, 0)
    assert list(facts["failed dense"]) == ["MTest.broken"]
    assert facts["failed only sparse"] == {
        "MTest.lost": {"ended": "failed", "error": "OSError: model.bin is gone", "reason": "not explained"},
        "MTest.left": {"ended": "skipped", "error": "no GPU", "reason": "not explained"},
    }
    assert suite.show(found) == 1


def test_with_reasons_it_is_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reason belongs to a test and an error: the same test with another error needs another."""
    for kind, lost in (("dense", ""), ("sparse", FAILED)):
        (tmp_path / f"{kind}.xml").write_text(CASES.format(lost=lost, left=""))
    dense, sparse = (suite.read(tmp_path / f"{kind}.xml") for kind in ("dense", "sparse"))
    monkeypatch.setattr(suite, "REASONS", (("m.*.lost", "OSError: *gone", "The file is kept elsewhere."),))
    assert suite.show({"m": suite.compared(dense, sparse, "m")}) == 0
    monkeypatch.setattr(suite, "REASONS", (("m.*.lost", "ValueError*", "The file is kept elsewhere."),))
    assert suite.show({"m": suite.compared(dense, sparse, "m")}) == 1


def test_a_test_that_did_not_run_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "dense.xml").write_text(CASES.format(lost="", left=""))
    facts = suite.compared(suite.read(tmp_path / "dense.xml"), {})
    assert {entry["ended"] for entry in facts["failed only sparse"].values()} == {"not run"}
    assert len(facts["failed only sparse"]) == 3


def test_another_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    package = tmp_path / "src" / "transformers"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "0.0.1"\n')
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)  # all that the tests import is there
    with pytest.raises(SystemExit):
        suite.main(["--source", str(tmp_path)])
    assert "--source is transformers 0.0.1, but" in capsys.readouterr().err


def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "parameterized" else name)
    with pytest.raises(SystemExit):
        suite.main(["--source", str(tmp_path)])
    assert "pip install parameterized" in capsys.readouterr().err


def test_a_failure_where_dense_skips_a_part_is_seen() -> None:
    """A test with a skipped subtest counts as skipped, and its other subtests can still fail."""
    facts = suite.compared({"T.a": suite.Outcome("skipped")}, {"T.a": suite.Outcome("failed", "ValueError: x")})
    assert facts["failed only sparse"]["T.a"]["reason"] == "not explained"


@pytest.mark.long
def test_each_model_is_made_sparse_once_when_it_is_built(tmp_path: Path) -> None:
    """The plugin, in a process of its own because it changes transformers' classes."""
    pytest.importorskip("transformers")
    (tmp_path / "test_builds.py").write_text(BUILDS)
    plugin = ["-p", "topkast.tools.transformers_suite.sparse_plugin"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *plugin, "--junitxml=found.xml", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    found = suite.read(tmp_path / "found.xml")
    counts = {"one_made_of_another": 1, "saved_and_loaded": 2, "a_class_of_its_own": 1}
    counts |= {"built_by_a_mixin": 1, "on_meta": 0}
    assert {name: outcome.sparse for name, outcome in found.items()} == {
        f"test_builds.test_{name}": count for name, count in counts.items()
    }
