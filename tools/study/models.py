"""The models that are trained, of any width, and the width whose parameters are as many as wanted."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .run_fields import StudyError


class Block(nn.Module):
    """A transformer's layer: attention and an MLP, each behind a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ByteModel(nn.Module):
    """Bytes [batch, length] to logits of the next one [batch, length, 256].

    Args:
        std: deviation that the layers' weights are drawn with (GPT-2: 0.02); None: as ``nn.Linear`` draws them.
    """

    def __init__(
        self, width: int = 128, layers: int = 2, heads: int = 4, length: int = 64, std: float | None = None
    ) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256)
        for table in (self.bytes, self.places):
            nn.init.normal_(table.weight, std=0.02)
        for layer in self.modules():
            if std is not None and isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=std)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        places = self.places.weight[: x.shape[1]]
        return self.head(self.norm(self.blocks(self.bytes(x) + places)))


def start_as_gpt2(model: nn.Module) -> None:
    """Draw a text model as GPT-2 draws its own: 0.02, what is added to the residual stream smaller by its layers.

    Raises:
        StudyError: the model is no text model.
    """
    if not isinstance(model, ByteModel):
        raise StudyError("initial='gpt2': must be a text task's")
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            added = name.endswith((".out", ".down"))
            nn.init.normal_(layer.weight, std=0.02 / (2 * len(model.blocks)) ** 0.5 if added else 0.02)
            nn.init.zeros_(layer.bias)


class Residual(nn.Module):
    """Two 3x3 convolutions around a shortcut; ``stride`` 2 halves the image."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.second(F.relu(self.norm1(self.first(x)))))
        return F.relu(y + self.shortcut(x))


class ConvNet(nn.Module):
    """Images [batch, channels, side, side] to class logits, a small ResNet."""

    def __init__(self, width: int, channels: int, classes: int, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        stages, held = [], width
        for stride in strides:
            stages.append(Residual(held, held * stride, stride))
            held *= stride
        self.stages, self.head = nn.Sequential(*stages), nn.Linear(held, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


def torchvision_resnet(width: int) -> nn.Module:
    """torchvision's ResNet of one basic block a stage, without the max pooling, for 3 x 32 x 32 and ten classes.

    Raises:
        StudyError: torchvision is not installed.
    """
    from topkast.tools.zoo import model_entry as _zoo_entry  # noqa: F401  (two operators that torchvision wants and a torch of another version lacks)

    try:
        from torchvision.models.resnet import BasicBlock, ResNet
    except ImportError as error:
        raise StudyError(f"task digits-resnet: needs torchvision, pip install torchvision ({error})") from error
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)
    model.maxpool = nn.Identity()  # or the last stage would see one pixel
    if width != 64:  # its own width is fixed, its stages are not
        model.conv1, model.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        model.inplanes = width
        for stage in range(4):
            layers = model._make_layer(BasicBlock, width << stage, 1, stride=2 if stage else 1)
            setattr(model, f"layer{stage + 1}", layers)
        model.fc = nn.Linear(width << 3, 10)
    for layer in model.modules():  # as torchvision does it
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return model


def width_for(build: Callable[[int], nn.Module], parameters: int, step: int, most: int) -> int:
    """The multiple of ``step`` up to ``most`` whose model has the count of parameters nearest to ``parameters``."""

    def distance(width: int) -> int:
        with torch.device("meta"):
            return abs(sum(p.numel() for p in build(width).parameters()) - parameters)

    return min(range(step, most + 1, step), key=distance)
