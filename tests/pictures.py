"""Pictures made here, in several formats and shapes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def picture(
    rows: int = 40, columns: int = 60, *, left: Any = RED, right: Any = BLUE, mode: str = "RGB", top: Any = None
) -> Image.Image:
    """Return a picture of two halves side by side; `top` is a colour of the upper quarter over both."""
    image = Image.new(mode, (columns, rows), left)
    image.paste(right, (columns // 2, 0, columns, rows))
    if top is not None:
        image.paste(top, (0, 0, columns, rows // 4))
    return image


def content(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return a picture as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(seed: int, rows: int = 24, columns: int = 40, kind: str = "PNG") -> bytes:
    """Return a picture of noise as the bytes of a file."""
    pixels = np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    return content(Image.fromarray(pixels), kind)
