"""The report on the search: settings against the gain, what mattered, and what one target costs another."""

from __future__ import annotations

import math
import re
from typing import Any, cast

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import create_trial

from mtl_bento_search.report.axes import in_view
from mtl_bento_search.report.hyperparameters import MOST_FOLDED, MOST_SLICES, drawn, settings, what_mattered
from mtl_bento_search.report.inputs import section as inputs
from mtl_bento_search.report.reading import Facts
from mtl_bento_search.report.sure import section as sure
from mtl_bento_search.report.tradeoffs import MOST_MENU, MOST_OPEN, by_conflict, trade_offs

KINDS: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-4, 1e-2, log=True),
    "width.a": IntDistribution(32, 256),
    "trunk": CategoricalDistribution(["tabm", "mlp"]),
    "fixed": IntDistribution(8, 8),
}


def facts(
    n: int = 6, *, names: tuple[str, ...] = ("a", "b"), kinds: dict[str, BaseDistribution] = KINDS, **changes: Any
) -> Facts:
    """A search whose trial k has gain k %, the last trial the best; only even trials are `tabm`, with an `inner`."""
    study = optuna.create_study(direction="maximize")
    for k in range(n):
        share = k / (n - 1) if n > 1 else 0.0
        params: dict[str, Any] = {}
        for name, kind in kinds.items():
            if isinstance(kind, CategoricalDistribution):
                params[name] = kind.choices[k % 2]
            elif isinstance(kind, FloatDistribution):
                params[name] = 10 ** (-4 + 2 * share)
            else:
                params[name] = round(cast(IntDistribution, kind).low + share * (kind.high - kind.low))  # type: ignore[attr-defined]
        held = dict(kinds)
        if params.get("trunk") == "tabm":
            params["tabm.inner"], held["tabm.inner"] = 2 + k, IntDistribution(2, 80)
        study.add_trial(create_trial(value=k / 100, params=params, distributions=held))
    result: dict[str, Any] = {
        "tasks": [],
        "single_task_losses": dict.fromkeys(names, 0.5),
        "trials": {
            "best": n - 1,
            "complete": n,
            "gains": [[k, k / 100, "complete"] for k in range(n)],
            "task_gains": [[k, [k / 100 * (-1) ** t for t in range(len(names))]] for k in range(n)],
        },
    }
    return Facts(result | changes, study)


@pytest.mark.parametrize(
    ("gains", "low", "high"),
    [
        ([-0.5], -0.53, 0.03),
        ([0.5], -0.03, 0.53),
        ([-0.77, -0.08], -0.3392, 0.0192),
        ([-9.0, 0.1, 0.1, 0.2], -0.224, 0.224),
        ([], -0.05, 0.05),
    ],
)
def test_gains_are_drawn_from_zero_to_the_best_and_without_what_went_far_wrong(
    gains: list[float], low: float, high: float
) -> None:
    assert in_view(gains) == pytest.approx((low, high))


def test_settings_are_those_that_differ_common_ones_before_those_of_a_target() -> None:
    found = settings(facts())
    assert [s.name for s in found] == ["lr", "trunk", "tabm.inner", "width.a"]
    assert found[0].title == "lr (log scale)"
    assert [found[0].at(n) for n in (0, 5)] == pytest.approx([0.0, 1.0])
    assert math.isnan(found[2].at(1))  # an mlp has no inner networks
    assert found[1].ticks() == [(0.0, "tabm"), (1.0, "mlp")]
    assert found[3].ticks() == [(0.0, "32"), (1.0, "256")]


def test_the_most_important_settings_come_first_where_that_was_measured() -> None:
    ranked = [{"name": name} for name in ("width.a", "trunk", "lr")]
    found = settings(facts(importance={"ranked": ranked}))
    assert [s.name for s in found] == ["width.a", "trunk", "lr", "tabm.inner"]


def test_every_trial_is_a_line_through_the_lanes_in_the_shade_of_its_fifth() -> None:
    page = str(drawn(facts(10)))
    shades = {i: re.search(rf'd="([^"]*)" class="line fifth{i}"', page) for i in range(5)}
    # Two of ten trials in each shade, and a line of a trial that is no tabm has a gap: one more stroke.
    assert [shade and shade.group(1).count("M") for shade in shades.values()] == [3] * 5
    assert page.count('class="lane"') == 5  # four settings and the gain
    assert 'data-tip="trial 9: +9.0\u00a0%"' in page


def test_of_a_thousand_trials_the_lines_are_spread_over_their_order_the_best_among_them() -> None:
    kinds: dict[str, BaseDistribution] = {"lr": KINDS["lr"]}
    page = str(drawn(facts(1000, kinds=kinds)))
    lines = re.findall(r'd="([^"]*)" class="line fifth\d"', page)
    assert [line.count("M") for line in lines] == [30] * 5
    assert "150 of 1,000 trials are drawn, evenly from the worst to the best." in page
    assert "M506 34L" in lines[-1]  # trial 999 at the highest rate, the right end of the lane


def test_each_setting_has_a_plot_that_tells_the_chosen_trial() -> None:
    page = str(drawn(facts()))
    assert page.count('class="panel"') == 4
    assert 'data-tip="trial 5: 0.01, +5.0\u00a0%"' in page
    assert 'aria-label="Gain against tabm.inner in 3 complete trials."' in page


def test_dozens_of_settings_are_folded_and_hundreds_cut() -> None:
    kinds: dict[str, BaseDistribution] = {f"width.{i}": IntDistribution(0, 100) for i in range(100)}
    page = str(drawn(facts(kinds=kinds)))
    assert page.count('class="panel"') == MOST_SLICES + MOST_FOLDED
    assert f"<summary>{MOST_FOLDED} more</summary>" in page
    assert "88 of 100 settings are not in it." in page


@pytest.mark.parametrize("n", [0, 1])
def test_where_nothing_can_be_compared_it_is_said(n: int) -> None:
    plural = "s" * (n != 1)
    assert f"of {n} complete trial{plural} no two differ in what was searched" in str(drawn(facts(n)))
    assert "no two differ" in str(drawn(facts(4, kinds={"fixed": KINDS["fixed"]})))


# -- what mattered ------------------------------------------------------------------------------------------------


def ranks(settled: int | None) -> dict[str, Any]:
    ranked = [
        {"name": "lr", "importance": 0.5, "lower": 0.25, "upper": 1.0, "rank": [1, 1]},
        {"name": "width", "importance": 0.1, "lower": -0.1, "upper": 0.3, "rank": [2, 7]},
        {"name": "dropout", "importance": -0.02, "lower": -0.1, "upper": 0.1, "rank": [2, 9]},
    ]
    return {"trials": 64, "draws": 32, "told": 0.42, "settled": settled, "ranked": ranked}


def test_importance_has_bars_intervals_and_ranks_over_the_draws() -> None:
    page = str(what_mattered(facts(importance=ranks(1))))
    assert "<bdi>lr</bdi> matters most, in at least 19 of 20 draws of the trials" in page
    assert re.findall(r"rank \d(?: to \d)?", page) == ["rank 1", "rank 2 to 7", "rank 2 to 9"]
    assert re.findall(r'<rect[^>]* width="([\d.]+)"', page) == ["100", "20", "0"]  # 200 wide is 1, the highest end
    assert "M50.0 7H200.0" in page
    assert "64 complete trials" in page
    assert "42% of how trials differ" in page


def test_ranks_that_are_not_settled_say_so() -> None:
    assert "No rank is settled" in str(what_mattered(facts(importance=ranks(None))))
    assert "<bdi>lr</bdi> and <bdi>width</bdi> matter most" in str(what_mattered(facts(importance=ranks(2))))


# -- trade-offs ---------------------------------------------------------------------------------------------------


def test_pairs_conflict_where_the_best_trial_for_one_costs_the_other() -> None:
    # a and b agree; c is best where both are worst.
    gains = {0: [0.0, 0.1, 0.9], 1: [0.1, 0.2, 0.1], 2: [0.3, 0.5, 0.0]}
    assert by_conflict(gains, 3) == [(0, 2), (1, 2), (0, 1)]
    assert by_conflict(gains | {3: [math.nan, 0.9, math.nan]}, 3) == by_conflict(gains, 3)
    assert by_conflict({0: [math.nan, 0.1]}, 2) == [(0, 1)]


def test_of_many_targets_the_pairs_that_conflict_most_are_drawn_and_the_rest_are_in_a_menu() -> None:
    found = facts(names=tuple("abcdef"))
    page = str(trade_offs(found))
    # Fifteen pairs; the nine of a target that gains and one that loses come first.
    assert page.count('class="pair"') == 15
    assert page.count("<option>") == 15 - MOST_OPEN
    assert page.count(" hidden>") == 15 - MOST_OPEN - 1
    assert page.index('aria-label="Gain of a against gain of b') < page.index("<select")
    assert page.index("<option>a and c</option>") > page.index("<select")
    assert "The best trial for <bdi>a</bdi>, 5, has −5.0\u00a0% on <bdi>b</bdi> instead of 0\u00a0%" in page
    assert "Trial 5 is best for both." in page


def test_of_few_targets_every_pair_is_drawn_without_a_menu() -> None:
    page = str(trade_offs(facts(names=("a", "b", "c"))))
    assert page.count('class="pair"') == 3
    assert "<select" not in page


def test_of_dozens_of_targets_pairs_that_conflict_least_are_left_out() -> None:
    page = str(trade_offs(facts(names=tuple(f"t{i}" for i in range(40)))))
    assert page.count('class="pair"') == MOST_OPEN + MOST_MENU
    assert f"{780 - MOST_OPEN - MOST_MENU} pairs that conflict less are left out." in page


# -- inputs and sureness ------------------------------------------------------------------------------------------


def test_inputs_are_drawn_for_each_target_with_their_intervals() -> None:
    records = [
        {"task": task, "input": f"x{i}", "importance": 0.4 / (i + 1), "lower": 0.0, "upper": 0.8 / (i + 1)}
        for task in ("a", "b")
        for i in range(10)
    ]
    page = str(inputs({"input_importance": records}))
    assert page.count("<figure>") == 2
    assert re.findall(r'<rect[^>]* width="([\d.]+)"', page)[:3] == ["100", "50", "33.3"]
    assert page.count("2 others less") == 2
    assert "40\u00a0%" in page
    assert "Not measured: no time was left." in str(inputs({"input_importance": None}))


def covered(task: str, value: float, lower: float, upper: float, **changes: Any) -> dict[str, Any]:
    held = {"level": 0.9, "value": value, "lower": lower, "upper": upper, "size": 1.5, "measure": "labels", "n": 72}
    return {"task": task, "coverage": held | changes}


def test_coverage_is_held_against_the_promise_with_the_number_of_rows() -> None:
    tasks = [covered("a", 0.83, 0.73, 0.91), covered("b", 0.7, 0.6, 0.8), covered("c", 0.99, 0.95, 1.0, n=1440)]
    page = str(sure({"tasks": [*tasks, {"task": "d", "coverage": None}]}))
    assert [
        page.count(words) for words in (">as promised<", ">less often than promised<", ">more often than promised<")
    ] == [1, 1, 1]
    assert "83\u00a0% of 72 rows, 95 % interval 73\u00a0% to 91\u00a0%; promised 90\u00a0%" in page
    assert "1,440" in page
    assert "1.50 labels" in page
    assert "Without intervals or sets: <bdi>d</bdi>." in page


def test_without_any_interval_it_is_said_and_without_a_test_there_is_nothing() -> None:
    assert "No target has intervals or prediction sets" in str(sure({"tasks": [{"task": "a"}]}))
    assert sure({"tasks": []}) is None
