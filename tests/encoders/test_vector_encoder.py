"""Vectors."""

from __future__ import annotations

import numpy as np
import torch

from mtl_bento.columns.vector import VectorColumn
from mtl_bento.encoders.vector import VectorEncoder, VectorEncoderSpec

NAN = float("nan")


def encoder(values: np.ndarray, *sizes: int) -> VectorEncoder:
    columns = [VectorColumn(name=str(c), size=size) for c, size in enumerate(sizes)]
    fitted = VectorEncoder.fit(columns, torch.from_numpy(values.astype(np.float32)))
    return VectorEncoder([VectorEncoderSpec()], columns, fitted, [torch.Generator()])


def features(built: VectorEncoder, values: list[list[float]]) -> torch.Tensor:
    return built.features(built.prepare(torch.tensor(values))[None])[0]


def test_numbers_are_standardised_and_each_column_has_a_missing_flag() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(3, 2, (200, 3))
    built = encoder(values, 2, 1)
    assert built.n_features == 3 + 2
    got = features(built, values[:5].tolist()).numpy()
    np.testing.assert_allclose(got[:, :3], ((values - values.mean(0)) / values.std(0))[:5], atol=1e-5)
    assert not got[:, 3:].any()


def test_a_missing_vector_is_zeros_and_its_columns_flag() -> None:
    built = encoder(np.array([[0.0, 1.0, 5.0], [2.0, 3.0, 6.0], [NAN, NAN, 7.0]]), 2, 1)
    assert features(built, [[NAN, NAN, 6.0]]).tolist() == [[0, 0, 0, 1, 0]]
    assert features(built, [[1.0, 2.0, NAN]]).tolist() == [[0, 0, 0, 0, 1]]


def test_a_constant_number_is_centred_and_not_divided() -> None:
    built = encoder(np.array([[4.0], [4.0]]), 1)
    assert features(built, [[4.0], [6.0]]).tolist() == [[0, 0], [2, 0]]


def test_far_numbers_are_cut_at_ten_standard_deviations() -> None:
    built = encoder(np.array([[-1.0], [1.0]]), 1)
    assert features(built, [[1e30], [-1e30], [3.0]]).tolist() == [[10, 0], [-10, 0], [3, 0]]


def test_a_vector_that_is_all_missing_in_training_is_finite() -> None:
    built = encoder(np.full((3, 2), NAN), 2)
    assert features(built, [[NAN, NAN], [1.0, 2.0]]).tolist() == [[0, 0, 1], [1, 2, 0]]


def test_large_numbers_keep_their_spread() -> None:
    # Squares of numbers beyond 1e19 are infinite in 32 bits: the feature was 0 for every row.
    built = encoder(np.array([[-1e25], [1e25]]), 1)
    np.testing.assert_allclose(features(built, [[1e25], [-1e25]])[:, 0], [1, -1], rtol=1e-5)
