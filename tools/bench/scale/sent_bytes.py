"""Bytes that real processes send, by the kernel's counters of their connections, beside what is computed."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from topkast.tools.common.transport import bytes_sent

from .count import held, sent_in_a_refresh, sent_in_a_step
from .counted_decoder import Size, sharded

SMALL = Size(dim=128, layers=2, heads=4, keys=2, inner=352, vocab=64)
EVERY = 4
ADDED_BY_GLOO = 2  # gloo adds gradients everywhere, and each rank keeps its part


def _steps(model: Any, optimizer: Any, group: Any, count: int) -> int:
    """The bytes that this rank sends in a number of steps."""
    dist.barrier(group)  # so that nothing waits in a connection
    before = bytes_sent()
    for _ in range(count):
        words = torch.randint(0, SMALL.vocab, (2, 8))
        optimizer.zero_grad()
        model(words).float().square().mean().backward()
        optimizer.step()
    dist.barrier(group)
    return bytes_sent() - before


def _rank(rank: int, ranks: int, folder: str, options: dict[str, Any] | None, bf16: bool) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    model = sharded(SMALL, SMALL.layers, mesh, options, bf16, meta=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    _steps(model, optimizer, mesh.get_group(), 1)  # the first step compares the ranks
    plain = _steps(model, optimizer, mesh.get_group(), EVERY - 2) // (EVERY - 2)
    with_refresh = _steps(model, optimizer, mesh.get_group(), 1)
    state = sum(
        (value.to_local() if hasattr(value, "to_local") else value).nbytes
        for entries in optimizer.state.values()
        for value in entries.values()
        if value.dim()
    )
    found = {
        "step": plain,
        "refresh": with_refresh - plain,
        "step computed": sent_in_a_step(model, ranks, ADDED_BY_GLOO),
        "refresh computed": sent_in_a_refresh(model, ranks) if options is not None else 0,
        "optimizer": state,
        "held computed": dict(held(model)),
        "refreshes": max((len(site.churn) for site in _sites(model)), default=0),
    }
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def _sites(model: Any) -> list[Any]:
    return [part for part in model.modules() if hasattr(part, "n_fwd")]


def measured(ranks: int, options: dict[str, Any] | None, bf16: bool) -> list[dict[str, Any]]:
    """What each rank of real processes holds and sends, in bytes: measured and computed.

    Args:
        options: of ``topkast.sparsify``; None: a dense model.
        bf16: whether to multiply in bfloat16 and add gradients in float32.
    """
    if options is not None:
        options = {**options, "refresh_every": EVERY, "seed": 0}
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (ranks, folder, options, bf16), nprocs=ranks)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(ranks)]
