"""VGG16 (Simonyan & Zisserman, ICLR 2015), without its classifier; the user gives the file of weights.

Layers are named as torchvision names them, so that its `vgg16-397923af.pth` and files saved from it are read.

Letters: B rows.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from torch import Tensor, nn

from mtl_bento.backbones._base import BACKBONES, Backbone, BackboneSpec, Modality, fill, read_weights
from mtl_bento.backbones._maps import scaled, side_by_side
from mtl_bento.errors import SpecError

STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
"""Convolutions and channels, each stage followed by the largest of 2 x 2."""
READ = 3
"""How many of the last stages are read: those of the strides 8, 16 and 32."""
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What torchvision's weights were trained with."""


class VGG16Spec(BackboneSpec):
    """VGG16, with the user's weights."""

    kind: Literal["vgg16"] = "vgg16"
    modality: ClassVar[Modality] = "image"


@BACKBONES.register(VGG16Spec)
class VGG16(Backbone[VGG16Spec]):
    """Maps of the strides 8, 16 and 32, stretched to the finest: D = 256 + 512 + 512."""

    smallest: ClassVar[int] = 32

    def __init__(self, spec: VGG16Spec) -> None:
        super().__init__(spec)
        self.n_features = sum(channels for _, channels in STAGES[-READ:])
        self.features = nn.Sequential(*_layers())

    @classmethod
    def pretrained(cls, spec: VGG16Spec) -> Self:
        """Return the backbone with the weights of the user's file."""
        if not spec.weights:
            raise SpecError(
                f"Backbone {spec.kind!r} needs a file of weights, which no package brings: `backbone: "
                f"{spec.kind}:PATH`, for instance torchvision's vgg16-397923af.pth."
            )
        built = cls(spec)
        fill(built, read_weights(spec.weights, kind=spec.kind), kind=spec.kind, source=spec.weights)
        return built.frozen()

    def forward(self, values: Tensor) -> Tensor:
        """Pixels [B, rows, columns, 3], at least 32 each way -> [B, 1280, rows / 8, columns / 8]."""
        state = scaled(values, MEAN, SPREAD, next(self.parameters()).dtype)
        maps = []
        for layer in self.features:
            state = layer(state)
            if isinstance(layer, nn.MaxPool2d):
                maps.append(state)
        return side_by_side(maps[-READ:])


def _layers() -> list[nn.Module]:
    layers: list[nn.Module] = []
    fan_in = 3
    for count, channels in STAGES:
        for _ in range(count):
            layers += [nn.Conv2d(fan_in, channels, 3, padding=1), nn.ReLU(inplace=True)]
            fan_in = channels
        layers.append(nn.MaxPool2d(2))
    return layers
