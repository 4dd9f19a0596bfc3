"""What every kind of head promises, also kinds written tomorrow."""

from __future__ import annotations

import pytest

from mtl_bento.heads._base import HEADS
from mtl_bento.testing import check_head


@pytest.mark.parametrize("kind", HEADS.kinds())
def test_every_head_keeps_its_promises(kind: str) -> None:
    check_head(HEADS.spec_class(kind))
