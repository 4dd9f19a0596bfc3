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
CHUNK = 4096
"""Rows that are prepared at once: the numbers on the way take twenty times the memory of the scores."""


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
    knots: Tensor

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
        # In float64, as the difference of two float32 numbers may be beyond float32.
        self.register_buffer("knots", self.quantiles.double(), persistent=False)
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
        return torch.cat([self._scores(rows) for rows in values.split(CHUNK)])

    def _scores(self, values: Tensor) -> Tensor:
        dtype, knots = self.low.dtype, self.knots.double()
        x = values.to(self.quantiles.dtype).double().T.contiguous()  # [C, B]
        # Halfway between the two ends of a run of equal quantiles, as scikit-learn's QuantileTransformer does.
        score = torch.special.ndtri(_halfway(knots, x)).clamp(-CLIP, CLIP).to(dtype)
        return torch.where(x.isnan(), torch.nan, score).T.contiguous()

    def unfold(self, prepared: Tensor) -> tuple[Tensor, ...]:
        """Scores [..., B, C] -> [..., B, F]: scores, bins, missing flags."""
        bins = (prepared.index_select(-1, self.column) - self.low) * self.slope
        parts = [prepared.nan_to_num(0.0), bins.clamp(0, 1).nan_to_num(0.0)]
        if len(self.flagged):
            parts.append(prepared.index_select(-1, self.flagged).isnan().to(prepared.dtype))
        return (torch.cat(parts, -1),)

    def forward(self, *unfolded: Tensor) -> Tensor:
        """Return the features as they are: nothing here is learned by gradient."""
        return unfolded[0]


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


def _halfway(knots: Tensor, x: Tensor) -> Tensor:
    """Return the share of training rows below x, halfway into a run of equal knots: [C, Q], [C, B] -> [C, B], float64.

    By linear interpolation, once to the left and once to the right of such a run.
    """
    last = knots.shape[1] - 1
    filled = x.nan_to_num(0.0)
    found = torch.stack([torch.searchsorted(knots, filled, right=right) for right in (False, True)])  # [2, C, B]
    upper = found.clamp(1, last)
    both = knots.expand(2, -1, -1)
    lo, hi = both.gather(2, upper - 1), both.gather(2, upper)
    part = ((x - lo) / (hi - lo).clamp_min(torch.finfo(x.dtype).tiny)).clamp(0, 1)
    # Past the last knot: also at the upper end of a run of equal knots, where lo == hi.
    shares: Tensor = torch.where(found > last, 1.0, (upper - 1 + part) / last)
    return (shares[0] + shares[1]) / 2


def _edges(quantiles: Tensor, n_bins: int) -> list[list[float]]:
    """Return the cuts between bins of each column, in normal scores; fewer than three cuts are none."""
    scores = _scores_of_knots(quantiles)
    places = torch.linspace(0, scores.shape[1] - 1, n_bins + 1).round().long()
    cuts = [sorted(set(row)) for row in scores[:, places].tolist()]
    return [row if len(row) > 2 else [] for row in cuts]


def _scores_of_knots(quantiles: Tensor) -> Tensor:
    """Return the normal scores [C, Q] of the knots themselves."""
    scores: Tensor = torch.special.ndtri(_halfway(quantiles.double(), quantiles.double())).clamp(-CLIP, CLIP)
    return scores.float()
