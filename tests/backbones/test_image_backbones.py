"""Backbones of pictures: the package's network told apart from ours by nothing, and hand-computed pixels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

from mtl_bento.backbones import efficientnet_lite0, vgg16
from mtl_bento.backbones._base import BACKBONES, Modality
from mtl_bento.backbones._maps import side_by_side
from mtl_bento.backbones.efficientnet_lite0 import EfficientNetLite0, EfficientNetLite0Spec
from mtl_bento.backbones.module import ModuleBackbone, ModuleBackboneSpec
from mtl_bento.backbones.pixels import Pixels, PixelsSpec
from mtl_bento.backbones.vgg16 import VGG16, VGG16Spec
from mtl_bento.errors import MissingExtraError, SpecError
from mtl_bento.testing import check_backbone


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, (*shape, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.fixture(scope="module")
def efficientnet() -> EfficientNetLite0:
    try:
        return EfficientNetLite0.pretrained(EfficientNetLite0Spec())
    except MissingExtraError as error:
        pytest.skip(str(error))


def test_our_efficientnet_gives_what_the_package_of_its_authors_gives(efficientnet: EfficientNetLite0) -> None:
    package: Any = pytest.importorskip("efficientnet_lite_pytorch")
    network = package.EfficientNet.from_name("efficientnet-lite0").eval()
    path = efficientnet_lite0.packaged(
        efficientnet_lite0.PACKAGE, efficientnet_lite0.FILE, extra="images", kind="efficientnet_lite0"
    )
    network.load_state_dict(torch.load(path, weights_only=True))
    pixels = noise(2, 64, 96)
    maps: dict[int, Tensor] = {}
    with torch.no_grad():
        state = network._swish(network._bn0(network._conv_stem((pixels.float().permute(0, 3, 1, 2) - 127) / 128)))
        for block in network._blocks:
            state = block(state)
            maps[state.shape[1]] = state
    expected = side_by_side([maps[channels] for channels in (40, 112, 320)])
    assert expected.shape == (2, 472, 8, 12)
    # Ours has batch norm in its convolutions: other roundings; the largest numbers are about 30.
    torch.testing.assert_close(efficientnet(pixels), expected, rtol=0, atol=5e-4)


def test_efficientnet_reads_three_strides_of_any_size(efficientnet: EfficientNetLite0) -> None:
    assert efficientnet.n_features == 40 + 112 + 320
    assert efficientnet(noise(1, 120, 160)).shape == (1, 472, 15, 20)
    assert efficientnet(noise(1, 32, 32)).shape == (1, 472, 4, 4)


def test_vgg16_reads_torchvisions_names_and_gives_three_strides(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = VGG16(VGG16Spec()).state_dict()
    assert list(state)[:2] == ["features.0.weight", "features.0.bias"]
    assert list(state)[-2:] == ["features.28.weight", "features.28.bias"]  # torchvision's last convolution
    torch.save({**state, "classifier.0.weight": torch.zeros(3)}, tmp_path / "vgg.pth")
    built = VGG16.pretrained(VGG16Spec(weights=str(tmp_path / "vgg.pth")))
    pixels = noise(1, 32, 64)
    answer = built(pixels)
    assert answer.shape == (1, 256 + 512 + 512, 4, 8)
    shift, scale = torch.tensor(vgg16.MEAN), torch.tensor(vgg16.SPREAD)
    plain = ((pixels / 255 - shift) / scale).permute(0, 3, 1, 2)
    third = nn.Sequential(*list(built.features)[:17])(plain)  # as far as the third pooling
    torch.testing.assert_close(answer[:, :256], third)
    last = built.features(plain)
    torch.testing.assert_close(answer[0, -1, 0, 0], last[0, -1, 0, 0])


def test_each_position_has_the_pixels_of_its_cell() -> None:
    spec = PixelsSpec().suited((4, 6), (2, 3))
    assert spec.cell == (2, 2)
    pixels = torch.arange(4 * 6 * 3, dtype=torch.uint8).view(1, 4, 6, 3)
    answer = Pixels.pretrained(spec)(pixels)
    assert answer.shape == (1, 12, 2, 3)
    expected = pixels[0, 2:4, 4:6].flatten() / 255  # the last cell: its pixels row by row, colours together
    torch.testing.assert_close(answer[0, :, 1, 2], expected)


def test_a_large_picture_keeps_64_pixels_each_way_as_averages() -> None:
    spec = PixelsSpec().suited((128, 160), (4, 5))
    assert spec.cell == (16, 12)
    white = torch.full((1, 128, 160, 3), 255, dtype=torch.uint8)
    white[:, :, :80] = 0
    answer = Pixels.pretrained(spec)(white)
    assert answer.shape == (1, 16 * 12 * 3, 4, 5)
    assert answer[0, :, 0, :2].unique().tolist() == [0.0]
    assert answer[0, :, 0, 3:].unique().tolist() == [1.0]


def test_more_positions_than_pixels_repeat_them() -> None:
    spec = PixelsSpec().suited((1, 1), (2, 2))
    assert (
        Pixels.pretrained(spec)(torch.full((1, 1, 1, 3), 51, dtype=torch.uint8)).flatten().tolist()
        == [pytest.approx(0.2)] * 12
    )


class OwnSpec(ModuleBackboneSpec):
    kind: Literal["test_own"] = "test_own"
    modality: ClassVar[Modality] = "image"
    n_features: ClassVar[int] = 5

    def module(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 5, 3, stride=2), nn.BatchNorm2d(5))


@contextmanager
def registered(spec: Any) -> Iterator[None]:
    BACKBONES.kinds()
    BACKBONES.register(spec)(ModuleBackbone)
    try:
        yield
    finally:
        del BACKBONES._specs[spec.model_fields["kind"].default], BACKBONES._classes[spec]


def test_an_ordinary_module_is_a_backbone_with_the_weights_of_a_file(tmp_path: Path) -> None:
    torch.manual_seed(1)
    torch.save(OwnSpec().module().state_dict(), tmp_path / "own.pth")
    with registered(OwnSpec):
        check_backbone(OwnSpec(weights=str(tmp_path / "own.pth")))


class WiderSpec(OwnSpec):
    kind: Literal["test_wider"] = "test_wider"  # type: ignore[assignment]
    n_features: ClassVar[int] = 7


def test_a_module_of_another_width_is_refused_with_both() -> None:
    with registered(WiderSpec), pytest.raises(SpecError, match=r"\[4, 5, 23, 31\], not \[B, D, r, c\] with D = 7"):
        check_backbone(WiderSpec)


class Heads(nn.Module):
    """Splits its features by -1, which no rows leave open, as transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Conv2d(3, 4, 3, stride=2)

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.map(pixels)
        return features.view(len(features), -1, 2, *features.shape[2:]).flatten(1, 2)


class HeadsSpec(OwnSpec):
    kind: Literal["test_heads"] = "test_heads"  # type: ignore[assignment]
    n_features: ClassVar[int] = 4

    def module(self) -> nn.Module:
        return Heads()


def test_a_module_that_fails_at_no_rows_is_asked_for_one() -> None:
    with pytest.raises(RuntimeError, match="ambiguous"):
        Heads()(torch.zeros(0, 3, 8, 8))
    with registered(HeadsSpec):
        check_backbone(HeadsSpec)
