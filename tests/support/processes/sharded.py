"""What several gloo processes run for tests/runtime/training/sharded: a model under FSDP2, and the same model in one
process on the union of all batches. Every number is float64, so that a difference of sets is no matter of rounding.
"""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import topkast

STEPS, REFRESH, BATCH = 7, 2, 12
WIDTH = 18  # so that neither 4 ranks nor blocks of 16 divide the rows


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 50), nn.Linear(50, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Net(nn.Module):
    """Two blocks, and weights beside them, which belong to the root."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(10, WIDTH), nn.Linear(WIDTH, 7)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=3e-3),
    # An eps above the differences of the gradients' sums, see test_adam_near_zero.py.
    "adamw, eps 1e-5": lambda parameters: torch.optim.AdamW(parameters, lr=3e-3, eps=1e-5),
}


@dataclass(frozen=True)
class Run:
    """One training run.

    Args:
        optimizer: a name in ``OPTIMIZERS``.
        options: of ``topkast.sparsify``.
        mesh: whether ``sparsify`` is told the mesh.
        shape: of the mesh; None: all ranks in one dimension.
    """

    optimizer: str = "adamw"
    options: dict[str, Any] = field(default_factory=dict)
    mesh: bool = True
    shape: tuple[int, ...] | None = None


def build(run: Run, **start: Any) -> Net:
    torch.manual_seed(0)
    options = {"fwd": 0.8, "bwd": 0.6, "refresh_every": REFRESH, "min_size": 1, "seed": 3, **run.options}
    return topkast.sparsify(Net().double(), **options, **start)


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    sizes = ((BATCH, 10), (BATCH, 7))
    return [tuple(torch.randn(s, generator=generator, dtype=torch.float64) for s in sizes) for _ in range(STEPS)]


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, rank: int = 0, ranks: int = 1, steps: slice = slice(None)
) -> None:
    for x, y in batches()[steps]:
        optimizer.zero_grad()
        F.mse_loss(model(x[rank::ranks]), y[rank::ranks]).backward()
        optimizer.step()


def mesh_of(run: Run) -> Any:
    shape = run.shape or (dist.get_world_size(),)
    return init_device_mesh("cpu", shape, mesh_dim_names=("replicas", "parts")[-len(shape) :])


def sharded(run: Run, mesh: Any = None) -> Net:
    """The model under FSDP2, as a user makes it. mesh: None: :func:`mesh_of` the run."""
    mesh = mesh or mesh_of(run)
    model = build(run, **({"mesh": mesh} if run.mesh else {}))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    said = [str(one.message) for one in caught if "topkast" in str(one.message)]
    assert len(said) == (0 if run.mesh else 1) and all("without mesh" in text for text in said), said
    return model


_alone: dict[str, tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]], Any]] = {}


def alone(run: Run) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]], Any]:
    """θ, the sets and the optimizer after the same run in one process. A refresh that is due is done. Many tests ask
    for the same run, so its result is kept."""
    key = f"{run.optimizer} {sorted(run.options.items())}"
    if key not in _alone:
        _alone[key] = _trained_alone(run)
    return _alone[key]


def _trained_alone(run: Run) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]], Any]:
    model = build(run)
    optimizer = OPTIMIZERS[run.optimizer](model.parameters())
    train(model, optimizer)
    for module in model.modules():
        if hasattr(module, "refresh_if_due"):
            module.refresh_if_due()
    return topkast.dense_state_dict(model, values="all"), topkast.masks(model), optimizer


def enter(rank: int, ranks: int, folder: str, work: Callable[..., Any], *args: Any) -> None:
    """What each process runs: ``work`` in a process group; its result goes into a file."""
    torch.set_num_threads(1)
    os.environ["TOPKAST_COMPARE_RANKS"] = "1"
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    # Dynamo asks every gathered parameter for its gradient, dense ones too.
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    torch.save(work(*args), Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def start(ranks: int, work: Callable[..., None], *args: Any) -> None:
    """Run ``work(rank, *args)`` in each of several processes.

    The processes are forks of one server that has imported everything, because imports are most of their time.
    """
    multiprocessing.set_forkserver_preload([__name__.replace("sharded", "preloaded")])
    torch.multiprocessing.start_processes(work, args, nprocs=ranks, start_method="forkserver")


def on_ranks(ranks: int, folder: Path, work: Callable[..., Any], *args: Any) -> list[Any]:
    """The results of ``work(*args)`` in each of several processes."""
    start(ranks, enter, ranks, str(folder), work, *args)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(ranks)]
