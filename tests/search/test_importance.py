"""Importance of hyperparameters: one that decides stands alone, and what is not settled is not said."""

from __future__ import annotations

import math

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, create_trial

from mtl_bento_search.importance import ABSENT, DRAWS, encoded, importance, place, summary

LR = FloatDistribution(1e-4, 1e-2, log=True)
WIDTH = IntDistribution(32, 256)
TRUNK = CategoricalDistribution(["tabm", "mlp"])
INNER = IntDistribution(2, 8)


def made(n: int, gain: str, *, seed: int = 0) -> list[FrozenTrial]:
    """Trials whose gain is that of one parameter, or chance alone; only those of `tabm` have `inner`."""
    rng = np.random.default_rng(seed)
    trials = []
    for _ in range(n):
        params = {
            "lr": float(10 ** rng.uniform(-4, -2)),
            "width": int(rng.integers(32, 257)),
            "trunk": str(rng.choice(["tabm", "mlp"])),
        }
        kinds = {"lr": LR, "width": WIDTH, "trunk": TRUNK}
        if params["trunk"] == "tabm":
            params["inner"] = int(rng.integers(2, 9))
            kinds["inner"] = INNER
        value = {"lr": math.log10(params["lr"]), "trunk": float(params["trunk"] == "mlp")}.get(gain, rng.normal())
        trials.append(create_trial(value=value, params=params, distributions=kinds))
    return trials


def test_the_parameter_that_decides_is_first_in_every_draw_and_the_only_one_settled() -> None:
    found = importance(made(60, "lr"))
    assert found is not None
    assert found["ranked"][0]["name"] == "lr"
    assert found["ranked"][0]["rank"] == [1, 1]
    assert (found["settled"], found["draws"], found["trials"]) == (1, DRAWS, 60)
    # Of what is independent of it a shuffle of places has twice the variance: 2 where all is known, less here.
    assert 1.5 < found["ranked"][0]["importance"] < 2.2
    assert all(abs(held["importance"]) < 0.05 for held in found["ranked"][1:])
    assert found["told"] > 0.9


def test_one_that_only_has_two_values_is_found_as_well() -> None:
    found = importance(made(60, "trunk"))
    assert found is not None
    assert found["ranked"][0]["name"] == "trunk"
    assert found["settled"] == 1


def test_where_chance_alone_decides_nothing_is_settled() -> None:
    for seed in range(3):
        found = importance(made(60, "chance", seed=seed))
        assert found is not None
        assert found["settled"] is None
        assert found["told"] < 0.1
        assert all(held["rank"][0] < held["rank"][1] for held in found["ranked"])


def test_ranks_are_counted_over_the_draws() -> None:
    # In 19 of 20 draws b is ahead of a and c, which take turns; of 20 ranks, the second and the last but one are shown.
    rises = np.array([[0.1, 0.5, 0.2], [0.2, 0.5, 0.1]] * 10)
    rises[0] = [0.3, 0.0, 0.2]
    found = summary(["a", "b", "c"], rises, [0.5, 0.7] * 10, n=40)
    assert [held["name"] for held in found["ranked"]] == ["b", "a", "c"]
    assert [held["rank"] for held in found["ranked"]] == [[1, 1], [2, 3], [2, 3]]
    assert [held["importance"] for held in found["ranked"]] == pytest.approx([0.475, 0.16, 0.15])
    assert found["settled"] == 1
    assert found["told"] == pytest.approx(0.6)


def test_too_few_trials_or_trials_alike_have_none() -> None:
    assert importance(made(29, "lr")) is None
    assert importance([create_trial(value=0.1, params={"lr": 1e-3}, distributions={"lr": LR})] * 40) is None
    assert importance([create_trial(value=0.1 * i) for i in range(40)]) is None
    assert importance([create_trial(value=0.1, params=t.params, distributions=t.distributions)
                       for t in made(40, "lr")]) is None  # fmt: skip


def test_without_time_there_is_none_and_the_same_trials_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = made(40, "lr")
    assert importance(trials) == importance(trials)
    monkeypatch.setattr("mtl_bento_search.importance.SPENT_S", 0.0)
    assert importance(trials, timeout_s=0.0) is None


def test_a_trial_without_a_finite_gain_does_not_count() -> None:
    trials = made(40, "lr")
    broken = [create_trial(value=math.inf, params=t.params, distributions=t.distributions) for t in trials[:5]]
    assert importance(trials + broken) == importance(trials)


def test_values_lie_in_their_range_by_their_logarithm_where_searched_so() -> None:
    assert place(LR, 1e-3) == pytest.approx(0.5)
    assert place(WIDTH, 32) == 0.0
    assert place(TRUNK, "mlp") == 1.0
    assert place(CategoricalDistribution(["only"]), "only") == 0.0
    assert place(FloatDistribution(2.0, 2.0), 2.0) == 0.0


def test_parameters_that_never_differ_are_left_out_and_those_a_trial_lacks_are_marked() -> None:
    fixed = {"seed": IntDistribution(1, 1)}
    trials = [
        create_trial(value=0.1, params={"seed": 1, "inner": 2}, distributions=fixed | {"inner": INNER}),
        create_trial(value=0.2, params={"seed": 1, "inner": 8}, distributions=fixed | {"inner": INNER}),
        create_trial(value=0.3, params={"seed": 1}, distributions=fixed),
    ]
    names, x = encoded(trials)
    assert names == ["inner"]
    assert x[:, 0].tolist() == [0.0, 1.0, ABSENT]


def test_a_diverged_trial_decides_no_more_than_any_other_of_the_last_place() -> None:
    trials = made(60, "lr")
    worst = min(range(60), key=lambda n: trials[n].value or 0.0)
    far = create_trial(value=-1000.0, params=trials[worst].params, distributions=trials[worst].distributions)
    assert importance([*trials[:worst], far, *trials[worst + 1 :]]) == importance(trials)
