"""The report on who serves which target, and on the groups that were proposed."""

from __future__ import annotations

from typing import Any

from mtl_bento_search.report.sharing import groups, served

CANDIDATES = [
    {"name": "trial 3", "kind": "shared", "members": 5},
    {"name": "trees b", "kind": "trees", "members": 1},
    {"name": "a + b at trial 3", "kind": "group", "members": 5},
]


def result(**changes: Any) -> dict[str, Any]:
    shares = {"a": [0.25, 0.0, 0.75], "b": [0.0, 1.0, 0.0], "c": [1.0, 0.0, 0.0]}
    held = {
        "blend": {"candidates": CANDIDATES, "shares": shares},
        "groups": {
            "affinities": {"gradients": [[1.0, 0.5, -0.3], [0.5, 1.0, 0.0], [-0.3, 0.0, 1.0]]},
            "partitions": [
                {"groups": [["a", "b"], ["c"]], "losses": [0.4, 0.5, 0.6]},
                {"groups": [["a", "c"], ["b"]], "losses": [0.41, None, 0.61]},
            ],
        },
    }
    return held | changes


def test_each_target_names_who_serves_it_the_largest_share_first() -> None:
    page = str(served(result()))
    assert "a + b at trial 3 (75%, 5 folds), trial 3 (25%, 5 folds)" in page
    assert "trees b (100%)" in page
    # 300 units wide: three quarters first, less 1 that parts them.
    assert 'width="224' in page
    assert "networks on top of the trees" not in page  # the legend names the kinds that serve


def test_a_proposal_says_what_it_lost_and_what_of_it_serves() -> None:
    page = str(groups(result()))
    assert "+0.50" in page
    assert "-0.30" in page
    rows = page.split("<tr")
    first, second = (next(row for row in rows if title in row) for title in ("a + b | c", "a + c | b"))
    assert "0.4000" in first
    assert first.endswith(">a + b</div></td></tr>")
    assert "not trained" in second
    assert ">nothing<" in second


def test_nothing_is_said_of_sharing_where_nothing_was_proposed() -> None:
    assert groups(result(groups={"affinities": {}, "partitions": []})) is None
    assert served({}) is None
