"""Pictures."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from mtl_bento.backbones.pixels import Pixels
from mtl_bento.columns.image import ImageColumn
from mtl_bento.encoders import _positions
from mtl_bento.encoders.image import ImageEncoder, ImageEncoderSpec
from mtl_bento.errors import MissingExtraError, SpecError, UnknownKindError

RAW = ImageColumn(name="photo", backbone="pixels", size=(2, 4), grid=(1, 2))


def pictures(column: ImageColumn, *shades: int | None) -> Tensor:
    """Return pictures of one shade of grey as the column encodes them; None is missing."""
    rows = np.zeros((len(shades), column.n_features), dtype=np.uint8)
    for row, shade in zip(rows, shades, strict=True):
        row[:] = 0 if shade is None else shade
        row[-1] = shade is not None
    return torch.from_numpy(rows)


def encoder(column: ImageColumn, values: Tensor, **fields: str) -> ImageEncoder:
    fitted = ImageEncoder.fit([column], values)
    return ImageEncoder([ImageEncoderSpec.model_validate(fields)], [column], fitted, [torch.Generator()])


def test_features_are_standardised_by_position_and_a_missing_picture_has_none() -> None:
    built = encoder(RAW, pictures(RAW, 0, 100, None))
    assert (built.length, built.grid, built.n_features) == (2, (1, 2), 2 * 2 * 3)
    prepared = built.prepare(pictures(RAW, 0, 100, None))
    assert prepared.shape == (3, 2, 12)
    torch.testing.assert_close(prepared[:2], torch.tensor([-1.0, 1.0]).view(2, 1, 1).expand(2, 2, 12))
    assert prepared[2].isnan().all()
    features, mask = built.unfold(prepared)
    assert mask.tolist() == [[True, True], [True, True], [False, False]]
    assert not features[2].any()


def test_cells_lie_row_by_row() -> None:
    column = ImageColumn(name="photo", backbone="pixels", size=(2, 3), grid=(2, 3))
    values = pictures(column, 0, 0)
    values[1, :-1].view(2, 3, 3)[1, 0] = 200  # the first pixel of the second row
    prepared = encoder(column, values).prepare(values)
    assert (prepared[1] > 0).all(-1).tolist() == [False, False, False, True, False, False]


@pytest.mark.parametrize(("pooling", "n_pooled"), [("mean", 12), ("flatten", 24)])
def test_pooled_features_are_means_or_all_side_by_side(pooling: str, n_pooled: int) -> None:
    values = pictures(RAW, 0, 100)
    built = encoder(RAW, values, pooling=pooling)
    assert built.n_pooled == n_pooled
    features, mask = built.unfold(built.prepare(values)[None])
    assert built.pooled(built(features, mask), mask).shape == (1, 2, n_pooled)


def test_a_feature_without_spread_is_zero_and_far_ones_are_cut() -> None:
    built = encoder(RAW, pictures(RAW, 100, 100))
    assert not built.prepare(pictures(RAW, 100)).any()
    few = pictures(RAW, 101, *[100] * 399)
    assert encoder(RAW, few).prepare(pictures(RAW, 255)).unique().tolist() == [10.0]


def test_a_column_that_is_all_missing_in_training_is_finite() -> None:
    built = encoder(RAW, pictures(RAW, None, None))
    assert built.prepare(pictures(RAW, None)).isnan().all()
    torch.testing.assert_close(built.prepare(pictures(RAW, 51)), torch.full((1, 2, 12), 0.2))


def test_means_are_taken_of_a_sample_spread_over_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_positions, "SAMPLE", 2)
    # Of four rows the first and third: 0 and 100.
    fitted = ImageEncoder.fit([RAW], pictures(RAW, 0, 255, 100, 255))
    torch.testing.assert_close(fitted["mean"], torch.full((12,), 50 / 255))


def test_the_backbone_reads_what_is_there_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    honest = Pixels.forward

    def counted(self: Pixels, values: Tensor) -> Tensor:
        sizes.append(len(values))
        return honest(self, values)

    built = encoder(RAW, pictures(RAW, 0, 100))
    monkeypatch.setattr(Pixels, "forward", counted)
    monkeypatch.setattr(_positions, "AT_ONCE", 2)
    built.prepare(pictures(RAW, 0, None, 100, 100, None))
    assert sizes == [1, 2, 0]
    assert built.prepare(pictures(RAW)).shape == (0, 2, 12)


def test_pictures_too_small_for_the_backbone_are_refused() -> None:
    column = ImageColumn(name="photo", size=(16, 64), grid=(1, 1))
    try:
        with pytest.raises(
            SpecError,
            match=r"Input 'photo': backbone 'efficientnet_lite0' reads pictures of at least 32 x 32 pixels, not 16 x 64"
            r"; give it a larger `size:`, or `backbone: pixels`",
        ):
            ImageEncoder.fit([column], pictures(column, 0))
    except MissingExtraError as error:
        pytest.skip(str(error))


def test_an_unknown_backbone_is_refused() -> None:
    column = ImageColumn(name="photo", backbone="resnet", size=(32, 32), grid=(1, 1))
    with pytest.raises(UnknownKindError, match=r"There is no image backbone 'resnet'\. Allowed: efficientnet_lite0, "):
        ImageEncoder.fit([column], pictures(column, 0))


def test_a_served_encoder_needs_neither_package_nor_files_and_shares_the_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    column = ImageColumn(name="photo", size=(32, 64), grid=(1, 2))
    values = torch.randint(0, 256, (4, column.n_features), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    try:
        fitted = ImageEncoder.fit([column], values)
    except MissingExtraError as error:
        pytest.skip(str(error))
    first = ImageEncoder([ImageEncoderSpec()], [column], fitted, [torch.Generator()])
    expected = first.prepare(values)
    assert expected.shape == (4, 2, 472)
    assert {name for name, _ in first.named_buffers()} == {"mean", "spread"}
    assert not list(first.parameters())
    weight = first.backbone.on(torch.device("cpu")).stem.weight
    assert weight.data_ptr() == fitted["backbone.stem.weight"].data_ptr()
    monkeypatch.setattr("importlib.metadata.distribution", None)  # nothing is looked for
    loaded = safetensors.torch.load(safetensors.torch.save(fitted))
    served = ImageEncoder([ImageEncoderSpec()], [column], loaded, [torch.Generator()])
    assert torch.equal(served.prepare(values), expected)
    assert torch.equal(pickle.loads(pickle.dumps(first)).prepare(values), expected)
