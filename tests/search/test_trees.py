"""Tuning trees for each task: what is judged on what, who answered which row, what is kept."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow as pa
import pytest
import torch

from mtl_bento.errors import MissingExtraError, RunError
from mtl_bento_search import trees as trees_module
from mtl_bento_search.config import Config
from mtl_bento_search.finish import tree_notes
from mtl_bento_search.problem import Problem, make_problem
from mtl_bento_search.trees import BRISK, DEFAULTS, Trees, load, save, tune

pytest.importorskip("lightgbm")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    monkeypatch.setattr(trees_module, "MOST_TREES", 60)


def frame(n: int = 240, *, seed: int = 0, **columns: Any) -> pa.Table:
    """Return a table whose targets follow from a number and a category, with missing cells and labels."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=n), rng.choice(["x", "y", "z"], n)
    signal = a + 2 * (b == "y")
    return pa.table(
        {
            "a": pa.array(a, mask=rng.random(n) < 0.1),
            "b": pa.array(b, mask=rng.random(n) < 0.1),
            "yes": pa.array((signal + rng.normal(0, 0.3, n) > 0.5).astype(int), mask=rng.random(n) < 0.2),
            "kind": np.array(["low", "mid", "top"])[np.digitize(signal, [0.0, 1.5])],
            "number": 100 + 10 * signal + rng.normal(0, 1, n),
            **columns,
        }
    )


def problem(table: pa.Table, targets: dict[str, Any] | None = None, **config: Any) -> Problem:
    given = {name: {} for name in ("yes", "kind", "number")} if targets is None else targets
    return make_problem(Config.model_validate({"data": "t", "targets": given, **config}), data=table)


def features(made: Problem) -> torch.Tensor:
    blocks = {block: torch.from_numpy(values) for block, values in made.schema.encode(made.table).items()}
    return made.dataset.inputs.features(blocks, made.dataset.blocks)


def tuned(made: Problem, n_trials: int = 2, **options: Any) -> tuple[Trees | None, ...]:
    return tune(made, features=features(made), n_trials=n_trials, **options)


def judged(made: Problem, t: int, margins: np.ndarray, rows: np.ndarray) -> float:
    """Return the mean loss of margins [B, O] on rows [B], in units of the trivial one."""
    task, targets = made.tasks[t], made.dataset.targets[t][torch.from_numpy(rows)]
    losses = task.answer_losses(task.activate(torch.from_numpy(margins)), targets)
    return float(losses.double().nanmean() / made.dataset.trivial[t])


@pytest.fixture(scope="module")
def folds() -> tuple[Problem, tuple[Trees, ...]]:
    made = problem(frame())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trees_module, "MOST_TREES", 60)
        found = tuned(made)
    assert all(trees is not None for trees in found)
    return made, tuple(trees for trees in found if trees is not None)


def test_each_validation_row_is_answered_by_the_forest_that_did_not_learn_it(
    folds: tuple[Problem, tuple[Trees, ...]],
) -> None:
    made, found = folds
    rows = features(made)
    for trees in found:
        assert len(trees.forests) == len(made.protocol.splits) == 5
        for forest, (_, valid) in zip(trees.forests, made.protocol.splits, strict=True):
            np.testing.assert_allclose(trees.margins[valid], forest.margins(rows[valid]).numpy(), rtol=0, atol=1e-6)
        test = made.protocol.test
        mean = torch.stack([forest.margins(rows[test]) for forest in trees.forests]).mean(0)
        np.testing.assert_allclose(trees.margins[test], mean.numpy(), atol=1e-6)


def test_the_loss_is_that_of_the_margins_on_the_validation_rows(folds: tuple[Problem, tuple[Trees, ...]]) -> None:
    made, found = folds
    valid = np.concatenate([rows for _, rows in made.protocol.splits])
    for t, trees in enumerate(found):
        assert trees.loss == pytest.approx(judged(made, t, trees.margins[valid], valid), rel=1e-4)
        assert trees.loss < 0.6  # the targets follow from the inputs; 1 is a constant's
        assert judged(made, t, trees.margins[made.protocol.test], made.protocol.test) < 0.7


def test_a_forest_learned_the_training_rows_of_its_own_split(folds: tuple[Problem, tuple[Trees, ...]]) -> None:
    # The same parameters, told to LightGBM directly, on all training rows of the second split.
    import lightgbm

    made, found = folds
    trees, x = found[2], features(made).numpy()
    train = made.protocol.splits[1][0]
    labels = made.dataset.targets[2].numpy().astype(np.float64)[train]
    params = {**trees.params, "objective": "regression", "boost_from_average": False, "verbosity": -1, "num_threads": 1,
              "bagging_freq": int(trees.params["bagging_fraction"] < 1), "deterministic": True, "force_row_wise": True,
              "seed": trees_module.stable_seed(0, "trees", "number") % 2**31, "feature_pre_filter": False}  # fmt: skip
    rounds = params.pop("rounds")
    start = np.full(len(train), labels.mean())
    booster = lightgbm.Booster(params, lightgbm.Dataset(x[train], labels, init_score=start, categorical_feature=[1]))
    for _ in range(rounds):
        booster.update()
    margins = trees.forests[1].margins(torch.from_numpy(x))[:, 0]
    np.testing.assert_allclose(margins.numpy(), booster.predict(x) + labels.mean(), atol=1e-6)


def test_two_runs_of_as_many_trials_give_the_same_forests() -> None:
    made = problem(frame(120), {"yes": {}, "number": {}})
    first, second = tuned(made, 3), tuned(made, 3, n_workers=2)
    for one, other in zip(first, second, strict=True):
        assert one is not None
        assert other is not None
        assert (one.params, one.loss, one.n_trials) == (other.params, other.loss, 3)
        np.testing.assert_array_equal(one.margins, other.margins)
        for mine, its in zip(one.forests, other.forests, strict=True):
            assert all(torch.equal(tensor, its.tensors[name]) for name, tensor in mine.tensors.items())


def test_lightgbms_defaults_are_the_first_trial_but_where_rows_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    made = problem(frame(120), {"yes": {}})
    (trees,) = tuned(made, 1)
    assert trees is not None
    assert {name: trees.params[name] for name in BRISK} == BRISK
    monkeypatch.setattr(trees_module, "FEW_ROWS", 0)
    (trees,) = tuned(made, 1)
    assert trees is not None
    assert {name: trees.params[name] for name in DEFAULTS} == DEFAULTS


def test_trees_of_a_wide_table_look_at_fewer_inputs_each(monkeypatch: pytest.MonkeyPatch) -> None:
    made = problem(
        frame(120, **{f"x{i}": np.random.default_rng(i).normal(size=120) for i in range(254)}), {"number": {}}
    )
    (trees,) = tuned(made, 1)
    assert trees is not None
    assert trees.params["feature_fraction"] == 64 / features(made).shape[1]


def test_more_trials_are_never_worse_on_the_boosters_that_were_judged() -> None:
    losses: list[float] = []
    tuned(problem(frame(120), {"number": {}}), 4, progress=lambda task, n, loss: losses.append(loss))
    assert len(losses) == 4
    assert losses == sorted(losses, reverse=True)


def test_training_rows_of_a_holdout_are_answered_by_boosters_that_did_not_learn_them() -> None:
    # Labels without any pattern: whoever learned a row answers it better than chance, nobody else does.
    rng = np.random.default_rng(1)
    table = frame(400, noise=rng.normal(size=400), more=rng.normal(size=400))
    made = problem(table, {"noise": {}}, split={"folds": 0}, ignore=["yes", "kind", "number"])
    (train, valid), *others = made.protocol.splits
    assert not others
    (trees,) = tuned(made)
    assert trees is not None
    learned = trees.forests[0].margins(features(made)).numpy()
    assert judged(made, 0, learned[train], train) < judged(made, 0, trees.margins[train], train)
    assert judged(made, 0, trees.margins[train], train) > 0.97
    np.testing.assert_allclose(trees.margins[valid], learned[valid], rtol=0, atol=1e-6)


def test_a_holdouts_margins_on_training_rows_are_as_good_as_on_others() -> None:
    made = problem(frame(400), {"number": {}}, split={"folds": 0})
    ((train, valid),) = made.protocol.splits
    (trees,) = tuned(made)
    assert trees is not None
    crossed, fresh = (judged(made, 0, trees.margins[rows], rows) for rows in (train, valid))
    assert crossed == pytest.approx(fresh, rel=0.5)
    assert crossed < 0.4


def test_a_task_with_three_labels_has_no_trees_and_the_others_have() -> None:
    few: list[float | None] = [None] * 400
    rng = np.random.default_rng(0)
    for i in rng.permutation(400)[:40]:
        few[i] = float(i)
    made = problem(frame(400, few=pa.array(few, pa.float64())), {"few": {}, "number": {}}, split={"folds": 2})
    scarce = int((~made.dataset.targets[0][made.protocol.splits[0][0]].isnan()).sum())
    assert scarce < 20  # two folds of 32 labels that are not the test's
    none, trees = tuned(made, 1)
    assert none is None
    assert trees is not None


def test_a_label_that_a_fold_lacks_leaves_answers_finite() -> None:
    # Three rows of the third label in five folds: some boosters never see it.
    labels = np.array(["a", "b"] * 100, dtype=object)
    labels[[10, 90, 170]] = "c"
    made = problem(frame(200, kind=pa.array(labels)), {"kind": {}})
    (trees,) = tuned(made, 1)
    assert trees is not None
    assert np.isfinite(trees.margins).all()
    assert trees.margins.max() - trees.margins.min() < 20  # LightGBM's own start would be 34 below


def test_row_weights_and_class_weights_are_heeded() -> None:
    # Labels are random, so that trees answer the share of yes: half, but 3 to 1 by weight.
    rng = np.random.default_rng(0)
    yes = rng.permutation(np.arange(400) % 2)
    table = frame(400, yes=yes, w=np.where(yes == 1, 3.0, 1.0))
    by_row = problem(table, {"yes": {}}, sample_weight="w", ignore=["kind", "number"])
    by_class = problem(table, {"yes": {"class_weight": {"1": 3.0}}}, ignore=["kind", "number", "w"])
    for made in (by_row, by_class):
        (trees,) = tuned(made)
        assert trees is not None
        assert trees.margins.mean() == pytest.approx(np.log(3), abs=0.25)


def test_rows_without_weight_teach_nothing() -> None:
    table = frame(300)
    number = table["number"].to_numpy().copy()
    weight = np.ones(300)
    weight[::3] = 0
    spoiled = number.copy()
    spoiled[::3] = number.mean()
    table = table.append_column("split", pa.array((["train"] * 3 + ["val"] + ["test"]) * 60))
    made = [
        problem(table.set_column(4, "number", pa.array(values)).append_column("w", pa.array(weight)),
                {"number": {}}, sample_weight="w", ignore=["yes", "kind"])
        for values in (number, spoiled)
    ]  # fmt: skip
    one, other = (tuned(held, 1)[0] for held in made)
    assert one is not None
    assert other is not None
    back = [m.tasks[0].scored(trees.margins) for m, trees in zip(made, (one, other), strict=True)]
    rows = made[0].protocol.test
    # The labels are standardised with other numbers; in their own unit the answers are the same.
    np.testing.assert_allclose(back[0][rows], back[1][rows], rtol=0.02)


def test_tasks_that_answer_by_position_have_no_trees() -> None:
    boxes = [[0.5, 0.5, 0.1 + i / 1000, 0.1] for i in range(120)]
    made = problem(frame(120, car=boxes), {"car": {"kind": "box"}, "number": {}})
    car, number = tuned(made, 1)
    assert car is None
    assert number is not None


class Hours:
    """A clock that stands still but for rounds of boosters, each of which takes a tenth of a second."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def hours(monkeypatch: pytest.MonkeyPatch) -> Hours:
    import lightgbm

    clock, update = Hours(), lightgbm.Booster.update

    def slow(booster: Any) -> Any:
        clock.now += 0.1
        return update(booster)

    monkeypatch.setattr(trees_module, "time", clock)
    monkeypatch.setattr(lightgbm.Booster, "update", slow)
    return clock


@pytest.mark.parametrize("folds", [5, 0])
@pytest.mark.parametrize("seconds", [12.0, 30.0, 90.0])
def test_tuning_keeps_to_its_seconds_and_shares_them(hours: Hours, seconds: float, folds: int) -> None:
    # Five boosters of 60 rounds, and again on all rows, are 63 s a task.
    made = problem(frame(120), split={"folds": folds})
    found = tune(made, features=features(made), seconds=seconds)
    assert 0.5 * seconds < hours.now <= 1.2 * seconds
    held = [trees for trees in found if trees is not None]
    assert len(held) == 3
    assert all(trees.loss < 1 for trees in held)
    for t, trees in enumerate(held):
        valid = np.concatenate([rows for _, rows in made.protocol.splits])
        assert trees.loss == pytest.approx(judged(made, t, trees.margins[valid], valid), rel=1e-4)


def test_a_task_without_time_has_no_trees(hours: Hours) -> None:
    made = problem(frame(120))
    assert tune(made, features=features(made), seconds=0.0) == (None, None, None)


def test_where_training_again_takes_too_long_the_boosters_that_were_judged_stay() -> None:
    made = problem(frame(120), {"number": {}})
    boosted = trees_module._boosted(made, 0)
    assert boosted is not None
    study = trees_module._Study(made, 0, boosted, features(made).numpy(), seed=0, threads=1)
    assert study.trial(lambda: False)
    trees = study.finish(-np.inf)
    assert trees.loss == pytest.approx(study.loss)
    assert trees.params["rounds"] == trees.forests[0].n_trees
    for forest, (_, valid) in zip(trees.forests, made.protocol.splits, strict=True):
        np.testing.assert_allclose(trees.margins[valid], forest.margins(features(made)[valid]).numpy(), atol=1e-6)


def test_trees_that_had_too_little_time_are_noted() -> None:
    boxes = [[0.5, 0.5, 0.1 + i / 1000, 0.1] for i in range(120)]
    made = problem(frame(120, car=boxes), {"car": {"kind": "box"}, "yes": {}, "kind": {}, "number": {}})
    (_, yes, kind, _) = tuned(made, 2)
    assert yes is not None
    grown = (None, dataclasses.replace(yes, n_trials=1), kind, None)
    assert tree_notes(made, grown, None) == [
        "the time left no configuration to the trees of number",
        "the time left one configuration to the trees of yes",
        "the time left 2 configurations to the trees of kind",
    ]
    assert tree_notes(made, grown, 1) == ["the time left no configuration to the trees of number"]


def test_whoever_asks_ends_tuning() -> None:
    made = problem(frame(120), {"yes": {}})
    (trees,) = tune(made, features=features(made), n_trials=50, stop=lambda: True)
    assert trees is not None
    assert trees.n_trials == 1


def test_an_error_in_a_worker_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> float:
        raise RuntimeError("no loss today")

    monkeypatch.setattr(trees_module._Study, "_loss", fail)
    with pytest.raises(RuntimeError, match="no loss today"):
        tuned(problem(frame(120)), 3, n_workers=2)


def test_trees_are_kept_and_read_back(tmp_path: Path, folds: tuple[Problem, tuple[Trees, ...]]) -> None:
    made, found = folds
    for trees in found:
        path = tmp_path / f"{trees.task}.safetensors"
        save(path, trees)
        back = load(path)
        assert (back.task, back.params, back.loss, back.n_trials) == (
            trees.task, trees.params, trees.loss, trees.n_trials)  # fmt: skip
        np.testing.assert_array_equal(back.margins, trees.margins)
        rows = features(made)[:9]
        for one, other in zip(back.forests, trees.forests, strict=True):
            assert torch.equal(one.margins(rows), other.margins(rows))


def test_damaged_trees_are_named(tmp_path: Path, folds: tuple[Problem, tuple[Trees, ...]]) -> None:
    path = tmp_path / "yes.safetensors"
    save(path, folds[1][0])
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(RunError, match=r"yes\.safetensors is missing or damaged"):
        load(path)


def test_without_lightgbm_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mtl-bento\[search\]'"):
        tuned(problem(frame(120), {"yes": {}}), 1)


def test_without_a_bound_tuning_is_refused() -> None:
    made = problem(frame(120), {"yes": {}})
    with pytest.raises(ValueError, match="`seconds` or `n_trials`"):
        tune(made, features=features(made))


def test_nothing_imports_lightgbm_before_it_is_used() -> None:
    import subprocess

    code = "import sys, mtl_bento_search.trees; sys.exit('lightgbm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_trees_grow_again_on_other_rows_and_on_their_own_to_the_same_forest() -> None:
    made = problem(frame(), split={"folds": 2})
    (train, _), _ = made.protocol.splits
    held = tuned(made)[2]
    assert held is not None
    again = trees_module.again(made, held, train, features=features(made), seed=0)
    assert (again.task, again.params, len(again.forests)) == (held.task, held.params, 2)
    assert all(torch.equal(again.forests[0].tensors[name], own) for name, own in held.forests[0].tensors.items())
    np.testing.assert_array_equal(again.margins, held.margins)
    every = trees_module.again(made, held, np.arange(240), features=features(made), seed=0)
    assert not torch.equal(every.forests[0].margins(features(made)), again.forests[0].margins(features(made)))


def test_forests_of_the_same_rows_differ_by_seed_where_anything_is_drawn() -> None:
    made = problem(frame(), {"number": {}}, split={"folds": 2})
    (held,) = tuned(made, n_trials=1)
    assert held is not None
    drawn = replace(held, params={**held.params, "bagging_fraction": 0.5, "feature_fraction": 0.5})
    x = features(made)
    one, other = trees_module.again(made, drawn, np.arange(240), features=x, seed=0).forests
    assert not torch.equal(one.margins(x), other.margins(x))
