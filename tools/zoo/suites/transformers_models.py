"""transformers: architectures from tiny configurations. Sizes are set by the names that configurations share."""

from __future__ import annotations

import functools
import inspect
import logging
import os
from typing import Any

import torch
from torch import Tensor, nn

from topkast.tools.zoo.model_entry import Batch, Entry

os.environ.setdefault("HF_HUB_OFFLINE", "1")
from transformers import AutoConfig, AutoModel

logging.getLogger("transformers").setLevel(logging.ERROR)

SIZES = {
    32: "hidden_size d_model n_embd dim d_embed emb_dim encoder_hidden_size decoder_hidden_size embedding_size "
    "d_inner_hid hidden_dim projection_dim text_embed_dim image_hidden_size conv_dim_out",
    48: "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff mlp_dim n_inner ffn_hidden_size inner_dim "
    "moe_intermediate_size shared_expert_intermediate_size hidden_dim_ff intermediate_dim ffn_hidden_dim d_inner",
    2: "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers num_decoder_layers "
    "num_encoder_layers num_experts_per_tok num_conv_pos_embedding_groups n_group topk_group num_key_value_heads "
    "first_k_dense_replace_",
    4: "num_attention_heads num_heads n_head n_heads encoder_attention_heads decoder_attention_heads num_experts "
    "num_local_experts n_routed_experts moe_num_experts",
    8: "head_dim d_kv attention_head_size v_head_dim qk_rope_head_dim qk_nope_head_dim kv_channels",
    16: "kv_lora_rank q_lora_rank mamba_d_state state_size lru_width_",
    64: "max_position_embeddings n_positions max_source_positions max_target_positions seq_length",
    99: "vocab_size",
}
VALUES = {name: value for value, names in SIZES.items() for name in names.split()}

KINDS = {
    "encoder": "albert bert canine deberta-v2 distilbert electra esm fnet mobilebert modernbert mpnet roberta roformer",
    "decoder": "biogpt bloom ctrl diffllama falcon gemma gemma3_text gpt2 gpt_neo gpt_neox gptj llama mistral olmo2 "
    "opt phi qwen2 xlnet",
    "encoder-decoder": "bart longt5 marian prophetnet t5",
    "mixture of experts": "deepseek_v3 gpt_oss mixtral qwen2_moe qwen3_moe switch_transformers",
    "state space": "bamba mamba mamba2 recurrent_gemma rwkv",
    "vision": "beit convnext dinov2 efficientnet hiera levit mobilenet_v2 resnet segformer swin videomae vit vit_mae",
    "audio": "audio-spectrogram-transformer speech_to_text wav2vec2 wav2vec2-bert wavlm whisper",
    "multimodal": "clip flava idefics3 llava siglip vilt",
    "other": "patchtst perceiver time_series_transformer",
}
# What an architecture needs besides, to be small and whole.
OWN: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 16},
    "canine": {"num_hash_buckets": 64},
    "convnext": {"hidden_sizes": [32, 32, 64, 64]},
    "deepseek_v3": {"num_key_value_heads": 4},
    "distilbert": {"hidden_dim": 48},
    "efficientnet": {"width_coefficient": 0.5, "depth_coefficient": 1.0, "hidden_dim": 640},
    "esm": {"vocab_size": 99, "pad_token_id": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 4},
    "idefics3": {"image_token_id": 98},
    "llava": {"image_token_index": 98},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "mobilebert": {"true_hidden_size": 32, "intra_bottleneck_size": 32},
    "opt": {"word_embed_proj_dim": 32},
    "perceiver": {"d_latents": 32, "num_latents": 8, "num_self_attends_per_block": 2},
    "resnet": {"hidden_sizes": [32, 32, 64, 64]},
    "segformer": {"hidden_sizes": [16, 32, 40, 64]},
    "swin": {"window_size": 4, "image_size": 128},
    "switch_transformers": {"num_experts": 2},
    "time_series_transformer": {
        "prediction_length": 4,
        "context_length": 8,
        "lags_sequence": [1, 2, 3],
        "num_time_features": 2,
    },
    **{kind: {"apply_spec_augment": False} for kind in ("wav2vec2", "wav2vec2-bert", "wavlm")},  # it masks at random
}


def _small(config: Any) -> dict[str, Any]:
    """Small values for what a configuration has of the known names, in the configurations inside it too."""
    found: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        inner: Any = getattr(config, name, None)
        if hasattr(inner, "to_dict") and name in getattr(config, "sub_configs", {}):
            found[name] = {**_small(inner), "model_type": inner.model_type}
        elif type(value) is int and name in VALUES:
            found[name] = min(value, VALUES[name])
        elif type(value) is int and name in ("image_size", "embed_dim"):
            found[name] = {"image_size": 64, "embed_dim": 24}[name]
        elif isinstance(value, (list, tuple)) and name in ("depths", "depth", "num_block_repeats"):
            found[name] = [1] * len(value)
        elif isinstance(value, (list, tuple)) and name in ("conv_dim", "tdnn_dim"):
            found[name] = [16] * len(value)
        elif isinstance(value, float) and 0 < value < 1 and "drop" in name:
            found[name] = 0.0
        elif name == "use_cache":
            found[name] = False
        elif name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id") and value is not None:
            found[name] = {"pad_token_id": 0, "bos_token_id": 1}.get(name, 2)
    return found


def configuration(kind: str) -> Any:
    values = {**_small(AutoConfig.for_model(kind)), **OWN.get(kind, {})}
    return AutoConfig.for_model(kind, **values)


def _build(kind: str) -> nn.Module:
    return AutoModel.from_config(configuration(kind))


def _setting(config: Any, *names: str, default: Any) -> Any:
    """The first of these names that the configuration, or one inside it, has."""
    inside = [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
    for holder in (config, *inside):
        for name in names:
            if isinstance(getattr(holder, name, None), (int, tuple, list)):
                return getattr(holder, name)
    return default


def _tokens(generator: torch.Generator, length: int = 8) -> Tensor:
    return torch.randint(3, 50, (2, length), generator=generator)


def _batch(kind: str, generator: torch.Generator) -> Batch:
    """Whatever of the usual arguments the model's forward takes."""
    config = configuration(kind)
    model: Any = AutoModel._model_mapping[type(config)]
    model = model[0] if isinstance(model, (tuple, list)) else model
    taken = inspect.signature(model.forward).parameters
    given: dict[str, Any] = {}
    if kind in OWN_BATCH:
        return (), OWN_BATCH[kind](config, generator)
    if "input_ids" in taken:
        given["input_ids"] = _tokens(generator)
    if "pixel_values" in taken:
        size = _setting(config, "image_size", default=64)
        size = size if isinstance(size, int) else size[0]
        frames = (_setting(config, "num_frames", default=2),) if "video" in kind else ()
        channels = _setting(config, "num_channels", default=3)
        given["pixel_values"] = torch.randn(2, *frames, channels, size, size, generator=generator)
    if "input_values" in taken:
        given["input_values"] = torch.randn(2, 1600, generator=generator)
    if "decoder_input_ids" in taken:
        given["decoder_input_ids"] = _tokens(generator, 6)
    if "use_cache" in taken:
        given["use_cache"] = False
    return (), given


def _series(config: Any, generator: torch.Generator) -> dict[str, Any]:
    past = config.context_length + max(config.lags_sequence)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "past_values": draw(2, past),
        "past_time_features": draw(2, past, config.num_time_features),
        "past_observed_mask": torch.ones(2, past),
        "future_values": draw(2, config.prediction_length),
        "future_time_features": draw(2, config.prediction_length, config.num_time_features),
    }


def _features(frames: int, bins_first: bool) -> Any:
    """Spectrograms of so many frames, and the first tokens of a transcript where there is a decoder."""

    def batch(config: Any, generator: torch.Generator) -> dict[str, Any]:
        bins = _setting(config, "num_mel_bins", "input_feat_per_channel", "feature_projection_input_dim", default=80)
        shape = (2, bins, frames) if bins_first else (2, frames, bins)
        given: dict[str, Any] = {"input_features": torch.randn(shape, generator=generator)}
        return {**given, "decoder_input_ids": _tokens(generator, 6)} if config.is_encoder_decoder else given

    return batch


def _decisions(config: Any, generator: torch.Generator) -> dict[str, Any]:
    return {
        "states": torch.randn(2, 5, config.state_dim, generator=generator),
        "actions": torch.randn(2, 5, config.act_dim, generator=generator),
        "returns_to_go": torch.randn(2, 5, 1, generator=generator),
        "timesteps": torch.arange(5).repeat(2, 1),
        "attention_mask": torch.ones(2, 5),
    }


def _image_tokens(config: Any, generator: torch.Generator) -> dict[str, Any]:
    """An image, and a text in which it has its places."""
    vision = config.vision_config
    side, patches = vision.image_size, (vision.image_size // vision.patch_size) ** 2
    images = torch.randn(2, 3, side, side, generator=generator)
    count = patches if config.model_type == "llava" else patches // config.scale_factor**2
    places = torch.full((2, count), config.image_token_id)
    return {
        "input_ids": torch.cat([_tokens(generator, 4), places, _tokens(generator, 4)], dim=1),
        "pixel_values": images if config.model_type == "llava" else images[:, None],
        "use_cache": False,
    }


def _masked(config: Any, generator: torch.Generator) -> dict[str, Any]:
    patches = (config.image_size // config.patch_size) ** 2
    pixels = torch.randn(2, 3, config.image_size, config.image_size, generator=generator)
    return {"pixel_values": pixels, "noise": torch.rand(2, patches, generator=generator)}


def _with_masks(config: Any, generator: torch.Generator) -> dict[str, Any]:
    """Without masks torch.export does not trace these models, dense ones either."""
    given = {"input_ids": _tokens(generator), "decoder_input_ids": _tokens(generator, 6)}
    masks = {name.replace("input_ids", "attention_mask"): torch.ones_like(ids) for name, ids in given.items()}
    return {**given, **masks, "use_cache": False}


OWN_BATCH: dict[str, Any] = {
    "longt5": _with_masks,
    "switch_transformers": _with_masks,
    "llava": _image_tokens,
    "idefics3": _image_tokens,
    "vit_mae": _masked,
    "whisper": _features(128, True),
    "speech_to_text": _features(32, False),
    "wav2vec2-bert": _features(16, False),
    "audio-spectrogram-transformer": lambda config, generator: {
        "input_values": torch.randn(2, config.max_length, config.num_mel_bins, generator=generator)
    },
    "time_series_transformer": _series,
    "patchtst": lambda config, generator: {
        "past_values": torch.randn(2, config.context_length, config.num_input_channels, generator=generator)
    },
    "decision_transformer": _decisions,
    "canine": lambda config, generator: {"input_ids": _tokens(generator, 64)},  # it looks at every fourth one
    "perceiver": lambda config, generator: {"inputs": torch.randn(2, 8, config.d_model, generator=generator)},
}


def entries() -> list[Entry]:
    return [
        Entry("transformers", kind, group, functools.partial(_build, kind), functools.partial(_batch, kind))
        for group, kinds in KINDS.items()
        for kind in kinds.split()
    ]
