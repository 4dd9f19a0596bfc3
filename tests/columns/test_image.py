"""Pictures into bytes of one size, and every cell that is none."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pictures import BLUE, GREEN, RED, content, noise, picture
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from mtl_bento import table as tables
from mtl_bento.columns.image import ImageColumn
from mtl_bento.errors import SchemaError, SpecError
from mtl_bento.schema import Schema
from mtl_bento.wire import Reader, cells_to_table, rows_to_table, table_to_rows

COLUMN = ImageColumn(name="photo", size=(4, 6), grid=(2, 3))
WANTED = "give a JPEG, PNG or WebP of at most 50 megapixels."


def encoded(*cells: Any, column: ImageColumn = COLUMN) -> np.ndarray:
    return column.encode(pa.chunked_array([pa.array(list(cells), pa.binary())]))


def pixels(cell: bytes, column: ImageColumn = COLUMN) -> np.ndarray:
    """Return the pixels [rows, columns, 3] that a cell is encoded into."""
    (row,) = encoded(cell, column=column)
    assert row[-1] == 1
    return row[:-1].reshape(*column.size, 3)


def learned(*sizes: tuple[int, int], **options: Any) -> ImageColumn:
    """Return the column learned from pictures of so many rows and columns."""
    cells = [content(Image.new("RGB", (columns, rows))) for rows, columns in sizes]
    return ImageColumn.chosen("photo", pa.chunked_array([cells]), options)


def refused(cell: Any) -> str:
    with pytest.raises(SchemaError) as caught:
        encoded(noise(0), None, cell)
    assert caught.value.detail[0]["loc"] == ["rows", 2, "photo"]
    message = str(caught.value)
    assert message.startswith("Column 'photo', row 2: a file of ")
    assert "\n" not in message
    assert message.endswith(WANTED)
    return message


def png(rows: int, columns: int) -> bytes:
    """Return a PNG of a few bytes whose header promises a size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(("kind", "slack"), [("PNG", 0), ("JPEG", 3), ("WEBP", 3)])
def test_a_picture_becomes_its_colours_row_by_row_and_a_one(kind: str, slack: int) -> None:
    found = pixels(content(picture(40, 60, left=(200, 30, 30), right=(30, 30, 200)), kind, quality=100)).astype(int)
    for half, colour in ((found[:, :2], (200, 30, 30)), (found[:, 4:], (30, 30, 200))):
        assert np.abs(half - colour).max() <= slack


def test_missing_cells_are_zeros_whatever_they_are_missing_as() -> None:
    assert not encoded(None, b"").any()
    assert not COLUMN.encode(pa.chunked_array([pa.nulls(2)])).any()
    assert not COLUMN.encode(pa.chunked_array([["", None]])).any()


def test_a_picture_is_stretched_to_the_size() -> None:
    for rows, columns in ((400, 60), (4, 600), (40, 6), (2, 2)):
        assert pixels(content(picture(rows, columns)))[:, [0, -1]].tolist() == [[list(RED), list(BLUE)]] * 4


def test_one_pixel_and_a_line_are_pictures() -> None:
    for rows, columns in ((1, 1), (5000, 1), (1, 5000)):
        assert (pixels(content(Image.new("RGB", (columns, rows), (1, 2, 3)))) == (1, 2, 3)).all()


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        (Image.new("L", (9, 9), 77), (77, 77, 77)),
        (Image.fromarray(np.full((9, 9), 77 * 256, np.uint16)), (77, 77, 77)),  # 16 bits
        (Image.new("1", (9, 9), 1), (255, 255, 255)),
        (Image.new("RGBA", (9, 9), (10, 20, 30, 0)), (255, 255, 255)),
        (Image.new("RGBA", (9, 9), (10, 20, 30, 255)), (10, 20, 30)),
        (Image.new("LA", (9, 9), (0, 51)), (204, 204, 204)),  # a fifth of black over white
    ],
    ids=["grey", "grey of 16 bits", "black and white", "transparent", "opaque", "half transparent"],
)
def test_every_mode_becomes_colours_on_white(image: Image.Image, colour: tuple[int, int, int]) -> None:
    assert (pixels(content(image)) == colour).all()


def test_a_palette_and_the_colours_of_print_are_read() -> None:
    palette = picture(9, 9, left=GREEN, right=GREEN).convert("P", palette=Image.Palette.ADAPTIVE)
    assert (pixels(content(palette)) == GREEN).all()
    print_ = pixels(content(Image.new("CMYK", (9, 9), (0, 255, 255, 0)), "JPEG"))
    np.testing.assert_allclose(print_.astype(int), np.broadcast_to(RED, (4, 6, 3)), atol=2)


def test_a_picture_is_turned_as_its_camera_was_held() -> None:
    upright = picture(6, 4, left=RED, right=RED, top=GREEN)  # green above
    on_its_side = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me by 90 degrees clockwise"
    for kind in ("PNG", "WEBP"):
        turned = content(on_its_side, kind, exif=exif, lossless=True)
        assert pixels(turned).tolist() == pixels(content(upright, kind, lossless=True)).tolist()
    assert learned((4, 6)).size == (32, 32)
    tall = content(Image.new("RGB", (160, 64)), "JPEG", exif=exif)
    assert ImageColumn.fit("photo", pa.chunked_array([[tall]])).size == (192, 64)


def test_exif_data_that_cannot_be_read_is_passed_over() -> None:
    broken = content(picture(4, 6), "PNG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert pixels(broken).tolist() == pixels(content(picture(4, 6))).tolist()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_cut_off_anywhere_is_refused_by_its_row(kind: str) -> None:
    whole = noise(0, kind=kind)
    for share in (0.01, 0.02, 0.1, 0.5, 0.9, 0.97):
        refused(whole[: int(len(whole) * share)])


def test_damaged_pictures_are_refused_or_read_but_never_fail_otherwise() -> None:
    rng, refusals = np.random.default_rng(0), []
    for kind in ("PNG", "JPEG", "WEBP"):
        whole = noise(0, kind=kind)
        for _ in range(60):
            damaged = bytearray(whole)
            damaged[int(rng.integers(len(whole)))] = int(rng.integers(256))
            try:
                assert encoded(bytes(damaged)).shape == (1, 4 * 6 * 3 + 1)
            except SchemaError as error:
                refusals.append(str(error))
    assert 0 < len(refusals) < 180
    assert all(refusal.startswith("Column 'photo', row 0: a file of ") and "\n" not in refusal for refusal in refusals)


@pytest.mark.parametrize(
    "cell",
    [b"\xff", b"hello", b"<svg/>", content(picture(), "GIF"), content(picture(), "BMP"), content(picture(), "PPM")],
)
def test_other_formats_are_refused(cell: bytes) -> None:
    assert "bytes is no picture; " in refused(cell)


def test_a_hundred_megapixels_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    vp8x = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (15_999).to_bytes(3, "little") * 2
    body = b"WEBP" + vp8x + content(picture(), "WEBP")[12:]
    webp = b"RIFF" + struct.pack("<I", len(body)) + body
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("decoded"))
    for cell, words in (
        (png(10_000, 10_000), "has 100 megapixels"),
        (png(2**31 - 1, 2**31 - 1), "has 4,611,686,014,132 megapixels"),
        (webp, "has far more than 50 megapixels"),
    ):
        with pytest.raises(SchemaError, match=f"row 0: a file of {len(cell)} bytes {words}; {WANTED}"):
            encoded(cell)


def test_fifty_megapixels_are_the_limit() -> None:
    assert "cannot be decoded (image file is truncated" in refused(png(5_000, 10_000))  # let through: it holds no data
    assert "has 50 megapixels" in refused(png(5_001, 10_000))


def test_the_size_is_the_median_picture_or_up_to_twice_that_in_steps_of_32_and_at_most_192() -> None:
    assert (learned((120, 160)).size, learned((120, 160)).grid) == ((160, 192), (5, 6))
    assert (learned((3000, 4000)).size, learned((3000, 4000)).grid) == ((160, 192), (5, 6))
    assert (learned((28, 28)).size, learned((28, 28)).grid) == ((64, 64), (2, 2))
    assert (learned((80, 60)).size, learned((80, 60)).grid) == ((160, 128), (5, 4))
    assert learned((10, 1000)).size == (32, 192)
    assert learned((32, 32), (64, 96), (4000, 4000)).size == (128, 192)
    assert learned((28, 28), backbone="pixels").size == (32, 32)


def test_the_user_chooses_size_grid_and_backbone() -> None:
    column = learned((120, 160), size=[480, 640], backbone="pixels")
    assert (column.size, column.backbone) == ((480, 640), "pixels")
    assert column.grid == (6, 9)  # 15 x 20 would be more than 64 cells
    assert learned((120, 160), grid=[15, 20]) == learned((120, 160)).model_copy(update={"grid": (15, 20)})
    with pytest.raises(
        SpecError, match="Input 'photo': image has no option 'sise'; did you mean 'size'\\? Allowed: back"
    ):
        learned((9, 9), sise=[64, 64])
    with pytest.raises(SpecError, match=r"^Input 'photo': size\.0: Input should be greater than or equal to 1\.$"):
        learned((9, 9), size=[0, 64])


def test_a_column_without_any_picture_teaches_nothing() -> None:
    with pytest.raises(
        SchemaError, match=r"Column 'photo' holds no picture; leave it out with `ignore:` in mtl.yaml\."
    ):
        ImageColumn.fit("photo", pa.chunked_array([pa.array([None, b""])]))


def test_every_picture_is_a_block_of_its_own() -> None:
    schema = Schema(columns=(COLUMN, COLUMN.model_copy(update={"name": "back: 2", "size": (2, 2)})))
    blocks = schema.encode(pa.table({"photo": [noise(0), None], "back: 2": [None, noise(1)]}))
    shapes = {name: (block.shape, block.dtype, block[:, -1].tolist()) for name, block in blocks.items()}
    assert shapes == {"image:photo": ((2, 73), np.uint8, [1, 0]), "image:back: 2": ((2, 13), np.uint8, [0, 1])}
    assert schema.max_rows == 64


def test_paths_are_relative_to_the_table_and_read_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for place in range(2):
        (tmp_path / "pictures" / f"{place}.png").write_bytes(noise(place))
    tables.write(pa.table({"photo": ["pictures/1.png", None, str(tmp_path / "pictures/0.png")]}), tmp_path / "t.csv")
    table = tables.read(tmp_path / "t.csv")
    schema = Schema(columns=(COLUMN,))
    (block,) = schema.encode(table).values()
    np.testing.assert_array_equal(block, encoded(noise(1), None, noise(0)))
    assert table_to_rows(table, schema)[1:] == [{}, {"photo": base64.b64encode(noise(0)).decode()}]
    np.testing.assert_array_equal(schema.encode(table.slice(2))["image:photo"], block[2:])


def test_a_path_without_a_file_is_refused_by_its_row() -> None:
    with pytest.raises(SchemaError, match=r"row 1: 'no/such\.jpg' is no file that can be read \(No such file or direc"):
        COLUMN.encode(pa.chunked_array([[None, "no/such.jpg"]]))
    with pytest.raises(SchemaError, match=r"row 0: 'a\\x00b' is no file that can be read \(embedded null byte\)"):
        COLUMN.encode(pa.chunked_array([["a\0b"]]))


def test_base64_stands_for_bytes_in_tables_of_text(tmp_path: Path) -> None:
    tables.write(pa.table({"photo": [noise(0), noise(1, kind="JPEG"), noise(2, kind="WEBP")]}), tmp_path / "t.csv")
    back = tables.read(tmp_path / "t.csv")
    assert pa.types.is_string(back["photo"].type)
    expected = encoded(noise(0), noise(1, kind="JPEG"), noise(2, kind="WEBP"))
    np.testing.assert_array_equal(Schema(columns=(COLUMN,)).encode(back)["image:photo"], expected)


# Requests

SCHEMA = Schema(columns=(COLUMN,))


def ask(*cells: Any) -> list[tuple[Any, ...]]:
    return Reader(SCHEMA).read(json.dumps({"rows": [{"photo": cell} for cell in cells]}).encode())


def complaint(cell: Any) -> str:
    with pytest.raises(SchemaError) as caught:
        ask(None, cell)
    assert caught.value.detail[0]["loc"] == ["rows", 1, "photo"]
    return str(caught.value)


def text_of(cell: bytes) -> str:
    return base64.b64encode(cell).decode()


def test_a_request_holds_base64_with_or_without_a_data_url() -> None:
    cells = ask(text_of(noise(0)), None, f"data:image/jpeg;base64,{text_of(noise(1, kind='JPEG'))}")
    (block,) = SCHEMA.encode(cells_to_table(cells, SCHEMA)).values()
    np.testing.assert_array_equal(block, encoded(noise(0), None, noise(1, kind="JPEG")))


def test_a_picture_of_a_request_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[Any] = []
    monkeypatch.setattr("PIL.ImageOps.exif_transpose", lambda image: image)
    load = Image.Image.convert

    def count(image: Image.Image, *args: Any, **options: Any) -> Any:
        decoded.append(image)
        return load(image, *args, **options)

    monkeypatch.setattr(Image.Image, "convert", count)
    table = rows_to_table([{"photo": text_of(noise(0))}, {"photo": text_of(noise(1))}], SCHEMA)
    SCHEMA.encode(table)
    assert len(decoded) == 2


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (5, "5 is not a picture; send a JPEG, PNG or WebP in base64, or null"),
        ("img/1.jpg", "'img/1.jpg' is not a picture; send a JPEG"),
        ("", "'' is not a picture"),
        ("/9j/=", "the picture cannot be decoded"),
        ("/9j/é", "is not a picture"),
        ("data:image/png;base64,AAAA", "the picture is no picture"),
        (text_of(noise(0)[:700]), "the picture cannot be decoded (image file is truncated"),
        (
            text_of(png(10_000, 10_000)),
            "the picture has 100 megapixels; send a JPEG, PNG or WebP of at most 50 megapixels",
        ),
        ([1, 2], "is not a picture"),
    ],
)
def test_a_broken_picture_is_its_own_rows_400(cell: Any, words: str) -> None:
    message = complaint(cell)
    assert message.startswith("rows[1].photo: ")
    assert words in message
    assert "\n" not in message


def test_a_request_with_pictures_holds_at_most_64_rows() -> None:
    assert len(ask(*[None] * 64)) == 64
    with pytest.raises(SchemaError, match=r"^rows: there are 65 rows; send at most 64 in one request$"):
        ask(*[None] * 65)
    assert rows_to_table([{}] * 130, SCHEMA).num_rows == 130


def test_the_documentation_of_the_api_says_base64() -> None:
    assert TypeAdapter(COLUMN.wire_type()).json_schema() == {
        "type": "string",
        "contentEncoding": "base64",
        "contentMediaType": "image/*",
    }


def test_pixels_of_another_size_are_no_picture() -> None:
    wire: TypeAdapter[bytes] = TypeAdapter(COLUMN.model_copy(update={"size": (6, 4)}).wire_type())
    with pytest.raises(SchemaError, match="is no picture"):
        encoded(wire.validate_python(text_of(noise(0))))
    with pytest.raises(ValidationError):
        wire.validate_python(text_of(content(picture(6, 4), "PPM")))


def test_made_up_pictures_are_noise() -> None:
    drawn = COLUMN.draw(np.random.default_rng(3))
    image = Image.open(io.BytesIO(base64.b64decode(drawn)))
    assert (image.format, image.size) == ("PNG", (8, 8))
    assert len(np.unique(np.asarray(image))) > 100
