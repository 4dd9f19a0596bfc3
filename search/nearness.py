"""Whether rows dealt at random judge as the locked test will: a row's neighbours may tell what the test has to guess.

Where a split keeps to the order of the rows, as one in time does, each row is like those before and after it. Dealt at
random, a validation row then has its neighbours among the training rows; the test has not. So the distance to the
nearest training row is compared, as in nearest neighbour distance matching (Milà et al., Methods in Ecology and
Evolution 2022), and the rows are dealt in runs of consecutive ones where that is closer to the test.

Letters: N rows, P numbers that place a row among others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from sklearn.neighbors import NearestNeighbors

from mtl_bento_search.protocol import Protocol, Split

NEARER = 0.8
"""Validation rows are too near where their distance is less than this share of that of the test rows."""
ASKED, HELD = 1_000, 20_000
"""Rows at most whose neighbours are asked for, and among which they are looked for."""
TWIN = 1e-9
"""Distance below which rows are the same."""
LEVELS = 20
"""Most frequent categories of a column that count."""


def points(blocks: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return where rows lie, [N, P], given encoded columns [N, C]: numbers by rank, categories half a step apart."""
    parts: list[np.ndarray] = []
    for values in blocks.values():
        for column in values.T:
            if values.dtype == np.int64:
                levels, counts = np.unique(column, return_counts=True)
                parts += [(column == level) / 2 for level in levels[np.argsort(-counts, kind="stable")][:LEVELS]]
            else:
                parts.append(_ranks(column))
    return np.stack(parts, 1).astype(np.float32) if parts else np.empty((0, 0), dtype=np.float32)


def as_near_as_test(protocol: Protocol, where: np.ndarray, *, seed: int) -> Protocol:
    """Return the protocol, its rows dealt in runs where random ones have nearer neighbours than the test rows have.

    Only where we dealt the rows, and the test that was given is one run of consecutive rows.

    Args:
        protocol: as dealt.
        where: of every row of the table, [N, P].
        seed: of the rows that are asked, where there are many.
    """
    if not may_be_in_runs(protocol) or not where.size:
        return protocol
    test, in_runs = protocol.test, runs(protocol)
    to_test = _distance(where, [(protocol.learned, test)], seed)
    dealt, ordered = (_distance(where, splits, seed) for splits in (protocol.splits, in_runs))
    # A row's twin is at distance 0, which is as far from any other as can be.
    off = [abs(np.log(max(distance, TWIN) / max(to_test, TWIN))) for distance in (dealt, ordered)]
    if not dealt < NEARER * to_test or not off[1] < off[0]:
        return protocol
    far = (
        "and rows dealt at random have twins among the others"
        if dealt < TWIN
        else (f"{to_test / dealt:.1f} times as far from the others as rows dealt at random")
    )
    note = (
        f"the test is one run of rows, {far}: "
        "validation rows are runs of consecutive rows too (`split: {runs: false}` deals them at random)"
    )
    return replace(protocol, splits=in_runs, notes=(*protocol.notes, note))


def may_be_in_runs(protocol: Protocol) -> bool:
    """Return whether we dealt the rows beside a test that was given and is one run of consecutive rows."""
    test = protocol.test
    return protocol.kind == "column" and protocol.dealt and len(test) > 0 and test[-1] - test[0] == len(test) - 1


def runs(protocol: Protocol) -> tuple[Split, ...]:
    """Return as many splits, each of which validates on a run of consecutive rows as long as it was."""
    rows = np.sort(np.concatenate([*protocol.splits[0]]))
    if len(protocol.splits) == 1:
        # One alone lies where it is nearest to the test, at the end, or at the start where the test is before.
        n_valid = len(protocol.splits[0][1])
        first = len(protocol.test) > 0 and protocol.test[0] < rows[0]
        valid = rows[:n_valid] if first else rows[len(rows) - n_valid :]
        return ((np.setdiff1d(rows, valid), valid),)
    parts = np.array_split(rows, len(protocol.splits))
    return tuple((np.setdiff1d(rows, part), part) for part in parts)


def _ranks(column: np.ndarray) -> np.ndarray:
    """Return ranks from 0 to 1, equal ones for equal numbers; in the middle where missing."""
    known = ~np.isnan(column)
    if not known.any():
        return np.full(len(column), 0.5)
    ordered = np.sort(column[known])
    below, up_to = np.searchsorted(ordered, column, "left"), np.searchsorted(ordered, column, "right")
    return np.where(known, (below + up_to) / (2 * len(ordered)), 0.5)


def _distance(where: np.ndarray, splits: Sequence[Split], seed: int) -> float:
    """Return the median distance of asked rows to the nearest of the others."""
    rng = np.random.default_rng([seed, 3])
    found = []
    for others, asked in splits:
        some = [
            rows if len(rows) <= most else rng.choice(rows, most, replace=False)
            for rows, most in ((others, HELD), (asked, ASKED))
        ]
        near = NearestNeighbors(n_neighbors=1).fit(where[some[0]])
        found.append(near.kneighbors(where[some[1]])[0].ravel())
    return float(np.median(np.concatenate(found)))
