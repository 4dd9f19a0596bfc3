"""The report: what it says in words and figures, that names cannot break it, that it loads nothing and stays small."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from mtl_bento_search.report import write_report
from mtl_bento_search.report.axes import above, ticks
from mtl_bento_search.report.bars import forest_reach
from mtl_bento_search.report.html import el, names, prose
from mtl_bento_search.report.network import MOST_HEADS, gather
from mtl_bento_search.report.reading import Comparison, Facts, front
from mtl_bento_search.report.words import (
    between,
    clipped,
    duration,
    figure,
    headline,
    percent,
    sentence,
    short,
    signed,
    where,
)
from mtl_bento_search.run import RESULT_VERSION

HOSTILE = [
    '<b>"x"',
    "分类",
    "</script><script>alert(1)</script>",
    "it's `code` & more",
    "x.y",
    "x",
    "a\tb\x00c",
    "\u202etxet",
]
TRUNK = {"kind": "tabm", "shared_depth": 2, "width": 128, "dropout": 0.1, "activation": "relu", "inner": 8}


class Page(HTMLParser):
    """A page as a reader meets it: text by element, and what elements there are."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.markup, self.tags, self.texts = markup, [], []  # type: str, list[tuple[str, dict[str, str | None]]], list[str]
        self._open: list[str] = []
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"{tag} closes what is not open"

    def handle_data(self, data: str) -> None:
        if "style" not in self._open and "script" not in self._open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        """All text, white space made one blank."""
        return re.sub(r"[ \n]+", " ", " ".join(self.texts))

    def classes(self, tag: str) -> list[str]:
        """Classes of the elements of a kind, in their order."""
        return [attrs.get("class") or "" for name, attrs in self.tags if name == tag]


def record(task: str = "a", *, against: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A task on the test rows: accuracy 0.9459 against 0.9482, inconclusive; `against` changes the latter."""
    single: dict[str, Any] = {
        "name": f"single-task {task}",
        "value": 0.9482352941176471,
        "difference": -0.0023529411764705577,
        "lower": -0.007058823529411784,
        "upper": 0.0023529411764705,
        "p": 0.3,
        "p_corrected": 0.6,
        "verdict": "inconclusive",
        "smallest": 0.005,
        "metrics": {"accuracy": 0.9482352941176471, "log_loss": None},
    }
    held: dict[str, Any] = {
        "task": task,
        "kind": "multiclass",
        "metric": "accuracy",
        "higher_is_better": True,
        "ours": 0.9458823529411765,
        "interval": [0.9258235294117647, 0.9659411764705882],
        "n_test": 425,
        "served_by": {"trial 1": 1.0},
        "metrics": {"accuracy": 0.9458823529411765, "log_loss": 0.1227},
        "values": {"ours": 0.9458823529411765, "single_task": 0.9482352941176471, "trivial": 0.5},
        "losses": {"ours": 0.21, "single_task": 0.2, "trivial": 1.0},
        "against": {"single_task": single | (against or {})},
    }
    return held | changes


BETTER = {"against": {"difference": 0.04, "lower": 0.01, "upper": 0.07, "verdict": "better", "smallest": None}}
WORSE = {"against": {"difference": -0.04, "lower": -0.07, "upper": -0.01, "verdict": "worse", "smallest": None}}
TIE = {"against": {"verdict": "tie", "smallest": None}}
UNKNOWN = {"ours": None, "interval": [None, None]} | {
    "against": dict.fromkeys(["value", "difference", "lower", "upper", "smallest"]) | {"verdict": "not measurable"}
}


def kept(task: str) -> dict[str, Any]:
    """What a record of a task is where its single-task network serves."""
    zero = {"difference": 0.0, "lower": 0.0, "upper": 0.0, "verdict": "same", "smallest": None}
    return {"against": zero, "served_by": {f"single-task {task}": 1.0}}


def with_trees(held: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A record that also says that tuned trees are better by 0.012, or something else."""
    trees = {"name": "trees", "value": 0.9579, "difference": -0.012, "lower": -0.02, "upper": -0.004}
    trees |= {"verdict": "worse", "smallest": None, "metrics": {"accuracy": 0.9579}}
    return held | {
        "against": held["against"] | {"trees": trees | changes},
        "values": held["values"] | {"trees": 0.9579},
    }


def group(name: str, tasks: list[str], **changes: Any) -> dict[str, Any]:
    """A group of the drawn network."""
    heads = {task: {"kind": "dense", "width": 32} for task in tasks}
    return {"name": name, "tasks": tasks, "members": 5, "trunk": TRUNK, "heads": heads, "parameters": 69384} | changes


def made_result(tasks: list[dict[str, Any]], *, n_trials: int = 4, **changes: Any) -> dict[str, Any]:
    """A result of some tasks: every third trial is pruned, trial 1 is the best."""
    known = [task["task"] for task in tasks]
    pruned = [n for n in range(n_trials) if n % 3 == 2]
    complete = [n for n in range(n_trials) if n not in pruned]
    best = 1 if n_trials > 1 else 0
    gains = [
        [n, 0.1 - 0.01 * abs(n - 1) if n in complete else -0.5, "pruned" if n in pruned else "complete"]
        for n in range(n_trials)
    ]
    held: dict[str, Any] = {
        "version": RESULT_VERSION,
        "name": "small",
        "seed": 7,
        "device": "cpu",
        "torch": "2.6.0",
        "optuna": "5.0.0",
        "python": "3.11.7",
        "rows": {"train": 1701, "valid": 1701, "test": 425, "folds": 5},
        "test_looks": 1,
        "targets": [{"name": t["task"], "kind": t["kind"], "metric": t["metric"], "weight": 1.0} for t in tasks],
        "notes": ["the rows join the folds (`split: {folds: 0}` keeps them apart)"],
        "inputs": [{"name": "age", "kind": "numeric", "what": "whole number"}],
        "left_out": [],
        "tasks": tasks,
        "single_task_losses": dict.fromkeys(known, 0.5),
        "trials": {
            "total": n_trials,
            "complete": len(complete),
            "pruned": len(pruned),
            "best": best,
            "best_gain": 0.1,
            "best_params": {"lr": 0.001, **{f"head_width.{task}": 32 for task in known}},
            "default_gain": 0.09,
            "gains": gains,
            "task_gains": [[n, [0.1 + 0.01 * n] * len(known)] for n in complete],
        },
        "curves": {
            "references": {"trial 0": [[64, 0.9], [128, 0.6]], **{task: [[64, 0.9], [128, 0.5]] for task in known}},
            "trials": {str(n): [[64, -0.4], [128, 0.1]] for n in complete},
        },
        "importance": None,
        "network": {
            "blocks": {"numeric": {"columns": ["age"], "encoder": {"kind": "numeric", "n_bins": 12}}},
            "groups": [group(f"trial {best}", known)],
        },
        "model": {"members": 5, "parameters": 346920},
        "phases_s": {"references": 30.0, "search": 90.0},
        "elapsed_s": 120.0,
    }
    return held | changes


def made_study(result: dict[str, Any]) -> optuna.Study:
    """The study of a made result."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", study_name="small")
    study.set_user_attr("data_sha256", "d" * 64)
    for n, value, state in result["trials"]["gains"]:
        attrs = {f"val.{task}.loss": 0.45 for task in result["single_task_losses"]}
        attrs |= {f"val.{task}.accuracy": 0.5 + i / 100 for i, task in enumerate(result["single_task_losses"])}
        attrs |= {"worst_ratio": 0.9, "n_params": 1000 + n}
        study.add_trial(
            create_trial(
                state=TrialState[state.upper()], value=value, user_attrs=attrs, intermediate_values={64: value}
            )
        )
    return study


def made_page(tmp_path: Path, tasks: list[dict[str, Any]] | None = None, **changes: Any) -> Page:
    """The page of a made result."""
    result = made_result(tasks or [record("a"), record("b")], **changes)
    path = write_report(tmp_path, result, made_study(result))
    assert path == tmp_path / "report.html"
    return Page(path.read_text(encoding="utf-8"))


# -- words --------------------------------------------------------------------------------------------------------


def test_figures_have_four_digits_and_a_dash_where_there_is_none() -> None:
    values = [0.9458823, 0.75, 6705.4, 92900.0, 1.5, 0.0, -0.00235, 3.2e-7, 1e12, math.nan, math.inf]
    assert [figure(v) for v in values] == [
        "0.9459", "0.7500", "6,705", "92,900", "1.500", "0", "−0.002350", "3.2e-07", "1.000e+12", "–", "–",
    ]  # fmt: skip


def test_settings_lose_the_zeros_at_their_end() -> None:
    assert [short(v) for v in [0.1, 205.0, 0.33195, 1000.0, 0.000215, math.nan]] == [
        "0.1",
        "205",
        "0.332",
        "1,000",
        "0.000215",
        "–",
    ]


def test_differences_carry_their_sign() -> None:
    assert [signed(v) for v in [0.0047, -0.0024, 0.0, 1893.0]] == ["+0.0047", "−0.0024", "0", "+1,893"]
    assert [percent(v) for v in [0.0866, -0.517, 0.0, 0.0004, math.nan]] == [
        "+8.7\u00a0%",
        "−52\u00a0%",
        "0\u00a0%",
        "0\u00a0%",
        "–",
    ]


def test_both_ends_of_an_interval_have_the_same_decimals() -> None:
    assert between(0.92582, 0.96594) == "0.926 to 0.966"
    assert between(-0.00063, 0.00009, difference=True) == "−0.00063 to +0.00009"
    assert between(-0.00706, 0.0, difference=True) == "−0.0071 to 0"
    assert between(-300.2, 318.4, difference=True) == "−300 to +318"
    assert between(math.nan, 0.1) == "–"


def test_durations_read_as_one_says_them() -> None:
    assert [duration(s) for s in [0.42, 41.6, 59.7, 125, 3600, 4805, math.nan]] == [
        "0.4 s", "42 s", "1 min", "2 min 5 s", "1 h", "1 h 20 min", "–",
    ]  # fmt: skip


def test_labels_are_cut_by_their_width_of_which_chinese_characters_take_two() -> None:
    assert clipped("abcdef", 6) == "abcdef"
    assert clipped("abcdefg", 6) == "abcde…"
    assert clipped("分类分类", 6) == "分类…"


def test_the_headline_says_what_happened_to_whom_worst_news_included() -> None:
    told = [BETTER, WORSE, kept("c"), {}, UNKNOWN, TIE]
    tested = [Comparison.read(record(name, **changes)) for name, changes in zip("abcdef", told, strict=True)]
    assert Page(headline(tested)).text.replace(" .", ".") == (
        "This model is better than single-task networks on a. Single-task networks are better than this model on b. "
        "Single-task networks are kept for c. A tie with single-task networks on f. "
        "The test rows are too few to tell this model from single-task networks on d. "
        "The metric cannot be measured on these test rows for e."
    )


def test_the_headline_counts_where_there_are_many_tasks() -> None:
    tested = [Comparison.read(record(f"t{i}", **(BETTER if i < 2 else {}))) for i in range(9)]
    assert headline(tested) == (
        "This model is better than single-task networks on 2 of 9 targets. "
        "The test rows are too few to tell this model from single-task networks on 7 of 9 targets."
    )
    assert headline(tested[2:6]).endswith("from single-task networks on all 4 targets.")


def test_trees_that_win_are_named_with_by_how_much(tmp_path: Path) -> None:
    page = made_page(tmp_path, [with_trees(record("a", **BETTER)), record("b")])
    assert "Tuned trees are better than this model on a ." in page.text
    assert (
        "a – accuracy 0.9459 on 425 test rows; better than its single-task network 0.9482 by 0.040 "
        "(95 % interval +0.010 to +0.070); tuned trees are better by 0.012 (95 % interval +0.004 to +0.020), 0.9579."
    ) in page.text
    heads = "Target This model Against single-task Against tuned trees"
    assert heads in page.text
    assert "0.9579 ▼ Worse trees −0.012 (−0.020 to −0.004)" in page.text
    assert "a accuracy 0.9459 loss 0.210 0.9482 loss 0.200 0.9579 0.5000 loss 1.00 b" in page.text
    assert "Metric This model Single-task Tuned trees a accuracy (shown first) 0.9459 0.9482 0.9579" in page.text
    assert "b accuracy (shown first) 0.9459 0.9482 –" in page.text


def test_of_several_opponents_those_that_were_not_decided_are_said_in_brief() -> None:
    few = with_trees(record("a", **TIE), verdict="inconclusive", smallest=0.02)
    assert sentence(Comparison.read(few)).endswith(
        "a tie with its single-task network 0.9482; not told from tuned trees 0.9579."
    )


def test_opponents_that_were_not_scored_are_not_spoken_of(tmp_path: Path) -> None:
    page = made_page(tmp_path)
    assert "trees" not in page.text
    assert "ensemble" not in page.text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {},
            "0.0024 worse than its single-task network 0.9482 (95 % interval −0.0071 to +0.0024), which may be chance: "
            "these rows could have shown 0.0050.",
        ),
        (BETTER, "better than its single-task network 0.9482 by 0.040 (95 % interval +0.010 to +0.070)."),
        (WORSE, "its single-task network is better by 0.040 (95 % interval +0.010 to +0.070), 0.9482."),
        (TIE, "0.0024 worse than its single-task network 0.9482 (95 % interval −0.0071 to +0.0024), a tie."),
        (kept("a"), "answered by its single-task network itself."),
        (
            {"against": {"lower": None, "upper": None, "smallest": None}, "n_test": 1},
            "0.0024 worse than its single-task network 0.9482 (no interval from so few rows), which may be chance: "
            "so few rows can show no difference.",
        ),
    ],
)
def test_each_task_has_its_sentence(changes: dict[str, Any], said: str) -> None:
    tested = Comparison.read(record("a", **changes))
    rows = "1 test row" if tested.n_test == 1 else "425 test rows"
    assert sentence(tested) == f"<strong><bdi>a</bdi></strong> – accuracy 0.9459 on {rows}; {said}"


def test_trees_answer_themselves() -> None:
    tested = Comparison.read(with_trees(record("a"), verdict="same", difference=0.0, lower=0.0, upper=0.0))
    assert sentence(tested).endswith("; answered by tuned trees themselves.")


def test_a_task_whose_metric_is_undefined_says_so() -> None:
    assert sentence(Comparison.read(record("a", **UNKNOWN))).endswith("accuracy is not defined on its 425 test rows.")


def test_one_task_alone_is_compared_with_the_defaults(tmp_path: Path) -> None:
    page = made_page(tmp_path, [record("a", **BETTER)])
    assert "The search helped: the chosen network is better than the network at the defaults." in page.text
    assert "better than the network at the defaults 0.9482 by 0.040" in page.text
    assert "Against the defaults" in page.text
    assert "What one target gains" not in page.text


def test_a_verdict_of_a_later_version_is_shown_in_its_own_word(tmp_path: Path) -> None:
    page = made_page(tmp_path, [record("a", against={"verdict": "undecided"}), record("b")])
    assert "Undecided: a" in page.text
    assert "· Undecided" in page.text


# -- the sections -------------------------------------------------------------------------------------------------


def test_a_row_holds_figures_intervals_rows_and_who_serves(tmp_path: Path) -> None:
    shares = {"trial 1": 0.75, "single-task a": 0.25}
    page = made_page(tmp_path, [record("a", served_by=shares), record("b", **kept("b"))])
    assert (
        "a accuracy, higher is better multiclass, 425 rows 0.9459 0.926 to 0.966 trial 1 (75 %), single-task a (25 %) "
        "0.9482 ~ Inconclusive at the defaults −0.0024 (−0.0071 to +0.0024) these rows could have shown 0.0050 "
        "b accuracy, higher is better multiclass, 425 rows 0.9459 0.926 to 0.966 single-task b "
        "0.9482 ◆ Same at the defaults"
    ) in page.text


def test_every_metric_stands_beside_the_single_task_network_s(tmp_path: Path) -> None:
    page = made_page(tmp_path)
    assert "a accuracy (shown first) 0.9459 0.9482 log_loss 0.1227 –" in page.text


def test_a_second_look_at_the_test_is_said_first_and_loudly(tmp_path: Path) -> None:
    assert "were scored" not in made_page(tmp_path).text
    page = made_page(tmp_path, test_looks=2)
    assert "Result The test rows were scored 2 times." in page.text
    assert "425 test rows, scored 2 times." in page.text
    assert [attrs["class"] for _, attrs in page.tags if attrs.get("role") == "alert"] == ["alert bad"]


def test_without_test_rows_the_validation_rows_are_shown_as_what_they_are(tmp_path: Path) -> None:
    rows = {"train": 100, "valid": 20, "test": 0, "folds": 1}
    result = made_result([record("a"), record("b")], rows=rows) | {"tasks": []}
    page = Page(write_report(tmp_path, result, made_study(result)).read_text(encoding="utf-8"))
    assert "No rows were kept for a test." in page.text
    assert "On validation rows, trial 1 has a lower loss than single-task networks for 2 of 2 targets." in page.text
    assert "a 0.5000 0.4500 +11\u00a0% accuracy 0.5000" in page.text  # 0.1 + 0.01 · 1, the made gain of trial 1
    assert "100 rows to learn from and 20 validation rows to choose by. No test rows." in page.text


def test_validation_metrics_of_a_target_are_not_those_of_one_whose_name_begins_alike(tmp_path: Path) -> None:
    page = made_page(tmp_path, [record("x"), record("x.y")])
    assert "x 0.5000 0.4500 +11\u00a0% accuracy 0.5000 x.y 0.5000 0.4500 +11\u00a0% accuracy 0.5100" in page.text


def test_the_history_marks_complete_pruned_and_chosen_trials(tmp_path: Path) -> None:
    page = made_page(tmp_path, [record("a")], n_trials=9)
    # Trials 2, 5 and 8 were pruned at -50 %, far below the frame: triangles. 5 others are complete, trial 1 is chosen.
    assert page.classes("path").count("pruned") == 3
    assert page.classes("circle").count("chosen") == 1
    assert page.classes("circle").count("complete") == 5
    assert "3 trials below the frame" in page.text


def test_a_trial_pruned_before_its_first_figure_is_counted(tmp_path: Path) -> None:
    result = made_result([record("a")], n_trials=6)
    result["trials"]["gains"][2][1] = None
    study = made_study(made_result([record("a")], n_trials=6))
    page = Page(write_report(tmp_path, result, study).read_text(encoding="utf-8"))
    assert "1 trial ended before a first figure." in page.text


def test_importance_is_not_shown_with_few_trials(tmp_path: Path) -> None:
    said = "Not shown: with 3 complete trials the ranks would differ from run to run; 30 are needed."
    assert said in made_page(tmp_path).text
    assert "It cannot be told" in made_page(tmp_path, n_trials=60).text
    # As runs of before wrote it: shares without ranks are not shown.
    assert said in made_page(tmp_path, importance={"lr": 0.25, "width": 0.75}).text


def test_what_was_not_measured_says_why(tmp_path: Path) -> None:
    text = made_page(tmp_path).text
    assert "No target has intervals or prediction sets" in text
    assert "Not measured: no time was left." in text
    assert "Settings are not drawn against the gain: of 3 complete trials no two differ in what was searched." in text


def test_what_the_search_cost_stands_by_phase(tmp_path: Path) -> None:
    text = made_page(tmp_path, elapsed_s=123.0).text
    assert "references each target alone and trial 0, the defaults 30 s, 24\u00a0%" in text
    assert "search the trials 1 min 30 s, 73\u00a0%" in text
    assert "other 3.0 s, 2.4\u00a0%" in text
    assert "Trials train in stacks, 22 s each on average." in text  # 90 s of 4 trials


def test_columns_left_out_stand_with_reason_and_remedy_those_alike_together(tmp_path: Path) -> None:
    constant = {"reason": "the same value in every row", "remedy": "nothing to learn from; remove it"}
    own = {"name": "id", "reason": "texts", "remedy": "write `ignore: [id]` in mtl.yaml"}
    page = made_page(tmp_path, left_out=[{"name": "c1", **constant}, own, {"name": "c2", **constant}])
    assert (
        "c1 and c2 the same value in every row nothing to learn from; remove it id texts write ignore: [id] in"
        in page.text
    )
    assert "No column was left out." in made_page(tmp_path).text


def test_parameters_of_targets_stand_beside_them(tmp_path: Path) -> None:
    assert "lr 0.001 Target head_width a 32 b 32" in made_page(tmp_path).text


def test_provenance_is_complete(tmp_path: Path) -> None:
    page = made_page(tmp_path)
    for said in ("torch 2.6.0", "Optuna 5.0.0", "Python 3.11.7", "seed 7", "hash of the data " + "d" * 64):
        assert said in page.text
    assert "the rows join the folds ( split: {folds: 0} keeps them apart)" in page.text
    assert "age numeric whole number" in page.text


def test_commands_quote_a_folder_with_blanks(tmp_path: Path) -> None:
    folder = tmp_path / "my run"
    folder.mkdir()
    (folder / "study.log").write_text("")
    page = made_page(folder)
    for line in (f"mtl-bento package '{folder}'", f"optuna-dashboard '{folder}/study.log'"):
        assert re.sub(" ", "", line) in re.sub(" ", "", page.text)
    assert "bentoml serve TAG" in page.text


# -- the network --------------------------------------------------------------------------------------------------


def test_single_task_networks_built_alike_are_drawn_in_one_frame() -> None:
    deeper = TRUNK | {"shared_depth": 3}
    frames = gather(
        [
            group("single-task c", ["c"]),
            group("trial 8", ["a", "b"]),
            group("single-task d", ["d"]),
            group("single-task e at trial 8", ["e"], trunk=deeper),
        ]
    )
    assert [(f.title, list(f.heads), f.separate) for f in frames] == [
        ("Shared network: trial 8", ["a", "b"], False),
        ("2 single-task networks, one a target", ["c", "d"], True),
        ("Single-task network", ["e"], False),
    ]
    assert frames[0].detail == "5 copies averaged, 69,384 parameters each"


def test_the_network_is_described_in_words_for_those_who_do_not_see_it(tmp_path: Path) -> None:
    page = made_page(tmp_path)
    labels = [attrs["aria-label"] for tag, attrs in page.tags if tag == "svg" and "net" in (attrs.get("class") or "")]
    assert labels == 2 * [
        "numeric: 1 column, encoder n bins 12. Shared network: trial 1: 5 copies averaged, 69,384 parameters each; "
        "trunk tabm, shared depth 2, width 128, dropout 0.1, activation relu, inner 8; 2 targets."
    ]


def test_many_heads_are_counted_rather_than_drawn(tmp_path: Path) -> None:
    page = made_page(tmp_path, [record(f"t{i}") for i in range(MOST_HEADS + 3)])
    assert page.text.count("and 3 more") == 2  # across and downwards
    assert page.classes("rect").count("box head") == 2 * MOST_HEADS


# -- the drawing's arithmetic -------------------------------------------------------------------------------------


def test_ticks_are_round() -> None:
    assert ticks(-0.19, 0.28, 6) == [-0.1, 0.0, 0.1, 0.2]
    assert ticks(0, 1024, 6) == [0.0, 250.0, 500.0, 750.0, 1000.0]
    assert ticks(3, 3, 6) == [3]


def test_a_line_begins_where_it_enters_the_frame() -> None:
    # From -1 at 0 to 1 at 2 the line crosses 0 at 1.
    points = [p for p in above([(0, -1), (2, 1), (4, 3)], 0.0) if not math.isnan(p[0])]
    assert points == [(1, 0.0), (2, 1), (2, 1), (4, 3)]


def test_the_front_is_what_no_trial_beats_on_both() -> None:
    assert front({1: (0.1, 0.3), 2: (0.2, 0.2), 3: (0.15, 0.1), 4: (0.3, 0.0), 5: (0.3, -0.1)}) == [1, 2, 4]


def test_one_noisy_interval_does_not_flatten_the_others() -> None:
    # The single-task error is 1 - 0.5; the intervals reach 0.1, 0.1 and 4 of it: cut at 4 medians, with air.
    tested = [
        Comparison.read(record(against={"value": 0.5, "difference": 0.0, "lower": -r / 2, "upper": r / 2}))
        for r in (0.1, 0.1, 4.0)
    ]
    assert forest_reach(tested) == pytest.approx(4 * 0.1 * 1.05)


# -- one file, safe, small ----------------------------------------------------------------------------------------


def test_hostile_names_are_text_wherever_they_stand(tmp_path: Path) -> None:
    tasks = [record(name_, **kept(name_) if i % 3 == 0 else {}) for i, name_ in enumerate(HOSTILE)]
    plain = made_page(tmp_path, [record(f"t{i}", **kept(f"t{i}") if i % 3 == 0 else {}) for i in range(len(HOSTILE))])
    page = made_page(
        tmp_path,
        tasks,
        name="</title><b>",
        notes=["<b>` & `<i>`"],
        inputs=[{"name": "<b>", "kind": "<i>", "what": '"&'}],
    )
    assert [tag for tag, _ in page.tags].count("b") == [tag for tag, _ in plain.tags].count("b")
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert {attr for _, attrs in page.tags for attr in attrs} == {attr for _, attrs in plain.tags for attr in attrs}
    for name_ in HOSTILE:
        assert name_.replace("\x00", "\ufffd") in "".join(page.texts)
    assert "\x00" not in page.markup


def test_the_page_loads_nothing_and_runs_only_its_own_script(tmp_path: Path) -> None:
    page = made_page(tmp_path)
    assert "://" not in page.markup
    assert not re.search(r"url\(|@import|\ssrc=|<link|<iframe", page.markup)
    assert {attrs["href"][0] for _, attrs in page.tags if attrs.get("href")} == {"#"}
    script = page.markup.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv"))
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_test_rows_stand_in_the_page_where_a_result_holds_them(tmp_path: Path) -> None:
    rows = [{"row": 3, "why": "best", "truth": 3, "answer": {"value": 3}}]
    digit = {"task": "a", "kind": "multiclass", "input": "picture", "labels": [], "rows": rows}
    shown = {"cells": {"picture": {"3": {"jpeg": "/9j/", "size": [8, 8]}}}, "tasks": [digit]}
    page = made_page(tmp_path, shown=shown)
    assert "Test rows Of each target" in page.text
    assert [attrs["href"] for tag, attrs in page.tags if tag == "image"] == ["data:image/jpeg;base64,/9j/"]
    assert "Test rows Of each target" not in made_page(tmp_path).text


def test_links_lead_somewhere_and_pictures_are_described(tmp_path: Path) -> None:
    page = made_page(tmp_path)
    anchors = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {attrs["href"] for tag, attrs in page.tags if tag == "a"} == {f"#{anchor}" for anchor in anchors}
    for tag, attrs in page.tags:
        if tag == "svg":
            assert attrs.get("aria-label") or attrs.get("aria-hidden") == "true"


def test_missing_figures_are_the_same_as_null_and_as_nan(tmp_path: Path) -> None:
    def as_nan(held: Any) -> Any:
        if isinstance(held, dict):
            return {key: as_nan(value) for key, value in held.items()}
        if isinstance(held, list):
            return [as_nan(value) for value in held]
        return math.nan if held is None else held

    null = made_page(tmp_path, [record("a", **UNKNOWN), record("b")]).markup
    assert null == made_page(tmp_path, [record("a", **as_nan(UNKNOWN)), record("b")]).markup
    assert "nan" not in re.sub(r"<style>.*?</style>", "", null, flags=re.DOTALL).lower()


def test_a_single_trial_and_a_loss_that_was_never_finite_make_a_page(tmp_path: Path) -> None:
    result = made_result([record("a", served_by={"trial 0": 1.0})], n_trials=1)
    result["curves"] = {"references": {"trial 0": [], "a": [[64, None], [128, None]]}, "trials": {}}
    result["single_task_losses"] = {"a": None}
    result["trials"]["task_gains"] = [[0, [None]]]
    page = Page(write_report(tmp_path, result, made_study(result)).read_text(encoding="utf-8"))
    assert "1 trial 1 complete, 0 pruned" in page.text
    assert "Gain by trial" not in page.text
    assert "Loss of each target" not in page.text


def test_a_thousand_trials_and_columns_stay_a_small_page(tmp_path: Path) -> None:
    columns = [{"name": f"column {i}", "kind": "numeric", "what": "number"} for i in range(1000)]
    page = made_page(tmp_path, [record(f"t{i}") for i in range(20)], n_trials=1000, inputs=columns)
    assert "All 1,000 inputs" in page.text
    assert "The best 200 of 667 complete trials are drawn." in page.text
    assert len(page.markup) < 1_000_000  # bytes, of which a browser lays out several in a second


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    assert made_page(tmp_path).markup == made_page(tmp_path).markup


def test_facts_read_curves_at_the_rungs_where_no_looks_were_kept() -> None:
    result = made_result([record("a")])
    result["curves"]["trials"] = {}
    assert Facts(result, made_study(result)).training_curve(1) == [(64.0, 0.1)]


def test_elements_escape_what_is_not_markup() -> None:
    assert (
        el("td", '<&"', el("br"), 3, None, title='"x"', hidden=False)
        == '<td title="&quot;x&quot;">&lt;&amp;&quot;<br>3</td>'
    )
    assert prose("a `b < c` d") == "a <code>b &lt; c</code> d"
    assert prose("a ` b") == "a ` b"
    assert names(["a", "b", "c"]) == "<bdi>a</bdi>, <bdi>b</bdi> and <bdi>c</bdi>"
    assert names(["a", "b", "c"], most=1) == "<bdi>a</bdi> and 2 more"


def test_an_opponent_is_told_by_its_configurations() -> None:
    task: Any = SimpleNamespace(name="air (1)")
    for name, said in {
        "single-task air (1)": "at the defaults",
        "single-task air (1), seed 2": "seed 2",
        "single-task air (1) at trial 8": "at trial 8",
        "single-task air (1), seed 2 (50 %), single-task air (1) at trial 8 (50 %)": "seed 2 (50 %), at trial 8 (50 %)",
        "trees air (1)": "trees air (1)",
    }.items():
        against: Any = SimpleNamespace(name=name)
        assert where(task, against) == said
