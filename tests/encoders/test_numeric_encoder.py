"""Numbers: quantile-normal scores and the piecewise-linear encoding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.preprocessing import QuantileTransformer

from mtl_bento.columns.numeric import NumericColumn
from mtl_bento.encoders import numeric
from mtl_bento.encoders.numeric import CLIP, KNOTS, NumericEncoder, NumericEncoderSpec


def encoder(values: np.ndarray, **fields: int) -> NumericEncoder:
    """Return an encoder fitted on values [N, C], in float64."""
    columns = [NumericColumn(name=str(c)) for c in range(values.shape[1])]
    fitted = NumericEncoder.fit(columns, torch.from_numpy(values))
    return NumericEncoder([NumericEncoderSpec(**fields)], columns, fitted, [torch.Generator()]).double()


def scores(values: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Return the scores [B, 1] of given numbers for training values [N]."""
    return encoder(values.reshape(-1, 1)).prepare(torch.from_numpy(given).reshape(-1, 1)).numpy()


RNG = np.random.default_rng(0)
COLUMNS = {
    "normal": RNG.normal(size=3000),
    "heavy tails": RNG.standard_cauchy(3000),
    "few values": RNG.integers(0, 5, 3001).astype(float),
    "many zeros": np.where(RNG.random(3000) < 0.6, 0.0, RNG.gamma(2, 3, 3000)),
    "many at the top": np.minimum(RNG.gamma(2, 3, 3000), 8.0),
    "many in the middle": np.where(RNG.random(3000) < 0.3, RNG.normal(size=3000), 0.5),
    "fewer rows than knots": RNG.normal(size=40),
}


def halfway(knots: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Return scores by the formula of scikit-learn's QuantileTransformer: the mean of both ends of runs of knots."""
    shares = np.linspace(0, 1, len(knots))
    share = 0.5 * (np.interp(given, knots, shares) - np.interp(-given, -knots[::-1], -shares[::-1]))
    return norm.ppf(share).clip(-CLIP, CLIP)


def probes(values: np.ndarray) -> np.ndarray:
    """Return the values themselves and an even grid that reaches beyond them."""
    return np.concatenate([values, np.linspace(values.min() - 1, values.max() + 1, 500, dtype=np.float32)])


@pytest.mark.parametrize("name", COLUMNS)
def test_scores_are_halfway_between_the_ends_of_runs_of_equal_quantiles(name: str) -> None:
    values = COLUMNS[name].astype(np.float32)
    given, built = probes(values), encoder(values.reshape(-1, 1))
    expected = halfway(built.quantiles[0].numpy(), given.astype(np.float64))
    np.testing.assert_allclose(scores(values, given)[:, 0], expected, atol=1e-6)


@pytest.mark.parametrize("name", [name for name, values in COLUMNS.items() if len(values) > KNOTS])
def test_scores_between_the_extremes_equal_scikit_learns_quantile_transformer(name: str) -> None:
    values = COLUMNS[name].astype(np.float32)
    given = probes(values)
    given = given[(given > values.min()) & (given < values.max())]  # theirs sends the extremes themselves to the ends
    theirs = QuantileTransformer(n_quantiles=KNOTS, output_distribution="normal", subsample=None)
    theirs.fit(values.astype(np.float64).reshape(-1, 1))
    expected = theirs.transform(given.astype(np.float64).reshape(-1, 1)).clip(-CLIP, CLIP)
    # Their quantiles are in float64, ours in float32: in a steep place scores move by as much.
    np.testing.assert_allclose(scores(values, given), expected, atol=2e-4)


def test_the_median_scores_0_and_the_ends_are_cut_at_3() -> None:
    values = np.arange(1001, dtype=np.float32)
    assert scores(values, np.array([500, -1e6, 1e6, 0, 1000], np.float32)).ravel().tolist() == [0, -3, 3, -3, 3]


def test_a_run_of_equal_quantiles_at_the_top_reaches_its_end() -> None:
    # It lost its last knot: 1 scored as if it ended at 255 / 256.
    values = np.repeat([0.0, 1.0], [300, 700]).astype(np.float32)
    # Knot i lies at row i * 999 / 256: knots 0 to 76 are 0, knots 77 to 256 are 1.
    expected = norm.ppf([(0 + 76) / 2 / 256, (77 + 256) / 2 / 256])
    np.testing.assert_allclose(scores(values, np.array([0, 1], np.float32)).ravel(), expected)


def test_a_constant_column_scores_0() -> None:
    assert scores(np.full(20, 7, np.float32), np.array([7], np.float32)).ravel().tolist() == [0]


def test_bins_are_the_piecewise_linear_encoding_of_the_scores() -> None:
    values = RNG.normal(size=(500, 1)).astype(np.float32)
    built = encoder(values, n_bins=4)
    prepared = built.prepare(torch.from_numpy(values))
    features = built.features(prepared[None])[0].numpy()
    # Quartiles of normal scores; the outer cuts lie where scores are cut.
    cuts = np.array([-3, -0.6744897501960817, 0, 0.6744897501960817, 3])
    x = prepared.numpy()
    expected = np.clip((x - cuts[:-1]) / (cuts[1:] - cuts[:-1]), 0, 1)
    np.testing.assert_allclose(features[:, :1], x)
    np.testing.assert_allclose(features[:, 1:], expected, atol=1e-5)


def test_a_column_of_two_values_is_its_score_alone_and_one_of_three_has_two_bins() -> None:
    # Fifty zeros and fifty ones have a median of 0.5, which made two bins for it.
    two = np.tile([0.0, 1.0], 50).astype(np.float32)
    three = np.resize([0.0, 1.0, 5.0], 100).astype(np.float32)
    assert encoder(two[:, None]).n_features == 1
    assert encoder(three[:, None]).n_features == 1 + 2
    assert encoder(np.stack([two, three], 1)).n_features == 1 + 1 + 2


def test_a_missing_cell_is_all_zeros_and_a_flag_where_training_had_missing_cells() -> None:
    values = RNG.normal(size=(100, 2)).astype(np.float32)
    values[::10, 1] = np.nan
    built = encoder(values, n_bins=2)
    assert built.n_features == 2 + 2 * 2 + 1
    prepared = built.prepare(torch.tensor([[float("nan"), float("nan")], [0.0, 0.0]]))
    missing, known = built.features(prepared[None])[0]
    assert missing.tolist() == [0] * 6 + [1]
    assert known[-1] == 0
    assert known[:6].abs().sum() > 0


def test_a_column_that_is_all_missing_in_training_is_a_constant_and_a_flag() -> None:
    built = encoder(np.full((10, 1), np.nan, np.float32))
    assert built.n_features == 2
    features = built.features(built.prepare(torch.tensor([[float("nan")], [5.0], [-5.0]]))[None])[0]
    assert features[0].tolist() == [0, 1]
    assert torch.isfinite(features).all()


def test_the_largest_numbers_that_32_bits_hold_are_scored() -> None:
    # Their difference is beyond 32 bits: it became inf, and the score NaN, which counts as missing.
    largest = float(np.finfo(np.float32).max)
    values = np.linspace(-largest, largest, 300).astype(np.float32)
    columns = [NumericColumn(name="x")]
    fitted = NumericEncoder.fit(columns, torch.from_numpy(values[:, None]))
    built = NumericEncoder([NumericEncoderSpec()], columns, fitted, [torch.Generator()])  # float32, as it serves
    given = torch.tensor([[-largest], [0.0], [largest]])
    np.testing.assert_allclose(built.prepare(given).ravel(), [-3, 0, 3], atol=1e-6)


def test_serving_in_float32_scores_as_training_in_float64() -> None:
    values = RNG.normal(size=(400, 3)).astype(np.float32)
    wide = encoder(values)
    narrow = encoder(values).float()
    given = torch.from_numpy(RNG.normal(size=(50, 3)).astype(np.float32))
    torch.testing.assert_close(narrow.prepare(given).double(), wide.prepare(given), atol=1e-5, rtol=0)


def test_rows_prepared_in_parts_are_prepared_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    values = RNG.normal(size=(10, 3)).astype(np.float32)
    built, given = encoder(values), torch.from_numpy(values)
    whole = built.prepare(given)
    monkeypatch.setattr(numeric, "CHUNK", 4)
    assert torch.equal(built.prepare(given), whole)
    assert built.prepare(given[:0]).shape == (0, 3)
