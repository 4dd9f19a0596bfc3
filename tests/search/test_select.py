"""Who serves: the choice over finalists, and what members answer on rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mtl_bento.dataset import Dataset
from mtl_bento.errors import RunError
from mtl_bento.forest import Forest
from mtl_bento.training import Member, MemberSpec, Stack, TrainingSpec, advance
from mtl_bento_search import select
from mtl_bento_search.finals import losses_alone
from mtl_bento_search.select import (
    Answers,
    Candidate,
    Choice,
    Finalist,
    best_of,
    choose,
    mean_loss,
    out_of_fold,
    task_losses,
    validation_rows,
)


def trained(dataset: Dataset, steps: int, seed: int, spec: object, kind: str = "shared") -> Candidate:
    training = TrainingSpec(batch_size=64, steps=steps, lr=5e-3)
    member = Member(MemberSpec(network=spec, training=training), seed=seed)  # type: ignore[arg-type]
    return Candidate(f"{kind} {steps} steps", kind, (advance(Stack((member,), 0), dataset, steps).trained(0),))


def finalist(candidate: Candidate, dataset: Dataset, tasks: tuple[int, ...] = (0, 1, 2, 3)) -> Finalist:
    held = out_of_fold(candidate.networks, dataset)
    return Finalist(candidate, tuple(a if t in tasks else None for t, a in enumerate(held)))


def test_a_task_goes_to_its_single_task_network_where_that_is_clearly_better(
    dataset: Dataset, small_network: object
) -> None:
    bad = trained(dataset, 1, 0, small_network)
    good = trained(dataset, 160, 1, small_network, kind="single")
    finalists = [finalist(bad, dataset), finalist(good, dataset, (0, 2))]
    choice = choose(finalists, dataset, most=1)
    assert [choice.served_by(t) for t in range(4)] == [{c.name: 1.0} for c in (good, bad, good, bad)]
    np.testing.assert_array_equal(choice.blend, [[0, 1], [1, 0], [0, 1], [1, 0]])


def test_what_serves_no_task_is_left_out(dataset: Dataset, small_network: object) -> None:
    bad, good = trained(dataset, 1, 0, small_network), trained(dataset, 160, 1, small_network, kind="single")
    choice = choose([finalist(bad, dataset), finalist(good, dataset)], dataset, most=1)
    assert [c.name for c in choice.candidates] == [good.name]
    assert choose([finalist(bad, dataset), finalist(good, dataset)], dataset, most=1, kinds=("shared",)).candidates == (
        bad,
    )


def test_the_best_of_a_kind_is_that_of_the_lowest_validation_loss(dataset: Dataset, small_network: object) -> None:
    bad, good = trained(dataset, 1, 0, small_network), trained(dataset, 160, 1, small_network)
    finalists = [finalist(bad, dataset), finalist(good, dataset)]
    found = best_of(finalists, dataset, 0, "shared")
    assert found is not None
    assert found.candidate == good
    assert best_of(finalists, dataset, 0, "trees") is None


def test_losses_alone_keep_a_row_for_a_task_that_no_network_answers_alone(
    dataset: Dataset, small_network: object
) -> None:
    single = finalist(trained(dataset, 8, 0, small_network, kind="single"), dataset, (0, 2))
    diverged = Finalist(single.candidate, (None, None, np.full((1, 1), np.nan), np.full((1, 1), np.inf)))
    losses = losses_alone([diverged, single], dataset)
    rows = validation_rows(dataset)
    assert losses.shape == (4, len(rows))
    for t in (0, 2):
        answered = single.answers[t]
        assert answered is not None
        np.testing.assert_array_equal(losses[t], task_losses(answered, dataset, t, rows))
    assert np.isnan(losses[[1, 3]]).all()
    assert best_of([diverged], dataset, 2, "single") is None


def test_a_task_that_nothing_answers_with_numbers_is_one_line(dataset: Dataset, small_network: object) -> None:
    held = finalist(trained(dataset, 1, 0, small_network), dataset)
    diverged = Finalist(held.candidate, tuple(np.full_like(a, np.nan) for a in held.answers if a is not None))
    with pytest.raises(RunError, match=r"^Nothing that may be served answers target '.*' with finite numbers; allow"):
        choose([diverged], dataset, most=1)


def forest() -> Forest:
    return Forest("y", {"bias": torch.zeros(1, dtype=torch.float64)})


def test_members_of_a_candidate_share_alike_and_shares_are_mixed() -> None:
    pair = Candidate("pair", "trees", (forest(), forest()), ("y",))
    one = Candidate("one", "trees", (forest(),), ("y",))
    choice = Choice((pair, one), np.array([[0.25, 0.75]]))
    np.testing.assert_array_equal(choice.blend, [[0.125, 0.125, 0.75]])
    assert choice.served_by(0) == {"one": 0.75, "pair": 0.25}  # the largest first
    answered: list[Answers] = [(np.array([[4.0]]),), (np.array([[8.0]]),)]
    np.testing.assert_array_equal(choice.mixed(answered, 0), [[7.0]])


def test_rows_without_a_label_do_not_count_and_weights_do() -> None:
    losses = np.array([1.0, 3.0, np.nan])
    assert mean_loss(losses, None) == 2
    assert mean_loss(losses, np.array([3.0, 1.0, 5.0])) == 1.5
    assert mean_loss(np.full(2, np.nan), None) == np.inf


def test_out_of_fold_losses_are_those_of_training(dataset: Dataset, small_network: object) -> None:
    training = TrainingSpec(batch_size=64, steps=32, lr=5e-3)
    member = Member(MemberSpec(network=small_network, training=training), seed=3)  # type: ignore[arg-type]
    stack = advance(Stack((member,), 0), dataset, 32)
    rows = validation_rows(dataset)
    held = out_of_fold([stack.trained(0)], dataset)
    losses = [np.nanmean(task_losses(answered, dataset, t, rows)) for t, answered in enumerate(held)]
    np.testing.assert_allclose(losses, stack.losses[0], rtol=1e-5)


def test_answers_of_several_members_are_their_mean(dataset: Dataset, small_network: object) -> None:
    one, two = (trained(dataset, 8, seed, small_network).networks[0] for seed in (0, 1))
    rows = np.arange(7)
    both = select.answers([one, two], dataset, rows)
    each = [select.answers([member], dataset, rows) for member in (one, two)]
    for t in range(len(dataset.tasks)):
        torch.testing.assert_close(torch.tensor(both[t]), torch.tensor((each[0][t] + each[1][t]) / 2))
