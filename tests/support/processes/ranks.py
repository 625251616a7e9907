"""What one of two processes runs for tests/runtime/training/test_ranks.py; pytest's own process has the oracle beside
it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import topkast
from topkast.passes.dynamo.insert_refresh import insert_refresh
from topkast.tests.support import refusals
from topkast.tests.support.truth.builders import CASES
from topkast.tests.support.truth.lockstep import sgd, sites_of

RANKS, STEPS = 2, 7
SPARSE: dict[str, Any] = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 2, "min_size": 1}
# name -> (case, options of topkast.compile, arguments of DistributedDataParallel)
SCENARIOS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "plain": ("mlp", {"backend": "eager"}, {}),
    "blocks": ("mlp", {"backend": "eager", "block": (4, 2)}, {}),
    "host": ("mlp", {"backend": "eager", "reservoir": "host"}, {"forward_sync_buffers": False}),
    "random": ("mlp", {"backend": "eager", "explore": "random"}, {}),
    "views": ("mlp", {"backend": "eager"}, {"gradient_as_bucket_view": True}),
    "static": ("mlp", {"backend": "eager"}, {"static_graph": True}),
    "unused": ("mlp", {"backend": "eager"}, {"find_unused_parameters": True}),
    "norms": ("cnn", {"backend": "eager"}, {}),
    "tied": ("tied", {"backend": "eager"}, {}),
    "accumulated": ("mlp", {"backend": "eager"}, {}),
    "resumed": ("mlp", {"backend": "eager"}, {}),
    "pending": ("mlp", {"backend": "eager", "refresh_in_background": True, "reservoir": "host"}, {}),
    # Dynamo splits the graph where a bucket is full: here after every weight.
    "buckets": ("mlp", {"backend": "aot_eager"}, {"bucket_cap_mb": 1e-4}),
}


def model_of(name: str, rank: int) -> nn.Module:
    """Every rank has weights of its own; what counts is rank 0's."""
    case, options, _ = SCENARIOS[name]
    with warnings.catch_warnings():
        model = topkast.compile(CASES[case].model(seed=rank), **{**SPARSE, **options})
    assert model is not None
    return model


def shares(name: str, rank: int) -> Iterator[list[Any]]:
    """The batches of one rank, a list for each step."""
    each = 2 if name == "accumulated" else 1
    batches = CASES[SCENARIOS[name][0]].batches(STEPS * RANKS * each)
    for step in range(STEPS):
        yield batches[step * RANKS * each : (step + 1) * RANKS * each][rank::RANKS]


def train(name: str, rank: int) -> list[dict[str, Any]]:
    """The model's state after each step."""
    case, model = CASES[SCENARIOS[name][0]], model_of(name, rank)
    if name == "resumed" and rank == 0:  # a checkpoint that only one rank reads
        for site in sites_of(model).values():
            site.step = site.refreshed_at = 3
    if name == "pending" and rank == 0:  # and with it sets that a thread has been asked for
        for site in sites_of(model).values():
            site.step = 2
            site.refresh_if_due()
            assert site.pending is not None
    parallel = DistributedDataParallel(model, **SCENARIOS[name][2])
    own = [path for path in parallel.named_module_buffers if "sparse_state" in path]
    assert own == [], f"sent in every forward: {own}"
    optimizer = sgd(list(parallel.parameters()))
    states = []
    pieces = mock.patch("topkast.compiler.backend.insert_refresh", wraps=insert_refresh)
    with pieces as compiled:
        for batches in shares(name, rank):
            optimizer.zero_grad()
            for number, (args, target) in enumerate(batches):
                waiting = number + 1 < len(batches)
                with parallel.no_sync() if waiting else nullcontext():
                    (case.loss(parallel(*args), target) / len(batches)).backward()
            optimizer.step()
            state = {values: topkast.dense_state_dict(parallel, values=values) for values in ("all", "forward")}
            states.append(copy.deepcopy({**state, "sets": topkast.masks(parallel)}))
    assert (compiled.call_count > 1) == (name == "buckets")
    late = {site.late for site in sites_of(model).values()}
    assert late == {0}, "a forward of the compiled model did not refresh"
    return states


def run(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    found: dict[str, Any] = {}
    dist._DEFAULT_FIRST_BUCKET_BYTES = 100  # torch's is 1 MB; the first bucket may not be larger than the others
    for name in SCENARIOS:
        torch._dynamo.reset()
        torch.manual_seed(rank)
        found[name] = train(name, rank)
    found["refused"] = refused(topkast.sparsify(CASES["mlp"].model(), fwd=0.8 + 0.1 * rank, bwd=0.5, min_size=1))
    with mock.patch("topkast.compiler.config._processes", return_value=1):  # converted before the processes met
        found["rigl"] = refused(topkast.sparsify(CASES["mlp"].model(seed=0), fwd=0.8, min_size=1, method="rigl"))
    found["tools"], found["before"] = refusals.refused(), refusals.wrapped_before()
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def refused(model: nn.Module) -> str:
    """What is said of a model that ranks cannot train together."""
    try:
        DistributedDataParallel(model)
    except topkast.ModelError as error:
        return str(error)
    return "nothing"
