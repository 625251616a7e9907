"""A decoder that dense training does not fit: built on the meta device, made sparse layer by layer, trained with AdamW.

What counts is the process's resident anonymous memory. The reservoir is a mapped file, whose pages the system takes
back when it needs them. It is in the temporary directory (TMPDIR), so that must be on a disk. On a GPU what counts is
what torch's tensors take there, by torch's counters, and the reservoir is in pinned host memory.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import os
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import topkast
from topkast.runtime.state.model import sites
from topkast.tools.common.arguments import add_device, block, positive
from topkast.tools.common.loop import loss_of
from topkast.tools.common.results import CONSOLE, progress
from topkast.tools.common.text import VOCABULARY, load_text

from .memory import anonymous, peak_on, settled
from .step import now

STATE = 16  # bytes a parameter of dense training: value, gradient and AdamW's two moments, in float32
IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_device(parser)
    parser.add_argument("--parameters", type=float, default=2.5e9, metavar="N", help="about how many the decoder has")
    parser.add_argument("--steps", type=positive, default=6, help="of AdamW, with a refresh after half of them")
    parser.add_argument("--fwd", type=float, default=0.9, help="share of each weight that is zero in the forward pass")
    parser.add_argument("--bwd", type=float, default=0.8, help="share of each weight that gets no gradient")
    parser.add_argument("--block", type=block, default=(16, 1), metavar="RxC", help="unit that is kept or dropped")
    parser.add_argument("--batch", type=positive, default=1, help="windows of text; the same ones at every step")
    parser.add_argument("--sequence", type=positive, default=64, help="bytes in a window")
    parser.add_argument("--lr", type=float, default=1e-5, help="above it the first step of 2.5e9 parameters overshoots")


def run(args: argparse.Namespace) -> dict[str, object]:
    """Build, train, and report memory and times.

    Raises RuntimeError where there is no disk for the reservoir, and if the loss does not fall.
    """
    give_back_at_once()
    config = decoder(2e5 if args.quick else args.parameters, args.sequence)
    with torch.device("meta"):
        model: nn.Module = GPT2LMHeadModel(config)
    count = sum(p.numel() for p in model.parameters())
    on_gpu = args.device.type == "cuda"
    folder = "host memory" if on_gpu else check_disk(round(4 * count * args.bwd))
    drawn = load_text(None, args.sequence).batch(torch.Generator().manual_seed(0), args.batch, args.sequence)
    x, y = (tensor.to(args.device) for tensor in drawn)
    torch.manual_seed(0)
    before = _held(args.device)
    with progress() as bar:
        task = bar.add_task(f"{count / 1e6:.0f} million parameters: building", total=args.steps + 1)
        start = now(args.device)
        with peak_on(args.device) as building:
            topkast.compile(
                model,
                args.fwd,
                args.bwd,
                example_inputs={"input_ids": x.cpu()},
                device=args.device,
                block=args.block,
                reservoir="host" if on_gpu else "disk",
                refresh_every=max(1, args.steps // 2),
                min_size=1,
                backend="aot_eager",  # eager keeps a dense W_A of every layer for backward
            )
        build, built = now(args.device) - start, _held(args.device)
        bar.update(task, advance=1)
        # Fused: the others make copies of their state while they step.
        optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, fused=True)
        model.train()
        losses, seconds, peaks, fresh = [], [], [], []
        for _ in range(args.steps):
            start, churned = now(args.device), refreshes(model)
            with peak_on(args.device) as peak:
                loss = loss_of(model, x, y)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
            seconds.append(now(args.device) - start)
            peaks.append(peak.bytes)
            fresh.append(refreshes(model) > churned)
            bar.update(task, advance=1, description=f"loss {losses[-1]:.3f}, {peak.bytes / 1e9:.2f} GB")
    if not all(map(math.isfinite, losses)) or losses[-1] >= losses[0]:
        raise RuntimeError(f"the loss did not fall: {losses}")
    # The first step compiles, and the one with the refresh does more.
    plain = [s for s, f in zip(seconds[1:], fresh[1:], strict=True) if not f] or seconds[-1:]
    step = statistics.median(plain)
    highest = max(building.bytes, *peaks)
    found: dict[str, Any] = {
        "parameters": count,
        "layers": config.n_layer,
        "width": config.n_embd,
        "dense training state": STATE * count,
        "before": before,
        "peak of building": building.bytes,
        "built": built,
        "peak of each step": peaks,
        "peak": highest,
        "peak / dense training state": highest / (STATE * count),
        "high-water mark with mapped files": status("VmHWM"),
        "reservoir": sum(site.reservoir.nbytes for site in sites(model).values()),
        "folder": folder,
        "seconds to build": build,
        "seconds of each step": seconds,
        "seconds of a step": step,
        "seconds of a refresh": sum(s - step for s, f in zip(seconds, fresh, strict=True) if f) / max(1, sum(fresh)),
        "refreshes": sum(fresh),
        "losses": losses,
    }
    CONSOLE.print(_table(found))
    return found


def _held(device: torch.device) -> int:
    return settled(device) if device.type == "cuda" else anonymous()


def give_back_at_once() -> None:
    """Let glibc map every block of a megabyte, and unmap it when it is freed.

    It would otherwise put up to 32 MB into its heap, where the compact values of one layer keep the freed dense weight
    of another from going back to the system: resident memory of more than twice what is in use (seen).
    """
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-3, 2**20)  # M_MMAP_THRESHOLD


def decoder(parameters: float, length: int) -> GPT2Config:
    """GPT-2 over bytes with about that many parameters: 12 layers · width², 80 as wide as it has layers (as GPT-3)."""
    width = max(64, 64 * round((parameters * 80 / 12) ** (1 / 3) / 64))
    off: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=length,
        n_embd=width,
        n_layer=max(1, round(parameters / (12 * width**2))),
        n_head=width // 64,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
        **off,
    )


def refreshes(model: nn.Module) -> int:
    """How often the first site's sets were chosen again."""
    return len(next(iter(sites(model).values())).churn)


def status(field: str) -> int:
    """Bytes that the system counts for this process under that name."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def check_disk(needed: int) -> str:
    """The reservoir's folder and its kind of file system. A mapped file on a full disk ends the process: ask before."""
    folder = os.path.realpath(tempfile.gettempdir())
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    kind = max((len(at), kind) for at, kind in mounts if f"{folder}/".startswith(f"{at.rstrip('/')}/"))[1]
    if kind in IN_MEMORY:
        raise RuntimeError(f"{folder} is a {kind}, which is memory: set TMPDIR to a folder on a disk")
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RuntimeError(f"{folder}: {free / 1e9:.1f} GB free, the reservoir needs {needed / 1e9:.1f}: set TMPDIR")
    return f"{folder} ({kind})"


def _table(found: dict[str, Any]) -> Table:
    shape = f"{found['layers']} layers of width {found['width']}"
    table = Table(title=f"{found['parameters'] / 1e6:.0f} million parameters, {shape}", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name in ("dense training state", "before", "peak of building", "built", "peak", "reservoir",
                 "high-water mark with mapped files"):  # fmt: skip
        table.add_row(name, f"{found[name] / 1e9:.3f} GB")
    for name in ("seconds to build", "seconds of a step", "seconds of a refresh"):
        table.add_row(name, f"{found[name]:.2f}")
    table.add_row("loss", " ".join(f"{loss:.3f}" for loss in found["losses"]))
    return table
