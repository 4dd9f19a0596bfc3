"""Composed pictures of handwritten digits: which digit is it, and where in the picture?

Each picture is 96 x 96 pixels: a background (a gradient with noise), up to five shapes that distract, and, but for one
picture in twenty, one handwritten digit of scikit-learn's (8 x 8 pixels, UCI 1998), cut to its ink, enlarged to 24 to
56 pixels, stretched, coloured, and laid over it. Nothing here is a photograph: the task is easy to check, not real.

A handwritten digit appears in several pictures, but in pictures of one part only: test pictures hold digits that no
training picture showed.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.datasets import load_digits

from mtl_bento_search.examples._rows import PARTS, asked, missing, parts, spaced

N_ROWS = 4_000
SIDE = 96
"""Pixels of a picture's rows and columns."""
NONE = 0.05
"""Share of pictures without a digit."""
HEIGHTS = (24, 56)
"""Pixels of a digit's ink, from top to bottom."""
STRETCH = (0.8, 1.25)
"""How much wider than it was written."""
INK = 4
"""Of 16: what counts as ink where a digit is cut."""
CONTRAST = 80
"""How far a digit's brightness is from that below it, of 255."""
COLOURS = 64
"""Colours of a picture: with all of them its file would be four times as large."""
SEED = 20130


def make(rows: int | None = None) -> pa.Table:
    """Return 4,000 pictures, or `rows` of them, the same on each call.

    Columns: `picture` (PNG), `digit` (0 to 9, null where there is none), `box` (centre x, centre y, width, height of
    its ink as shares of the picture, from the left and the top; null where there is none), `split`.

    Raises:
        MissingExtraError: where Pillow is not installed.
        SpecError: where `rows` is under 1.
    """
    chosen = spaced(N_ROWS, asked(rows))
    digits = load_digits()
    rng = np.random.default_rng(SEED)
    split = parts(N_ROWS, rng)
    held = parts(len(digits.images), rng)
    source = {part: np.flatnonzero(held == part) for part in PARTS}
    scenes = [_scene(row, digits.images, source[split[row]]) for row in chosen.tolist()]
    which = [which for _, which, _ in scenes]
    return pa.table(
        {
            "picture": pa.array([picture for picture, _, _ in scenes], pa.binary()),
            "digit": pa.array([None if w is None else int(digits.target[w]) for w in which], pa.int64()),
            "box": pa.array([box for _, _, box in scenes], pa.list_(pa.float32())),
            "split": pa.array(split[chosen]),
        }
    )


def _scene(row: int, images: np.ndarray, sources: np.ndarray) -> tuple[bytes, int | None, list[float] | None]:
    """Return a picture as PNG, which of the digits it shows, and the digit's box."""
    image, _ = _pillow()
    # A generator a row: a row is the same however many others are made.
    rng = np.random.default_rng((SEED, row))
    scene = _background(rng)
    which, box = None, None
    if rng.random() >= NONE:
        which = int(rng.choice(sources))
        ink = _enlarged(images[which], rng)
        top, left = (int(rng.integers(0, SIDE - size + 1)) for size in ink.shape)
        _lay(scene, ink, top, left, rng)
        rows, columns = ink.shape
        box = [(left + columns / 2) / SIDE, (top + rows / 2) / SIDE, columns / SIDE, rows / SIDE]
    picture = image.fromarray(scene.clip(0, 255).astype(np.uint8)).quantize(COLOURS, method=image.Quantize.FASTOCTREE)
    held = io.BytesIO()
    picture.save(held, format="PNG")
    return held.getvalue(), which, box


def _background(rng: np.random.Generator) -> np.ndarray:
    """Return a gradient between two colours with noise and shapes, float [96, 96, 3]."""
    image, draws = _pillow()
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1) - 0.5
    along = (x * np.cos(angle) + y * np.sin(angle) + 0.71) / 1.42
    first, last = rng.uniform(20, 235, (2, 3))
    scene = first + along[..., None] * (last - first)
    grain = rng.normal(0, rng.uniform(2, 14), (SIDE // 4, SIDE // 4, 1)).repeat(4, 0).repeat(4, 1)
    picture = image.fromarray((scene + grain).clip(0, 255).astype(np.uint8))
    draw = draws.Draw(picture)
    for _ in range(int(rng.integers(0, 6))):
        _shape(draw, rng)
    return np.asarray(picture, dtype=np.float64) + rng.normal(0, rng.uniform(0, 5), (SIDE, SIDE, 1))


def _shape(draw: Any, rng: np.random.Generator) -> None:
    """Draw a line, a rectangle, an ellipse or an arc, as large as digits are."""
    x, y = rng.uniform(0, SIDE, 2)
    width, height = rng.uniform(8, 48, 2)
    frame = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    colour = tuple(int(c) for c in rng.integers(0, 256, 3))
    thick = int(rng.integers(1, 6))
    kind = int(rng.integers(4))
    if kind == 0:
        draw.line(frame, fill=colour, width=thick)
    elif kind == 1:
        draw.rectangle(frame, fill=colour if rng.random() < 0.5 else None, outline=colour, width=thick)
    elif kind == 2:
        draw.ellipse(frame, fill=colour if rng.random() < 0.5 else None, outline=colour, width=thick)
    else:
        start = rng.uniform(0, 360)
        draw.arc(frame, start, start + rng.uniform(60, 270), fill=colour, width=thick)


def _enlarged(digit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a digit cut to its ink, enlarged and stretched: how much of each pixel is ink, 0 to 1."""
    image, _ = _pillow()
    rows, columns = (np.flatnonzero((digit >= INK).any(axis)) for axis in (1, 0))
    cut = digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height = int(rng.integers(HEIGHTS[0], HEIGHTS[1] + 1))
    width = round(height / cut.shape[0] * cut.shape[1] * rng.uniform(*STRETCH))
    shades = image.fromarray((cut * (255 / 16)).astype(np.uint8))
    return np.asarray(shades.resize((max(width, 4), height), image.Resampling.BICUBIC), dtype=np.float64) / 255


def _lay(scene: np.ndarray, ink: np.ndarray, top: int, left: int, rng: np.random.Generator) -> None:
    """Lay a digit over a scene in place, in a colour that stands out from what is below it."""
    below = scene[top : top + ink.shape[0], left : left + ink.shape[1]]
    colour = rng.uniform(0, 255, 3)
    while abs(colour.mean() - below.mean()) < CONTRAST:
        colour = rng.uniform(0, 255, 3)
    share = ((ink[..., None] - 0.15) / 0.5).clip(0, 1)  # sharper edges: an enlarged stroke is a blur
    below[:] = share * colour + (1 - share) * below


def _pillow() -> tuple[Any, Any]:
    """Return PIL's modules of pictures and of drawing; raises MissingExtraError where it is not installed."""
    try:
        from PIL import Image, ImageDraw  # not above: the list of examples needs no Pillow
    except ImportError:
        raise missing("pillow", example="scenes", extra="images") from None
    return Image, ImageDraw
