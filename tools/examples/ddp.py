"""DistributedDataParallel on two processes: equal sets on both at every refresh, and only B's gradients travel.

Each process starts from a seed of its own: DistributedDataParallel gives all of them what rank 0 has, the sets too.
"""

import hashlib
import tempfile
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import topkast

RANKS, STEPS, EVERY = 2, 25, 5


def fingerprint(model: Any) -> str:
    """Of all sets and of everything that the model holds."""
    digest = hashlib.sha256()
    for fwd, bwd in topkast.masks(model).values():
        digest.update(fwd.numpy().tobytes() + bwd.numpy().tobytes())
    for tensor in topkast.dense_state_dict(model, values="all").values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def counted(sent: list[int], bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """A communication hook: the mean, as without one, and the bytes."""
    sent[0] += bucket.buffer().nbytes
    done = dist.all_reduce(bucket.buffer().div_(RANKS), async_op=True).get_future()
    return done.then(lambda future: future.value()[0])


def train(rank: int, sparse: bool) -> int:
    """Bytes of gradients that this rank sends in one step."""
    torch.manual_seed(rank)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    if sparse:
        topkast.compile(model, fwd=0.9, bwd=0.8, refresh_every=EVERY, min_size=1, backend="eager")
    parallel, sent = DistributedDataParallel(model), [0]
    parallel.register_comm_hook(sent, counted)
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=1e-2)
    for step in range(STEPS):
        x = torch.randn(32, 64)  # each rank's own batch
        optimizer.zero_grad()
        nn.functional.cross_entropy(parallel(x), x[:, :10].argmax(dim=1)).backward()
        optimizer.step()
        if sparse and step % EVERY == 0:
            prints: list[Any] = [None] * RANKS
            dist.all_gather_object(prints, fingerprint(parallel))
            assert len(set(prints)) == 1, f"ranks differ after step {step}"
            if rank == 0:
                print(f"step {step:2}: sets and weights of {RANKS} ranks have the hash {prints[0][:12]}")
    return sent[0] // STEPS


def run(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    dense, sparse = train(rank, sparse=False), train(rank, sparse=True)
    if rank == 0:
        print(f"gradients sent a step: {sparse:,} bytes, dense {dense:,}: {sparse / dense:.3f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(run, (folder,), nprocs=RANKS)
