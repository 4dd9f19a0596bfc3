"""Pictures and texts served: a packaged run on loopback, asked by clients and with everything that people send."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from media import OPTIONS, SIDE, searched
from pictures import BLUE, RED, content, noise, picture
from PIL import Image
from servers import Server, environment_of

from mtl_bento import table as tables
from mtl_bento import wire
from mtl_bento.client import AsyncClient, Client
from mtl_bento.errors import SchemaError
from mtl_bento.model import Model
from mtl_bento_search.run import Run

pytestmark = pytest.mark.service

MEANT = "send a JPEG, PNG or WebP of at most 50 megapixels, or null"
NONE = "is not a picture; send a JPEG, PNG or WebP in base64, or null"
SPREADS = {"amount": 1.0}
"""The standard deviation of the number to predict."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A search over a picture, a text and a number."""
    return searched(tmp_path_factory.mktemp("scenes"), steps=300)


@pytest.fixture(scope="module")
def model(run: Run) -> Model:
    return run.model


@pytest.fixture(scope="module")
def home(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BentoML's stores with the run, as `mtl-bento package` puts it there."""
    home = tmp_path_factory.mktemp("bentoml")
    program = "from mtl_bento.cli import main; main()"
    command = [sys.executable, "-c", program, "package", str(run.folder), "--name", "scenes", "--version", "v1"]
    done = subprocess.run(command, env=environment_of(home), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return home


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    running = Server("scenes:v1", home=home, cwd=home)
    try:
        running.wait(200)
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


def in_base64(file: bytes) -> str:
    return base64.b64encode(file).decode()


def offline(model: Model, *photos: bytes | None) -> list[dict[str, Any]]:
    return model.rows(pa.table({"photo": pa.array(photos, pa.binary())}))


def post(server: Server, *rows: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{server.url}/predict", json={"rows": rows}, timeout=30)


def refused(server: Server, **row: Any) -> str:
    """Return the sentence with which a row is refused."""
    response = post(server, row)
    assert response.status_code == 400, response.text
    assert response.json()["type"] == "SchemaError"
    sentence: str = response.json()["error"]
    return sentence


# What is answered


def test_the_tables_rows_are_answered_over_http_as_offline(client: Client, run: Run, model: Model) -> None:
    path = run.folder.parent / "t.parquet"
    answered = client.predict(path)
    expected = model.predict(path)
    assert answered.columns.tolist() == list(OPTIONS["targets"])
    assert answered["colour"].tolist() == expected["colour"].tolist()
    assert len(set(answered["colour"])) == 3
    np.testing.assert_allclose(answered["amount"], expected["amount"], atol=1e-4)


def test_a_table_of_boxes_and_spans_comes_back_as_offline(client: Client, run: Run, model: Model) -> None:
    table = tables.read(run.folder.parent / "t.parquet")
    online, offline = client.predict(table, output="full"), model.predict(table, output="full")
    assert online.schema == offline.schema
    assert 0 < online["place"].null_count < len(online)  # where no object is likelier; x, y, w, h are there even so
    assert online["place__x"].null_count == 0
    for name in offline.column_names:
        one, other = online[name].combine_chunks(), offline[name].combine_chunks()
        if name == "names":
            assert '"label": "city"' in str(one.to_pylist())
            spans = [[[s["start"], s["end"]] for s in json.loads(cell)] for cell in one.to_pylist()]
            assert spans == [[[s["start"], s["end"]] for s in json.loads(cell)] for cell in other.to_pylist()]
        elif name == "place":
            np.testing.assert_allclose(one.drop_null().flatten(), other.drop_null().flatten(), atol=1e-4)
        elif pa.types.is_floating(other.type):
            np.testing.assert_allclose(one, other, atol=1e-4)
        else:
            assert one.equals(other)


def test_a_picture_is_sent_as_a_path_bytes_an_image_or_base64_and_answered_alike(
    server: Server, client: Client, model: Model, tmp_path: Path
) -> None:
    file = noise(3)
    (tmp_path / "a.png").write_bytes(file)
    image = Image.open(tmp_path / "a.png")
    rows: list[dict[str, Any]] = [
        {"photo": cell} for cell in (tmp_path / "a.png", str(tmp_path / "a.png"), file, image, in_base64(file))
    ]
    answers = client.predict(rows)
    plain = post(server, {"photo": in_base64(file)}, {"photo": "data:image/png;base64," + in_base64(file)}).json()
    assert wire.disagreement(answers + plain, offline(model, *[file] * 7), SPREADS) is None
    assert plain[0] != post(server, {"photo": None}).json()[0]


def test_a_picture_of_any_shape_and_mode_is_answered_as_what_it_shows(server: Server, model: Model) -> None:
    upright = picture(SIDE, SIDE, top=(0, 255, 0))
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held so that the picture is to be turned by 90 degrees
    clear = picture(SIDE, SIDE, left=(*RED, 255), right=(*BLUE, 0), mode="RGBA")
    shown = {
        "one pixel": (content(Image.new("RGB", (1, 1), RED)), content(Image.new("RGB", (SIDE, SIDE), RED))),
        "grey": (
            content(Image.new("L", (SIDE, SIDE), 80)),
            content(Image.new("RGB", (SIDE, SIDE), (80, 80, 80))),
        ),
        "alpha": (content(clear), content(picture(SIDE, SIDE, right=(255, 255, 255)))),
        "rotated": (
            content(upright.transpose(Image.Transpose.ROTATE_90), exif=turned.tobytes()),
            content(upright),
        ),
        "palette": (content(upright.quantize(4)), content(upright.quantize(4).convert("RGB"))),
        "WebP": (content(upright, "WEBP", lossless=True), content(upright)),
    }
    sent = [{"photo": in_base64(odd)} for odd, _ in shown.values()]
    answers = post(server, *sent).json()
    expected = offline(model, *(plain for _, plain in shown.values()))
    for name, answer, plain in zip(shown, answers, expected, strict=True):
        assert wire.disagreement([answer], [plain], SPREADS) is None, name
    assert len({json.dumps(answer["colour"]) for answer in answers}) > 1


TEXTS = {
    "empty": "",
    "blank": " \n\t",
    "long": "row 5 goes to Lima today " * 4000,
    "Chinese": "今天去利马",
    "Arabic": "يذهب إلى ليما اليوم",
    "Thai": "วันนี้ไปลิมา",
    "emoji": "👍🏽5 goes to Lima 🇵🇪👩‍👩‍👧",
    "combining": "row 5 goes to Li\u0301ma today",
    "zero": "row\x00 5 goes to Oslo today",
    "markup": "<b>row 5</b> goes to Lima & Oslo today",
}


def test_texts_of_any_length_and_script_are_answered_and_spans_count_characters(server: Server, model: Model) -> None:
    assert len(TEXTS["long"]) == 100_000
    answers = post(server, *({"note": text} for text in TEXTS.values())).json()
    assert wire.disagreement(answers, model.rows(pa.table({"note": list(TEXTS.values())})), SPREADS) is None
    found = dict(zip(TEXTS, (answer["names"]["value"] for answer in answers), strict=True))
    for name, spans in found.items():
        assert all(TEXTS[name][span["start"] : span["end"]] == span["text"] for span in spans)
    (span,) = found["emoji"]
    assert (span["label"], span["text"], span["start"]) == ("city", "Lima", 12)  # 👍🏽 are two characters
    assert found["empty"] == found["blank"] == []
    missing = post(server, {"note": None}).json()
    assert wire.disagreement(answers[:1], missing, SPREADS) is None


def test_what_targets_hold_is_not_looked_at(server: Server) -> None:
    given = {"photo": in_base64(noise(1)), "note": "row 1 goes to Oslo today"}
    bad = {"place": [40, 30, 200, 120], "names": ["O", "B-city"], "colour": 7, "amount": "much"}
    assert post(server, given | bad).json() == post(server, given).json()


# What is refused


PNG = noise(0)


@pytest.mark.parametrize(
    ("photo", "sentence"),
    [
        (in_base64(PNG[: len(PNG) // 2]), f"the picture cannot be decoded (image file is truncated); {MEANT}"),
        (in_base64(PNG[:20] + b"damaged" + PNG[27:]), f"the picture cannot be decoded; {MEANT}"),
        ("beach.png", f"'beach.png' {NONE}"),
        ("", f"'' {NONE}"),
        (7, f"7 {NONE}"),
        ("R0lGODlhAAAA", f"'R0lGODlhAAAA' {NONE}"),  # a GIF
    ],
)
def test_what_is_no_picture_is_400_with_a_sentence(server: Server, photo: Any, sentence: str) -> None:
    assert refused(server, photo=photo) == f"rows[0].photo: {sentence}"


def huge(side: int = 10_000) -> bytes:
    """A PNG of 100 megapixels, all of one colour: kilobytes."""
    return content(Image.new("1", (side, side)), optimize=False)


def test_a_hundred_megapixels_are_refused_at_once(server: Server) -> None:
    file = huge()
    assert len(file) < 100_000
    start = time.perf_counter()
    assert refused(server, photo=in_base64(file)) == f"rows[0].photo: the picture has 100 megapixels; {MEANT}"
    assert time.perf_counter() - start < 2  # decoding would take longer


def test_pictures_that_are_too_much_together_are_refused(model: Model) -> None:
    # 49 megapixels: four are within 200, five are not. Not over HTTP: a slow machine reaches the service's timeout.
    each = in_base64(content(Image.new("1", (7000, 7000))))
    with pytest.raises(SchemaError) as refusal:
        wire.Reader(model.schema).read(json.dumps({"rows": [{"photo": each}] * 5}).encode())
    meant = f"rows[4].photo: the picture brings the request beyond 200 megapixels: send fewer; {MEANT}"
    assert str(refusal.value) == meant


def test_a_request_has_at_most_64_rows_with_pictures(server: Server) -> None:
    assert post(server, *[{"photo": in_base64(PNG)}] * 64).is_success
    response = post(server, *[{"photo": in_base64(PNG)}] * 65)
    assert response.status_code == 400
    assert response.json()["error"] == "rows: there are 65 rows; send at most 64 in one request"


@pytest.mark.parametrize(
    ("note", "sentence"),
    [
        ("x" * 100_001, "rows[0].note: has 100,001 characters; send at most 100,000"),
        (7, "rows[0].note: "),
        (["a", "b"], "rows[0].note: "),
    ],
)
def test_what_is_no_text_is_400_with_a_sentence(server: Server, note: Any, sentence: str) -> None:
    assert refused(server, note=note).startswith(sentence)


def test_a_broken_picture_in_a_batch_is_its_own_callers_400(server: Server, model: Model) -> None:
    files = [noise(seed) for seed in range(24)]

    async def ask(client: AsyncClient, i: int) -> Any:
        broken = files[i][:60]
        return await client.predict([{"photo": in_base64(broken if i % 4 == 0 else files[i])}])

    async def crowd() -> list[Any]:
        async with AsyncClient(server.url) as client:
            return await asyncio.gather(*(ask(client, i) for i in range(len(files))), return_exceptions=True)

    expected = offline(model, *files)
    for i, answer in enumerate(asyncio.run(crowd())):
        if i % 4 == 0:
            assert isinstance(answer, SchemaError)
            assert str(answer).startswith("rows[0].photo: the picture cannot be decoded (")
        else:
            assert wire.disagreement(answer, [expected[i]], SPREADS) is None


def test_others_are_answered_while_a_large_picture_is_decoded(server: Server) -> None:
    large = content(Image.new("RGB", (5000, 5000)), "WEBP", quality=1)  # a large part of a second to decode

    async def both() -> tuple[float, float]:
        async with httpx.AsyncClient(timeout=60) as client:
            start = time.perf_counter()
            body = {"rows": [{"photo": in_base64(large)}]}
            slow = asyncio.create_task(client.post(f"{server.url}/predict", json=body))
            await asyncio.sleep(0.1)
            assert (await client.get(f"{server.url}/model")).is_success
            quick = time.perf_counter() - start
            assert (await slow).is_success
            return quick, time.perf_counter() - start

    quick, slow = asyncio.run(both())
    assert quick < slow / 2


# Without a package


def test_a_service_without_pillow_is_never_ready_and_says_what_to_install(home: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util\nfind = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, package=None: None if name == 'PIL' else find(name, package)\n"
    )
    running = Server(
        "scenes:v1", home=home, cwd=home, PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    )
    try:
        running.wait(503)
        answer = post(running, {"note": "row 1"})
        assert answer.status_code == 503
        assert "Pictures need Pillow, which is not installed: pip install 'mtl-bento[images]'" in running.log
    finally:
        running.stop()
