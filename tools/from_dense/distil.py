"""Train a sparse encoder to give the dense encoder's outputs, and measure how well an encoder retrieves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel

import topkast

Batch = dict[str, Tensor]


class Encoder(nn.Module):
    """A transformer and the mean over its tokens: one vector of length 1 for each text."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def tokens(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The last hidden states, [texts, tokens, width]."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return pooled(self.tokens(input_ids, attention_mask), attention_mask)


def pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean over the tokens of each text, with length 1."""
    weights = mask[..., None].to(hidden.dtype)
    return F.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)


def dense_encoder(folder: Path) -> Encoder:
    """The trained dense model."""
    return Encoder(AutoModel.from_pretrained(folder)).eval()


def sparse_encoder(folder: Path, fwd: float, steps: int, method: str) -> Encoder:
    """The same model, read from its file into a sparse model on the meta device.

    Args:
        folder: the folder of the dense model.
        fwd: the share of each weight that is zero in the forward, at the end.
        steps: the optimizer steps that will follow; gradual pruning ends after two thirds of them.
        method: "one-shot" for A from the dense model, or a method of :func:`topkast.compile`.
    """
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    options: dict[str, Any] = {"method": "static-magnitude"}
    if method != "one-shot":
        options = {
            "method": method,
            "refresh_every": max(1, steps // 6),
            "stop_exploring_after": max(1, steps * 2 // 3),
        }
    topkast.sparsify(model, fwd=fwd, exclude="pooler.*", init=folder, **options)
    return Encoder(model)


@torch.no_grad()
def outputs(teacher: Encoder, batches: Sequence[Batch]) -> list[Tensor]:
    """The teacher's last hidden states of each batch, which every student is trained on."""
    return [teacher.tokens(**batch) for batch in batches]


def distil(student: Encoder, batches: Sequence[Batch], wanted_outputs: Sequence[Tensor], lr: float) -> list[float]:
    """One optimizer step for each batch; the losses.

    The loss is the squared distance of the last hidden states, divided by the teacher's variance, plus one minus the
    cosine of the pooled vectors.
    """
    optimizer = torch.optim.AdamW(topkast.param_groups(student.model, lr=lr, weight_decay=0.0))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=len(batches), pct_start=0.1)
    student.train()
    losses = []
    for batch, wanted in zip(batches, wanted_outputs, strict=True):
        given, mask = student.tokens(**batch), batch["attention_mask"].bool()
        near = F.mse_loss(given[mask], wanted[mask]) / wanted[mask].var()
        loss = near + 1 - (pooled(given, mask) * pooled(wanted, mask)).sum(-1).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(float(loss.detach()))
    student.eval()
    return losses


@torch.no_grad()
def quality(encoder: Encoder, questions: Sequence[Batch], answers: Sequence[Batch]) -> dict[str, float]:
    """How well questions find their answers among all answers, by the cosine.

    Returns:
        ``first``: the share of questions whose answer comes first; ``mrr``: the mean of 1 / the answer's rank.
    """
    found, wanted = (torch.cat([encoder(**batch) for batch in side]) for side in (questions, answers))
    scores = found @ wanted.T
    rank = (scores >= scores.diagonal()[:, None]).sum(1)  # a tie counts against the answer
    return {"first": float((rank == 1).float().mean()), "mrr": float((1 / rank).mean())}
