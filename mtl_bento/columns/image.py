"""Pictures: JPEG, PNG or WebP, decoded whole and brought to one size, as bytes of red, green and blue.

What a picture looks like is settled here, once, for training and serving: turned as its EXIF data says, transparent
parts white, grey as equal shares of the colours, stretched to the column's size. Decoding needs Pillow.

Letters: B rows.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import importlib.util
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, PlainValidator, ValidationInfo, WithJsonSchema

from mtl_bento.columns._base import COLUMNS, Column
from mtl_bento.errors import MissingExtraError, SchemaError
from mtl_bento.table import cell_error, located, plain, type_error

LONGEST = 192
"""Pixels of the longer side at most, where the user gives no size."""
ENLARGED = 2.0
"""How many times as large a small picture is made at most, for a backbone that was trained with larger things."""
OWN = "pixels"
"""The backbone that is none, which gains nothing by it."""
STEP = 32
"""Pixels that a default size is a multiple of, and that a default position stands for: the stride of the backbones."""
CELLS = 64
"""Positions of a default grid at most."""
MOST_PIXELS = 50_000_000
"""A larger picture is refused before it is decoded: a few kilobytes can hold gigabytes of one colour."""
MOST_TOGETHER = 200_000_000
"""Pixels that the pictures of one request may be decoded to together: 7 seconds of the slowest format."""
WANTED = "give a JPEG, PNG or WebP of at most 50 megapixels"
PIXELS = "pixels"
"""What they are called in the context of a request."""
ORIENTATION = 0x0112
"""EXIF's tag of how the camera was held; from 5 on, rows and columns change places."""

Pixels = Annotated[int, Field(ge=1, le=4096)]
Side = Annotated[int, Field(ge=1)]


class ImageColumn(Column):
    """Pictures, as bytes or as paths of files relative to the table."""

    kind: Literal["image"] = "image"
    dtype: ClassVar[Any] = np.uint8
    max_rows: ClassVar[int] = 64

    backbone: str = "efficientnet_lite0"
    """The kind of frozen network that reads the pictures, with ":" and the path of its weights where it has no package.

    "pixels" is none.
    """
    size: tuple[Pixels, Pixels]
    """Rows and columns of pixels that every picture is brought to."""
    grid: tuple[Side, Side]
    """Rows and columns of the positions that a network sees."""

    @property
    def block(self) -> str:
        """A block of its own."""
        return f"image:{self.name}"

    @property
    def n_features(self) -> int:
        """Three bytes a pixel, and one that says whether there is a picture."""
        return self.size[0] * self.size[1] * 3 + 1

    @property
    def requires(self) -> tuple[str, ...]:
        """Pillow."""
        return ("pillow",)

    @classmethod
    def fit(cls, name: str, values: pa.ChunkedArray) -> Self:
        """Return the column with up to twice the size of the median training picture, its longer side at most 192.

        Raises SchemaError naming the first cell that is no picture, MissingExtraError without Pillow.
        """
        return cls.chosen(name, values, {})

    @classmethod
    def chosen(cls, name: str, values: pa.ChunkedArray, options: Mapping[str, Any]) -> Self:
        """Return the column; a chosen size decides on the grid too, where none is chosen."""
        sizes = np.array([size for _, size in _each(values, name, _size_of) if size is not None])
        if not len(sizes):
            raise SchemaError(f"Column {name!r} holds no picture; leave it out with `ignore:` in mtl.yaml.")
        most = 1.0 if options.get("backbone") == OWN else ENLARGED
        fields = {"name": name, "size": _default_size(np.median(sizes, axis=0), most), "grid": (1, 1)}
        sized = cls.with_options(fields, options)
        return sized if "grid" in options else sized.model_copy(update={"grid": _default_grid(sized.size)})

    @classmethod
    def located(cls, values: pa.ChunkedArray, folder: Path) -> pa.ChunkedArray:
        """Return paths as paths from the table's folder; bytes as they are."""
        few = plain(values.slice(0, 1))
        if not pa.types.is_large_string(few.type) or base64_of(few[0].as_py() or "") is not None:
            return values
        return located(values, folder)

    def encode(self, values: pa.ChunkedArray) -> np.ndarray:
        """Return uint8 [B, rows * columns * 3 + 1]: red, green, blue, row by row, then 1; all 0 where missing.

        Raises SchemaError naming the row of the first cell that is no picture, or has more than 50 megapixels.
        """
        encoded = np.zeros((len(values), self.n_features), dtype=np.uint8)
        for row, pixels in _each(values, self.name, self._pixels):
            if pixels is not None:
                encoded[row, :-1] = np.frombuffer(pixels, dtype=np.uint8)
                encoded[row, -1] = 1
        return encoded

    def wire_type(self) -> Any:
        """Return base64 text of a JPEG, PNG or WebP, "data:" before it allowed; it is validated into its pixels."""
        schema = {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/*"}
        return Annotated[Any, PlainValidator(self._received), WithJsonSchema(schema)]

    def arrow_type(self) -> pa.DataType:
        """Return bytes."""
        return pa.large_binary()

    def sent(self, values: pa.ChunkedArray) -> pa.ChunkedArray:
        """Return the bytes of the files; raises SchemaError naming the row of a path without one."""
        contents = [content for _, content in _each(values, self.name, lambda content: content)]
        return pa.chunked_array([pa.array(contents, pa.large_binary())])

    def draw(self, rng: np.random.Generator) -> str:
        """Return a small pattern of random colours, as a PNG in base64."""
        pattern = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        file = io.BytesIO()
        _pillow().Image.fromarray(pattern).save(file, "PNG")
        return base64.b64encode(file.getvalue()).decode()

    def describe(self) -> str:
        """Return "192 x 192 pixels, 6 x 6 cells, for efficientnet_lite0"."""
        pixels, cells = (f"{rows} x {columns}" for rows, columns in (self.size, self.grid))
        return f"{pixels} pixels, {cells} cells, for {self.backbone.partition(':')[0]}"

    @property
    def _header(self) -> bytes:
        """What decoded pixels begin with: that of a PPM file of the column's size."""
        return b"P6\n%d %d\n255\n" % self.size[::-1]

    def _received(self, value: Any, info: ValidationInfo) -> bytes:
        """Return a picture of a request as a PPM file of its pixels, so that it is decoded once, before the batch.

        `info.context`, where the request has one, counts the pixels that its pictures took.
        """
        content = base64_of(value) if isinstance(value, str) else None
        if content is None:
            raise ValueError("is not a picture; send a JPEG, PNG or WebP in base64, or null")
        try:
            return self._header + self._pixels(content, spent=info.context)
        except _BrokenError as error:
            raise ValueError(
                f"the picture {error}; send a JPEG, PNG or WebP of at most 50 megapixels, or null"
            ) from None

    def _pixels(self, content: bytes, *, spent: dict[str, int] | None = None) -> bytes:
        if content.startswith(self._header) and len(content) == len(self._header) + self.n_features - 1:
            return content[len(self._header) :]
        with _opened(content) as picture:
            # A JPEG is decoded at an eighth to a half of its size where that is still twice what is wanted.
            picture.draft(None, (2 * max(self.size), 2 * max(self.size)))
            if spent is not None:
                columns, rows = picture.size
                spent[PIXELS] = spent.get(PIXELS, 0) + columns * rows
                if spent[PIXELS] > MOST_TOGETHER:
                    raise _BrokenError(f"brings the request beyond {MOST_TOGETHER / 1e6:,.0f} megapixels: send fewer")
            return bytes(_brought_to(picture, self.size).tobytes())


# Cells


class _BrokenError(Exception):
    """Why a picture cannot be used, to be followed by what is wanted."""


def base64_of(text: str) -> bytes | None:
    """Return the bytes of a picture in base64, with or without "data:image/...;base64," before it; None for no such."""
    data = re.match(r"data:image/[\w.+-]+;base64,", text)
    start = data.end() if data else 0
    if not data and not text.startswith(("/9j/", "iVBORw0KGgo", "UklGR")):  # the marks of the formats
        return None
    try:
        return binascii.a2b_base64(text[start:].encode("ascii"), strict_mode=False)
    except (ValueError, UnicodeEncodeError):
        return None


def is_picture(content: bytes) -> bool:
    """Return whether bytes begin like a JPEG, PNG or WebP."""
    return _format_of(content) is not None


def _format_of(content: bytes) -> str | None:
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    marks = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG"}
    return next((name for mark, name in marks.items() if content.startswith(mark)), None)


def _each(values: pa.ChunkedArray, name: str, change: Any) -> Iterator[tuple[int, Any]]:
    """Yield the row and the changed content of each cell, None where it is missing; one is held at a time.

    Raises SchemaError naming the row of a cell that is no picture or no path of one.
    """
    cells = plain(values)
    kind = cells.type
    if not (pa.types.is_null(kind) or pa.types.is_large_string(kind) or pa.types.is_large_binary(kind)):
        raise type_error(name, kind, wanted="give pictures as bytes, or the paths of their files")
    for row, cell in enumerate(cells):
        value = cell.as_py()
        if not value:
            yield row, None
            continue
        try:
            content = _content(value)
            changed = change(content)
        except _BrokenError as error:
            raise cell_error(name, row, value, wrong=str(error), wanted=WANTED) from None
        yield row, changed


def _content(value: str | bytes) -> bytes:
    if isinstance(value, bytes):
        return value
    if (content := base64_of(value)) is not None:
        return content
    try:
        return Path(value).read_bytes()
    except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise _BrokenError(f"is no file that can be read ({reason})") from None


# Pillow


def _pillow() -> Any:
    """Return Pillow; raises MissingExtraError where it is not installed."""
    if importlib.util.find_spec("PIL") is None:
        raise MissingExtraError("Pictures need Pillow, which is not installed: pip install 'mtl-bento[images]'")
    import PIL.Image  # an extra, and for columns of pictures only
    import PIL.ImageOps

    return PIL


@contextlib.contextmanager
def _opened(content: bytes) -> Iterator[Any]:
    """Give a picture whose header was read and is within bounds; whatever goes wrong with it is a _BrokenError."""
    pillow = _pillow()
    found = _format_of(content)
    if found is None:
        raise _BrokenError("is no picture")
    try:
        with _reader(found)(io.BytesIO(content)) as picture:
            columns, rows = picture.size
            if columns * rows > MOST_PIXELS:
                raise _BrokenError(f"has {columns * rows / 1e6:,.0f} megapixels")
            yield picture
    except _BrokenError:
        raise
    except pillow.Image.DecompressionBombError:
        raise _BrokenError("has far more than 50 megapixels") from None
    except (
        Exception
    ) as error:  # each format's reader raises its own on what is damaged: syntax, struct, zlib, index, ...
        reason = f" ({str(error).splitlines()[0].rstrip('.')})" if isinstance(error, OSError) and str(error) else ""
        raise _BrokenError(f"cannot be decoded{reason}") from None


def _reader(found: str) -> Any:
    """Return Pillow's reader of a format.

    Not `Image.open`: it warns of large pictures, by a limit that is the whole process's, and knows forty more formats.
    """
    from PIL.JpegImagePlugin import JpegImageFile  # an extra
    from PIL.PngImagePlugin import PngImageFile
    from PIL.WebPImagePlugin import WebPImageFile

    return {"JPEG": JpegImageFile, "PNG": PngImageFile, "WEBP": WebPImageFile}[found]


def _orientation(picture: Any) -> int:
    with contextlib.suppress(Exception):  # EXIF data that cannot be read says nothing
        return int(picture.getexif().get(ORIENTATION, 1))
    return 1


def _size_of(content: bytes) -> tuple[int, int]:
    """Return rows and columns as they are looked at, read off the header."""
    with _opened(content) as picture:
        columns, rows = picture.size
        return (columns, rows) if _orientation(picture) >= 5 else (rows, columns)


def _brought_to(picture: Any, size: tuple[int, int]) -> Any:
    """Return the picture decoded, upright, on white, and stretched to `size` rows and columns."""
    image, ops = _pillow().Image, _pillow().ImageOps
    picture.load()
    upright = ops.exif_transpose(picture) if _orientation(picture) > 1 else picture
    colours = _colours(upright, image)
    if colours.size == size[::-1]:
        return colours
    return colours.resize(size[::-1], image.Resampling.BILINEAR, reducing_gap=3.0)


def _colours(picture: Any, image: Any) -> Any:
    if picture.has_transparency_data:
        white = image.new("RGBA", picture.size, "white")
        white.alpha_composite(picture.convert("RGBA"))
        return white.convert("RGB")
    if picture.mode.startswith("I"):  # 16 bits of grey, which `convert` would cut off at 255
        return image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    return picture.convert("RGB")


# Sizes


def _default_size(median: np.ndarray, most: float) -> tuple[int, int]:
    """Return rows and columns near `most` times the median's, both multiples of 32, none above 192."""
    scaled = median * min(most, LONGEST / median.max())
    rows, columns = (max(STEP, int(side / STEP + 0.5) * STEP) for side in scaled.tolist())
    return rows, columns


def _default_grid(size: tuple[int, int]) -> tuple[int, int]:
    """Return a position for each 32 pixels, at most 64 of them."""
    rows, columns = (max(1, side // STEP) for side in size)
    shrink = min(1.0, (CELLS / (rows * columns)) ** 0.5)
    return max(1, int(rows * shrink)), min(CELLS, max(1, int(columns * shrink)))


COLUMNS.register(ImageColumn)(ImageColumn)
