"""torchvision: one model of each classification family, segmentation, and the backbones of its detectors."""

from __future__ import annotations

import functools

from torch import nn
from torchvision import models
from torchvision.models.detection.backbone_utils import mobilenet_backbone, resnet_fpn_backbone

from topkast.tools.zoo.model_entry import Entry, image

# model -> side of its images: the smallest that its strides and windows allow
CLASSIFICATION = {
    "resnet18": 32, "mobilenet_v2": 32, "mobilenet_v3_small": 32, "squeezenet1_1": 32, "shufflenet_v2_x0_5": 32,
    "mnasnet0_5": 32, "regnet_x_400mf": 32, "regnet_y_400mf": 32, "resnext50_32x4d": 32, "resnet50": 32,
    "efficientnet_b0": 32, "swin_t": 32, "swin_v2_t": 32, "convnext_tiny": 32, "googlenet": 32,
    "densenet121": 32, "efficientnet_v2_s": 32, "wide_resnet50_2": 32, "inception_v3": 96, "maxvit_t": 224,
    "alexnet": 64, "vgg11": 32,
}  # fmt: skip
SEGMENTATION = ("deeplabv3_mobilenet_v3_large", "fcn_resnet50", "lraspp_mobilenet_v3_large")


def _classifier(name: str, size: int) -> nn.Module:
    options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    options |= {"aux_logits": False} if name == "inception_v3" else {}  # they need images of 299
    return getattr(models, name)(weights=None, num_classes=10, **options)


def _segmenter(name: str) -> nn.Module:
    return getattr(models.segmentation, name)(weights=None, weights_backbone=None, num_classes=5)


def entries() -> list[Entry]:
    found = [
        Entry("torchvision", name, name.split("_")[0], functools.partial(_classifier, name, size), image(size))
        for name, size in CLASSIFICATION.items()
    ]
    found += [
        Entry("torchvision segmentation", name, name.split("_")[0], functools.partial(_segmenter, name), image(48))
        for name in SEGMENTATION
    ]
    vit = functools.partial(
        models.VisionTransformer, image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=128
    )
    found.append(Entry("torchvision", "VisionTransformer", "vit", vit, image(32)))
    resnet = functools.partial(
        resnet_fpn_backbone, backbone_name="resnet18", weights=None, trainable_layers=5, norm_layer=nn.BatchNorm2d
    )
    mobilenet = functools.partial(
        mobilenet_backbone, "mobilenet_v3_large", weights=None, fpn=True, trainable_layers=6, norm_layer=nn.BatchNorm2d
    )
    return [
        *found,
        Entry("torchvision detection", "resnet18 with a feature pyramid", "resnet", resnet, image(64)),
        Entry("torchvision detection", "mobilenet_v3_large with a feature pyramid", "mobilenet", mobilenet, image(64)),
    ]
