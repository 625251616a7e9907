"""transformers' own tests of its models, with sparse models in them: what passes dense and does not pass sparse.

    git clone --branch v<the installed version> --depth 1 https://github.com/huggingface/transformers
    python -m topkast.tools.transformers_suite --source transformers

The tests need `pip install parameterized datasets`. The test file of each model runs twice, as it is and with the
plugin `topkast.tools.transformers_suite.sparse_plugin`. A test which fails both times says nothing of sparse models. A
test which passes only dense needs a reason in `reasons.py`; without a reason the command ends with exit
code 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from rich.table import Table

from topkast.tools.common.places import RESULTS
from topkast.tools.common.results import CONSOLE, machine, write

from .reasons import REASONS

MODELS = ("bert", "gpt2", "llama", "t5", "vit")
UNEXPLAINED = "not explained"
SPARSE = "models made sparse"  # the property of a test's record, written by the plugin


@dataclass
class Outcome:
    """How a test ended: "passed", "failed" or "skipped", and the first line that says why."""

    ended: str
    why: str = ""
    sparse: int = 0  # models made sparse while the test ran


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="a clone of transformers, at the installed version")
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME", help="folders of tests/models")
    parser.add_argument("--keyword", default="", metavar="WORDS", help="only these tests: pytest's -k")
    parser.add_argument("--out", type=Path, default=RESULTS / "transformers-suite.json", help="the JSON file")
    parser.add_argument("--reports", type=Path, help="keep junit files here; a run that has one is not repeated")
    args = parser.parse_args(argv)
    args.source = args.source.resolve()
    if wrong := unsuited(args.source, args.models):
        parser.error(wrong)
    return args


def unsuited(source: Path, models: list[str]) -> str | None:
    """Why these tests cannot run here, or None."""
    needed = ("transformers", "parameterized", "datasets")
    if lacking := [name for name in needed if importlib.util.find_spec(name) is None]:
        return f"the tests import {', '.join(lacking)}, not installed here: pip install {' '.join(lacking)}"
    import transformers

    said = source / "src" / "transformers" / "__init__.py"
    if not said.is_file():
        return f"--source: {source} is no clone of transformers: src/transformers/__init__.py is missing"
    found = re.search(r'^__version__ = "(.+)"', said.read_text(), re.MULTILINE)
    version, installed = found[1] if found else "of no version", transformers.__version__
    if version != installed:
        return f"--source is transformers {version}, but {installed} is installed: check out the tag v{installed}"
    missing = [test_file(name) for name in models if not (source / test_file(name)).is_file()]
    return f"--models: --source has no {', '.join(missing)}" if missing else None


def test_file(model: str) -> str:
    return f"tests/models/{model}/test_modeling_{model}.py"


def run(source: Path, model: str, kind: str, keyword: str, report: Path) -> dict[str, Outcome]:
    """Run a model's tests as `kind`, "dense" or "sparse", into the junit file `report`, unless there is one already."""
    if not report.is_file():
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-o",
            "log_cli=false",
            "-W",
            "ignore",
        ]
        command += ["-p", "topkast.tools.transformers_suite.sparse_plugin"] if kind == "sparse" else []
        command += [*(["-k", keyword] if keyword else []), f"--junitxml={report}", test_file(model)]
        settings = {
            "OMP_NUM_THREADS": "1",
            "TOPKAST_KERNEL": "dense",
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        environment = os.environ | settings
        done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True)
        if done.returncode not in (0, 1) or not report.is_file():  # 1: tests failed; else pytest itself did
            report.unlink(missing_ok=True)
            sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return read(report)


def read(report: Path) -> dict[str, Outcome]:
    """The junit file: Class.test -> how it ended. A test with a failed subtest has failed."""
    found: dict[str, Outcome] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}.{case.get('name')}"
        sparse = sum(int(entry.get("value", 0)) for entry in case.iter("property") if entry.get("name") == SPARSE)
        outcome = Outcome("passed", sparse=sparse)
        for child in case:
            if child.tag in ("failure", "error") and outcome.ended != "failed":
                outcome = Outcome("failed", first_line(child), sparse)
            elif child.tag == "skipped" and outcome.ended == "passed":
                outcome = Outcome("skipped", first_line(child), sparse)
        if name not in found or found[name].ended != "failed":
            found[name] = outcome
    return found


def first_line(child: ElementTree.Element) -> str:
    """The message's first line, without folders of this machine."""
    lines = (child.get("message") or child.text or "").strip().splitlines() or ["no message"]
    return re.sub(r"(?<![\w.:/])/(?:[\w.+-]+/)+", "", lines[0])[:300]


def compared(dense: dict[str, Outcome], sparse: dict[str, Outcome], model: str = "") -> dict[str, Any]:
    """Counts, and each test which passes dense and not sparse: its first line and its reason."""
    only = {}
    for name, outcome in dense.items():
        other = sparse.get(name, Outcome("not run", "the test did not run"))
        lost = outcome.ended == "passed" and other.ended != "passed"
        if lost or (outcome.ended == "skipped" and other.ended == "failed"):  # a subtest was skipped, others ran
            only[name] = {"ended": other.ended, "error": other.why, "reason": reason(f"{model}.{name}", other.why)}
    passed = [outcome for outcome in sparse.values() if outcome.ended == "passed"]
    return {
        "passed dense": sum(outcome.ended == "passed" for outcome in dense.values()),
        "failed dense": {name: outcome.why for name, outcome in dense.items() if outcome.ended == "failed"},
        "skipped dense": sum(outcome.ended == "skipped" for outcome in dense.values()),
        "passed sparse": len(passed),
        "passed with a sparse model": sum(outcome.sparse > 0 for outcome in passed),
        "failed only sparse": only,
    }


def reason(test: str, error: str) -> str:
    """The sentence for the first pair of globs that fit the test and its error."""
    fits = (why for name, line, why in REASONS if fnmatchcase(test, name) and fnmatchcase(error, line))
    return next(fits, UNEXPLAINED)


def table(found: dict[str, Any]) -> Table:
    heads = ("passed dense", "failed dense", "skipped dense", "passed sparse", "passed with a sparse model")
    shown = Table("model", *heads, "failed only sparse", UNEXPLAINED, title="transformers' tests of its models")
    for model, facts in found.items():
        only = facts["failed only sparse"]
        counts = [facts[head] if isinstance(facts[head], int) else len(facts[head]) for head in heads]
        open_ones = sum(entry["reason"] == UNEXPLAINED for entry in only.values())
        shown.add_row(model, *map(str, (*counts, len(only), open_ones)))
    return shown


def show(found: dict[str, Any]) -> int:
    """Print the table and each test which passes only dense. Return 1 if such a test has no reason, else 0."""
    CONSOLE.print(table(found))
    reasons = []
    for model, facts in found.items():
        for name, entry in facts["failed only sparse"].items():
            reasons.append(entry["reason"])
            text = f"{model}: {name}\n    {entry['ended']}: {entry['error']}\n    {entry['reason']}"
            CONSOLE.print(text, highlight=False, markup=False, soft_wrap=True)
    return int(UNEXPLAINED in reasons)


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    facts, found = machine(), {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.reports or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for model in args.models:
            start, results = time.monotonic(), {}
            for kind in ("dense", "sparse"):
                results[kind] = run(args.source, model, kind, args.keyword, folder / f"{model}-{kind}.xml")
            found[model] = compared(results["dense"], results["sparse"], model)
            only = len(found[model]["failed only sparse"])
            CONSOLE.print(f"{model}: {len(results['dense'])} tests twice in {time.monotonic() - start:.0f} s, "
                          f"{only} pass only dense", highlight=False)  # fmt: skip
    import transformers

    facts["transformers"] = transformers.__version__
    write(args.out, facts, {"models": args.models, "keyword": args.keyword}, {"suite": found})
    return show(found)


if __name__ == "__main__":
    sys.exit(main())
