"""Features kept on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mtl_bento_search.features import FeatureCache

KEY = "ab" + "0" * 62
ROWS = torch.tensor([[1.0, float("nan")], [3.0, 4.0]])


def never() -> Tensor:
    raise AssertionError("computed again")


def test_rows_are_kept_under_their_key_and_found_by_the_next_run(tmp_path: Path) -> None:
    torch.testing.assert_close(FeatureCache(tmp_path)(KEY, lambda: ROWS), ROWS, equal_nan=True)
    found = FeatureCache(tmp_path)(KEY, never)
    torch.testing.assert_close(found, ROWS, equal_nan=True, rtol=0, atol=0)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.safetensors")] == [
        f"ab/{KEY}.safetensors"
    ]


def test_an_interrupted_computation_leaves_nothing_and_the_parts_before_it(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    cache(KEY, lambda: ROWS)

    def interrupted() -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache("cd" + KEY[2:], interrupted)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1
    cache(KEY, never)


@pytest.mark.parametrize("content", [b"", b"cut off", b"\x02\x00\x00\x00\x00\x00\x00\x00{}"])
def test_a_damaged_file_is_computed_again_and_replaced(tmp_path: Path, content: bytes) -> None:
    cache = FeatureCache(tmp_path)
    cache(KEY, lambda: ROWS)
    (tmp_path / "ab" / f"{KEY}.safetensors").write_bytes(content)
    torch.testing.assert_close(cache(KEY, lambda: ROWS + 1), ROWS + 1, equal_nan=True)
    torch.testing.assert_close(cache(KEY, never), ROWS + 1, equal_nan=True)


def test_where_nothing_can_be_written_features_are_computed(tmp_path: Path) -> None:
    (tmp_path / "features").write_text("a file where the folder would be")
    torch.testing.assert_close(FeatureCache(tmp_path / "features")(KEY, lambda: ROWS), ROWS, equal_nan=True)
