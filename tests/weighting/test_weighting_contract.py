"""What every kind of weighting promises, also kinds written tomorrow."""

from __future__ import annotations

import pytest

from mtl_bento.testing import check_weighting
from mtl_bento.weighting._base import WEIGHTINGS


@pytest.mark.parametrize("kind", WEIGHTINGS.kinds())
def test_every_weighting_keeps_its_promises(kind: str) -> None:
    check_weighting(WEIGHTINGS.spec_class(kind))
