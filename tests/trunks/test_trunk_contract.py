"""What every kind of trunk promises, also kinds written tomorrow."""

from __future__ import annotations

import pytest

from mtl_bento.testing import check_trunk
from mtl_bento.trunks._base import TRUNKS, TrunkSpec


@pytest.mark.parametrize("kind", TRUNKS.kinds())
def test_every_trunk_keeps_its_promises(kind: str) -> None:
    check_trunk(TRUNKS.spec_class(kind))


@pytest.mark.parametrize("kind", TRUNKS.kinds())
def test_padding_stays_zero_also_where_the_activation_has_a_slope_at_zero(kind: str) -> None:
    spec: TrunkSpec = TRUNKS.parse({"kind": kind, "activation": "silu"})
    check_trunk(spec)
