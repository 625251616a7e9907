"""A graph network of torch_geometric and a diffusion UNet of diffusers."""

from __future__ import annotations

import functools

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import nn
from torch_geometric.nn import GAT, GCN, GIN, GraphSAGE

from topkast.tools.zoo.model_entry import Batch, Entry

NODES, EDGES, FEATURES = 30, 90, 16
GRAPHS = {"GCN": GCN, "GraphSAGE": GraphSAGE, "GIN": GIN, "GAT": GAT}


def _graph_network(name: str) -> nn.Module:
    return GRAPHS[name](in_channels=FEATURES, hidden_channels=32, num_layers=2, out_channels=8)


def _graph(generator: torch.Generator) -> Batch:
    features = torch.randn(NODES, FEATURES, generator=generator)
    return (features, torch.randint(NODES, (2, EDGES), generator=generator)), {}


def _unet() -> nn.Module:
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return UNet2DModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        attention_head_dim=8,
        norm_num_groups=8,
        **blocks,
    )


def _noised(generator: torch.Generator) -> Batch:
    return (torch.randn(2, 3, 16, 16, generator=generator), torch.tensor([3, 700])), {"return_dict": False}


def _conditional_unet() -> nn.Module:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    )


def _conditioned(generator: torch.Generator) -> Batch:
    latent = torch.randn(2, 4, 16, 16, generator=generator)
    text = torch.randn(2, 7, 32, generator=generator)
    return (latent, torch.tensor([3, 700]), text), {}


def entries() -> list[Entry]:
    found = [
        Entry("torch_geometric", name, "graph network", functools.partial(_graph_network, name), _graph)
        for name in GRAPHS
    ]
    return [
        *found,
        Entry("diffusers", "UNet2DModel", "UNet", _unet, _noised),
        Entry("diffusers", "UNet2DConditionModel", "UNet", _conditional_unet, _conditioned),
    ]
