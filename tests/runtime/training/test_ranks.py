"""DistributedDataParallel on two processes is the oracle on both halves of the batch; all ranks hold the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from topkast.tests.support.processes.ranks import RANKS, SCENARIOS, SPARSE, model_of, run, shares
from topkast.tests.support.truth.budget import assert_budget, tally
from topkast.tests.support.truth.builders import CASES
from topkast.tests.support.truth.choice import Rules
from topkast.tests.support.truth.lockstep import assert_sets, plans_of, sgd
from topkast.tests.support.truth.oracle import Oracle

Found = list[dict[str, Any]]

pytestmark = pytest.mark.long  # two processes of their own


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Found]:
    """What each rank saw of each scenario."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(run, (str(folder),), nprocs=RANKS)
    yield [torch.load(Path(folder) / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("name", SCENARIOS)
def test_equals_the_oracle(name: str, found: Found) -> None:
    mine, other = (rank[name] for rank in found)
    case, options, _ = SCENARIOS[name]
    background = "refresh_in_background" in options
    rules = Rules(SPARSE["refresh_every"], options.get("explore", "topk"), background=background)
    drawn = iter([mine[0]["sets"], *(state["sets"] for state in mine[2::2])])
    oracle = Oracle(CASES[case].model(seed=0), plans_of(model_of(name, 0)), rules, draw=lambda: next(drawn))
    truth = Oracle(CASES[case].model(seed=0), oracle.plans, rules, dtype=torch.float64, leader=oracle)
    systems = [oracle, truth]
    if name == "resumed":
        for system in systems:
            system.steps = system.refreshed_at = 3
    if name == "pending":
        for system in systems:
            system.steps = 2
            system._refresh_if_due()
    optimizers = [sgd(system.parameters()) for system in systems]
    for system, optimizer in zip(systems, optimizers, strict=True):
        system.watch(optimizer)
    steps = zip(*(shares(name, rank) for rank in range(RANKS)), strict=True)
    for number, batches in enumerate(steps):
        where = f"{name} step {number + 1}"
        for system, optimizer in zip(systems, optimizers, strict=True):
            dtype = torch.float64 if system is truth else torch.float32
            optimizer.zero_grad()
            for own in batches:
                for args, target in own:
                    loss = CASES[case].loss(system(*(a.to(dtype) for a in args)), target.to(dtype))
                    (loss / len(own) / RANKS).backward()
            optimizer.step()
        assert_sets(mine[number]["sets"], oracle.sets, where)
        for values in ("all", "forward"):
            for key in oracle.keys:
                plain, true = (system.state(values)[key] for system in systems)
                assert_budget(mine[number][values][key], plain, true, f"{where}: {key} ({values})")
                assert torch.equal(mine[number][values][key], other[number][values][key]), f"{where}: ranks differ"
        assert_sets(other[number]["sets"], mine[number]["sets"], where)
        tally(1, 0.0, where)
    assert oracle.refreshed_at > 4


def test_models_that_do_not_fit_are_refused_on_every_rank(found: Found) -> None:
    for rank in found:
        assert "rank 1 was converted with other arguments" in rank["refused"]
        assert "method='rigl': each process would grow by its own gradient" in rank["rigl"]


def test_tools_that_would_part_the_ranks_sets_are_refused_on_every_rank(found: Found) -> None:
    """Each by name, with what to use instead, before it has changed a bit; then the model trains as if not asked."""
    for rank in found:
        said = dict(rank["tools"])
        assert said.pop("trains") == "True"
        for tool, error in said.items():
            kind = "OptimizerError" if "Zero" in tool else "ModelError"
            assert error.startswith(kind) and tool.split()[0] in error, f"{tool}: {error}"
            assert "use torch.nn.parallel.DistributedDataParallel" in error, f"{tool}: {error}"


def test_models_that_are_parallel_already_are_refused(found: Found) -> None:
    for rank in found:
        for name, error in rank["before"].items():
            tool = "FullyShardedDataParallel" if name == "sharded" else "DistributedDataParallel"
            assert f"in a {tool} already; convert the model first" in error, f"{name}: {error}"
