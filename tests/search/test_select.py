"""Who serves: the never-worse rule on paired losses."""

from __future__ import annotations

import numpy as np
import torch

from mtl_bento.dataset import Dataset
from mtl_bento.training import Member, MemberSpec, Stack, TrainingSpec, advance
from mtl_bento_search import select
from mtl_bento_search.select import Candidate, choose, out_of_fold, row_losses, single_wins, validation_rows


def test_single_task_wins_only_beyond_one_standard_error_and_one_percent() -> None:
    single = np.full(100, 1.0)
    assert not single_wins(single + 0.009, single)  # certain, but under 1 %
    assert single_wins(single + 0.011, single)
    # Mean difference .05, spread .5: its standard error is .5 / sqrt(100) = .05, so just not beyond it.
    noisy = single + np.where(np.arange(100) % 2, 0.55, -0.45)
    assert not single_wins(noisy, single)
    assert single_wins(noisy + 0.001, single)


def test_rows_without_a_label_do_not_count() -> None:
    single = np.array([1.0, 1.0, np.nan, np.nan])
    shared = np.array([1.5, 1.5, np.nan, np.nan])
    assert single_wins(shared, single)
    assert not single_wins(np.full(4, np.nan), np.full(4, np.nan))


def test_row_weights_move_the_decision() -> None:
    single, shared = np.array([1.0, 1.0, 1.0]), np.array([2.0, 0.5, 0.5])
    assert not single_wins(shared, single)
    assert single_wins(shared, single, np.array([1.0, 0.0, 0.0]))


def trained(dataset: Dataset, steps: int, seed: int, spec: object) -> Candidate:
    training = TrainingSpec(batch_size=64, steps=steps, lr=5e-3)
    member = Member(MemberSpec(network=spec, training=training), seed=seed)  # type: ignore[arg-type]
    return Candidate(f"{steps} steps", (advance(Stack((member,), 0), dataset, steps).trained(0),))


def test_a_task_goes_to_its_single_task_network_where_that_is_better(dataset: Dataset, small_network: object) -> None:
    bad, good = trained(dataset, 1, 0, small_network), trained(dataset, 160, 1, small_network)
    choice = choose(bad, [[good], [bad], [bad, good], [bad]], dataset)
    assert choice.served_by == (good.name, bad.name, good.name, bad.name)
    np.testing.assert_array_equal(choice.blend, [[1, 0], [0, 1], [1, 0], [0, 1]])
    kept = choose(good, [[bad]] * 4, dataset)
    assert kept.served_by == (good.name,) * 4
    np.testing.assert_array_equal(kept.blend, np.ones((4, 1)))


def test_out_of_fold_losses_are_those_of_training(dataset: Dataset, small_network: object) -> None:
    training = TrainingSpec(batch_size=64, steps=32, lr=5e-3)
    member = Member(MemberSpec(network=small_network, training=training), seed=3)  # type: ignore[arg-type]
    stack = advance(Stack((member,), 0), dataset, 32)
    candidate = Candidate("one", (stack.trained(0),))
    losses = row_losses(out_of_fold(candidate, dataset), dataset, validation_rows(dataset))
    np.testing.assert_allclose(np.nanmean(losses, axis=1), stack.losses[0], rtol=1e-5)


def test_answers_of_several_members_are_their_mean(dataset: Dataset, small_network: object) -> None:
    one, two = (trained(dataset, 8, seed, small_network).members[0] for seed in (0, 1))
    rows = np.arange(7)
    both = select.answers([one, two], dataset, rows)
    each = [select.answers([member], dataset, rows) for member in (one, two)]
    for t in range(len(dataset.tasks)):
        torch.testing.assert_close(torch.tensor(both[t]), torch.tensor((each[0][t] + each[1][t]) / 2))
