"""Categories: one-hot features and embeddings."""

from __future__ import annotations

import numpy as np
import torch
from torch import Generator, nn

from mtl_bento.columns.categorical import CategoricalColumn
from mtl_bento.encoders.categorical import CategoricalEncoder, CategoricalEncoderSpec
from mtl_bento.testing import sample_dataset, sample_members
from mtl_bento.training import Stack, advance


def encoder(codes: list[list[int]], *sizes: int, members: int = 1, **fields: int) -> CategoricalEncoder:
    """Return an encoder of columns with `sizes` levels, fitted on codes [N, C]."""
    columns = [CategoricalColumn(name=str(c), levels=tuple(f"l{i}" for i in range(n))) for c, n in enumerate(sizes)]
    fitted = CategoricalEncoder.fit(columns, torch.tensor(codes))
    generators = [Generator().manual_seed(seed) for seed in range(members)]
    return CategoricalEncoder([CategoricalEncoderSpec(**fields)] * members, columns, fitted, generators)


def features(built: CategoricalEncoder, codes: list[list[int]]) -> torch.Tensor:
    return built.features(built.prepare(torch.tensor(codes))[None])


def test_a_small_column_has_a_feature_for_each_code_that_training_saw() -> None:
    # Codes: -1 missing, 0 and 1 the levels, 2 other. Training saw missing, 0 and 1.
    built = encoder([[-1], [0], [1]], 2)
    assert built.n_features == 3
    assert features(built, [[-1], [0], [1], [2]])[0].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]


def test_a_column_of_two_codes_is_one_feature() -> None:
    built = encoder([[0], [1]], 2)
    assert built.n_features == 1
    assert features(built, [[0], [1]])[0].tolist() == [[0], [1]]


def test_columns_stand_side_by_side_small_ones_first() -> None:
    built = encoder([[0, 0, 0], [1, 1, 1], [2, 2, 2]], 3, 20, 3, embedding_width=4)
    assert built.n_features == 3 + 3 + 4
    hot = features(built, [[2, 5, 0]])[0, 0, :6]
    assert hot.tolist() == [0, 0, 1, 1, 0, 0]


def test_a_large_column_is_looked_up_in_each_members_own_table() -> None:
    codes = [[c, (c * 3) % 15] for c in range(15)]
    built = encoder(codes, 15, 15, members=2, embedding_width=3)
    assert built.table.shape == (2, 2 * (15 + 2), 3)
    given = [[4, 9], [0, 14]]
    for k in range(2):
        # Codes count from "missing"; the second column's rows come after the first's 17.
        first = nn.functional.embedding(torch.tensor([5, 1]), built.table[k])
        second = nn.functional.embedding(torch.tensor([17 + 10, 17 + 15]), built.table[k])
        assert torch.equal(features(built, given)[k], torch.cat([first, second], 1))
    assert not torch.equal(built.table[0], built.table[1])


def test_codes_that_training_never_saw_begin_at_zero() -> None:
    built = encoder([[c] for c in range(13)], 20, embedding_width=2)
    zero = [not bool(row.any()) for row in built.table[0]]
    assert zero == [True, *[False] * 13, *[True] * 7, True]  # missing, levels 0 to 12, levels 13 to 19, other


def test_codes_that_training_never_saw_stay_at_zero() -> None:
    dataset = sample_dataset()
    (member,) = sample_members(dataset, steps=8)
    block = list(dataset.inputs.columns).index("categorical")
    state = advance(Stack((member,), seed=0), dataset, 8).states[0].tensors["data"][f"encoders.{block}.table"]
    assert state.shape == (15 + 2, 8)
    assert not state[0].any()
    assert not state[-1].any()
    assert state[1:-1].any(1).all()


def test_columns_of_at_most_so_many_levels_are_one_hot() -> None:
    rows = [[c % 12, c % 13] for c in range(26)]
    built = encoder(rows, 12, 13)
    assert built.hot_column.unique().tolist() == [0]
    assert built.embedded.tolist() == [1]


def test_embeddings_are_not_decayed() -> None:
    assert encoder([[c] for c in range(13)], 13).undecayed == {"table"}


def test_a_column_without_any_level_is_its_seen_codes() -> None:
    built = encoder([[-1], [0]], 0)  # 0 is "other" where there is no level
    assert features(built, [[-1], [0]])[0].tolist() == [[0], [1]]
    assert features(built, np.zeros((0, 1), dtype=int).tolist() or [[0]]).shape[-1] == 1
