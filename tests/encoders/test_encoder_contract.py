"""What every kind of encoder promises, also kinds written tomorrow."""

from __future__ import annotations

import pytest

from mtl_bento.encoders._base import ENCODERS
from mtl_bento.encoders.categorical import CategoricalEncoderSpec
from mtl_bento.testing import check_encoder


@pytest.mark.parametrize("kind", ENCODERS.kinds())
def test_every_encoder_keeps_its_promises(kind: str) -> None:
    check_encoder(ENCODERS.spec_class(kind))


@pytest.mark.parametrize("one_hot_levels", [0, 256])
def test_categories_keep_their_promises_all_embedded_and_all_one_hot(one_hot_levels: int) -> None:
    check_encoder(CategoricalEncoderSpec(one_hot_levels=one_hot_levels))
