"""Numbers: quantile-normal scores, then a piecewise-linear encoding (Gorishniy et al., NeurIPS 2022).

Ours differs from the paper: bins are cut on the normal scores instead of the raw values (the same cuts, gentler slopes
in the tails), the score itself is a feature too, a column with two values is the score alone, and a missing cell is all
zeros and a flag of its own where training had missing cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from mtl_bento.columns._base import Column
from mtl_bento.encoders._base import ENCODERS, Encoder, EncoderSpec
from mtl_bento.spec import MustMatch

KNOTS = 257
"""Quantiles kept of each column; finer ones changed nothing measurable."""
FEW = 16
"""Different values up to which a column's knots are its values themselves, not points between them."""
CLIP = 3.0
"""Normal scores are cut at this many standard deviations."""


class NumericEncoderSpec(EncoderSpec):
    """Numbers as normal scores and piecewise-linear bins."""

    kind: Literal["numeric"] = "numeric"
    n_bins: Annotated[int, Field(ge=1, le=64), MustMatch] = 12
    """Bins of each column; a column of fewer different values gets fewer. It multiplies the first layer's cost."""


@ENCODERS.register(NumericEncoderSpec)
class NumericEncoder(Encoder[NumericEncoderSpec]):
    """Scores, bins and missing flags of numeric columns.

    Letters: B rows, C columns, Q knots, F features.
    """

    quantiles: Tensor
    had_missing: Tensor
    column: Tensor
    low: Tensor
    slope: Tensor
    flagged: Tensor

    def __init__(
        self,
        specs: Sequence[NumericEncoderSpec],
        columns: Sequence[Column],
        fitted: dict[str, Tensor],
        generators: Sequence[Generator],
    ) -> None:
        super().__init__(specs, columns, fitted, generators)
        edges = _edges(self.quantiles, specs[0].n_bins)
        pairs = [(c, lo, hi) for c, cuts in enumerate(edges) for lo, hi in pairwise(cuts)]
        self.register_buffer("column", torch.tensor([c for c, _, _ in pairs], dtype=torch.long), persistent=False)
        self.register_buffer("low", torch.tensor([lo for _, lo, _ in pairs]), persistent=False)
        self.register_buffer("slope", torch.tensor([1 / (hi - lo) for _, lo, hi in pairs]), persistent=False)
        self.register_buffer("flagged", self.had_missing.nonzero().flatten(), persistent=False)
        self.n_features = len(edges) + len(pairs) + len(self.flagged)

    @classmethod
    def fit(cls, columns: Sequence[Column], values: Tensor) -> dict[str, Tensor]:
        """values [N, C] with NaN where missing -> quantiles [C, Q] and had_missing [C]."""
        del columns
        known = [column[~column.isnan()] for column in values.double().T]
        return {
            "quantiles": torch.stack([_knots(column) for column in known]),
            "had_missing": values.isnan().any(0),
        }

    def prepare(self, values: Tensor) -> Tensor:
        """Raw values [B, C] -> normal scores [B, C] in [-3, 3], NaN where missing."""
        dtype = self.low.dtype
        x = values.to(self.quantiles.dtype).T.contiguous()  # [C, B]
        # Halfway between the two ends of a run of equal quantiles, as scikit-learn's QuantileTransformer does.
        share = _halfway(self.quantiles, x)
        score = torch.special.ndtri(share).clamp(-CLIP, CLIP).to(dtype)
        return torch.where(x.isnan(), torch.nan, score).T.contiguous()

    def forward(self, prepared: Tensor) -> Tensor:
        """Scores [K or 1, B, C] -> [K or 1, B, F]: scores, bins, missing flags."""
        missing = prepared.isnan()
        bins = (prepared[..., self.column] - self.low) * self.slope
        parts = [prepared.nan_to_num(0.0), bins.clamp(0, 1).nan_to_num(0.0)]
        if len(self.flagged):
            parts.append(missing[..., self.flagged].to(prepared.dtype))
        return torch.cat(parts, -1)


def _knots(known: Tensor) -> Tensor:
    """Return the quantiles [Q] of the known values of a column; zeros where there is none."""
    if not len(known):
        return torch.zeros(KNOTS)
    # Not torch.quantile: it refuses more than 16 million values.
    ordered = known.sort().values
    place = torch.linspace(0, len(ordered) - 1, KNOTS, dtype=torch.float64)
    low = place.floor().long()
    # Between two of few values lies nothing: a knot there would be a cut between bins.
    high = low if len(ordered.unique_consecutive()) <= FEW else place.ceil().long()
    knots: Tensor = ordered[low] + (ordered[high] - ordered[low]) * (place - low)
    return knots.float()


def _halfway(quantiles: Tensor, x: Tensor) -> Tensor:
    """Return the share of training rows below x, halfway into a run of equal quantiles; [C, B] in float64."""
    # In float64, as the difference of two float32 numbers may be beyond float32.
    quantiles, x = quantiles.double(), x.double()
    return (_share(quantiles, x, right=False) + _share(quantiles, x, right=True)) / 2


def _share(quantiles: Tensor, x: Tensor, *, right: bool) -> Tensor:
    """Return the share of training rows below x by linear interpolation: quantiles [C, Q], x [C, B] -> [C, B]."""
    last = quantiles.shape[1] - 1
    found = torch.searchsorted(quantiles, x.nan_to_num(0.0), right=right)
    upper = found.clamp(1, last)
    lo, hi = quantiles.gather(1, upper - 1), quantiles.gather(1, upper)
    part = ((x - lo) / (hi - lo).clamp_min(torch.finfo(x.dtype).tiny)).clamp(0, 1)
    # Past the last knot: also at the upper end of a run of equal quantiles, where lo == hi.
    return torch.where(found > last, 1.0, (upper - 1 + part) / last)


def _edges(quantiles: Tensor, n_bins: int) -> list[list[float]]:
    """Return the cuts between bins of each column, in normal scores; fewer than three cuts are none."""
    scores = _scores_of_knots(quantiles)
    places = torch.linspace(0, scores.shape[1] - 1, n_bins + 1).round().long()
    cuts = [sorted(set(row)) for row in scores[:, places].tolist()]
    return [row if len(row) > 2 else [] for row in cuts]


def _scores_of_knots(quantiles: Tensor) -> Tensor:
    """Return the normal scores [C, Q] of the knots themselves."""
    scores: Tensor = torch.special.ndtri(_halfway(quantiles, quantiles)).clamp(-CLIP, CLIP)
    return scores.float()
