"""timm: one model of each of its families or more, with as few layers as it lets itself be built with."""

from __future__ import annotations

import functools
from typing import Any

import timm
from timm.models import _registry
from torch import nn

from topkast.tools.zoo.model_entry import Entry, image

# model -> side of its images, and what makes it small; what takes least time first
MODELS: dict[str, tuple[int, dict[str, Any]]] = {
    "fasternet_t0": (64, {"depths": [1, 1, 1, 1]}),
    "test_resnet": (64, {}),
    "mambaout_femto": (64, {"depths": [1, 1, 1, 1]}),
    "test_convnext2": (64, {}),
    "test_convnext": (64, {}),
    "nf_regnet_b0": (64, {"depths": [1, 1, 1, 1]}),
    "test_efficientnet": (64, {}),
    "starnet_s050": (64, {"depths": [1, 1, 1, 1]}),
    "inception_next_atto": (64, {"depths": [1, 1, 1, 1]}),
    "legacy_seresnet18": (64, {"layers": [1, 1, 1, 1]}),
    "convit_tiny": (224, {"depth": 2}),
    "resnetv2_18": (64, {"layers": [1, 1, 1, 1]}),
    "edgenext_xx_small": (64, {"depths": [1, 1, 1, 1]}),
    "eva02_tiny_patch14_224": (224, {"depth": 2}),
    "visformer_tiny": (224, {"depth": 2}),
    "deit_tiny_patch16_224": (224, {"depth": 2}),
    "lcnetv2_small": (64, {"depths": [1, 1, 1, 1]}),
    "pvt_v2_b0": (64, {"depths": [1, 1, 1, 1]}),
    "res2net50_26w_4s": (64, {"layers": [1, 1, 1, 1]}),
    "vit_tiny_r_s16_p8_224": (224, {"depth": 2}),
    "resnet18": (64, {}),
    "qwen3_vit_88m": (64, {"depth": 2}),
    "test_byobnet": (64, {}),
    "tiny_vit_5m_224": (64, {"depths": [1, 1, 1, 1]}),
    "skresnet18": (64, {"layers": [1, 1, 1, 1]}),
    "efficientvit_b0": (64, {"depths": [1, 1, 1, 1]}),
    "ese_vovnet19b_slim": (64, {}),
    "poolformer_s12": (64, {}),
    "tresnet_m": (64, {"layers": [1, 1, 1, 1]}),
    "resnest14d": (64, {"layers": [1, 1, 1, 1]}),
    "vit_relpos_small_patch16_224": (224, {"depth": 2}),
    "cait_xxs24_224": (224, {"depth": 2}),
    "naflexvit_base_patch16_siglip": (64, {"depth": 2}),
    "tnt_s_legacy_patch16_224": (224, {"depth": 2}),
    "efficientvim_m1": (64, {"depths": [1, 1, 1]}),
    "test_vit": (160, {}),
    "xcit_nano_12_p8_224": (224, {"depth": 2}),
    "efficientformer_l1": (224, {"depths": [1, 1, 1, 1]}),
    "test_vit3": (160, {}),
    "test_vit_relpos": (160, {}),
    "cpubone_nano": (64, {}),
    "test_coatnet": (160, {}),
    "cs3darknet_focus_s": (64, {}),
    "beit_base_patch16_224": (224, {"depth": 2}),
    "sequencer2d_s": (224, {"layers": [1, 1, 1, 1]}),
    "deepseek_vit_412m": (126, {"depth": 2}),
    "dla34": (64, {}),
    "cspnext_tiny": (64, {"depths": [1, 1, 1, 1]}),
    "mobilenetv3_small_050": (64, {}),
    "swiftformer_xs": (224, {"layers": [1, 1, 1, 1]}),
    "twins_svt_small": (224, {"depths": [1, 1, 1, 1]}),
    "test_maxvit": (160, {}),
    "hardcorenas_a": (64, {}),
    "gemma4_vit_167m": (96, {"depth": 2}),
    "swin_tiny_patch4_window7_224": (224, {"depths": [1, 1, 1, 1]}),
    "fastvit_sa12": (64, {"layers": [1, 1, 1, 1]}),
    "hgnet_tiny": (64, {}),
    "regnetx_002": (64, {}),
    "convmixer_1024_20_ks9_p14": (64, {}),
    "vitamin_small_224": (224, {"depth": 2}),
    "davit_tiny": (64, {"depths": [1, 1, 1, 1]}),
    "selecsls42": (64, {}),
    "samvit_base_patch16": (256, {"depth": 2, "img_size": 256}),
    "swinv2_cr_tiny_224": (224, {"depths": [1, 1, 1, 1]}),
    "efficientformerv2_s0": (224, {"depths": [1, 1, 1, 1]}),
    "legacy_xception": (96, {}),
    "swinv2_tiny_window8_256": (256, {"depths": [1, 1, 1, 1]}),
    "coat_lite_tiny": (224, {}),
    "rexnet_100": (64, {}),
    "rdnet_tiny": (64, {}),
    "lowformer_b0": (64, {}),
    "mixnet_s": (64, {}),
    "shvit_s1": (64, {}),
    "ghostnet_050": (64, {}),
    "mobilevit_xxs": (64, {}),
    "iformer_s": (64, {}),
    "mixer_s16_224": (224, {}),
    "dpn68": (64, {}),
    "hrnet_w18_small": (64, {}),
    "botnet26t_256": (256, {}),
    "repvit_m0_9": (64, {}),
    "focalnet_tiny_srf": (64, {}),
    "csatv2": (64, {}),
    "repghostnet_050": (64, {}),
    "xception41": (96, {}),
    "caformer_s18": (64, {}),
    "pit_ti_224": (224, {}),
    "nest_tiny": (224, {}),
    "densenet121": (64, {}),
    "halonet26t": (256, {}),
    "lambda_resnet26t": (256, {}),
    "nextvit_small": (64, {}),
    "mvitv2_tiny": (224, {}),
    "hiera_tiny_224": (224, {}),
    "inception_v3": (96, {}),
    "sam2_hiera_tiny": (224, {}),
    "vgg11": (64, {}),
    "efficientvit_m1": (224, {}),
    "gcvit_xxtiny": (224, {}),
    "volo_d1_224": (224, {}),
    "levit_384_s8": (224, {}),
    "crossvit_tiny_240": (240, {}),
    "inception_v4": (96, {}),
    "mobilenetv5_base": (64, {}),
    "pnasnet5large": (64, {}),
    "inception_resnet_v2": (96, {}),
    "nasnetalarge": (64, {}),
}


def _build(name: str, options: dict[str, Any]) -> nn.Module:
    return timm.create_model(name, num_classes=10, **options)


def entries() -> list[Entry]:
    return [
        Entry("timm", name, _registry._model_to_module[name], functools.partial(_build, name, options), image(size))
        for name, (size, options) in MODELS.items()
    ]
