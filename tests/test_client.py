"""The client against a service that is a function: the worker that answers, without HTTP between."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pictures import content, noise, picture
from PIL import Image
from pyarrow import parquet

from mtl_bento import artifact, wire
from mtl_bento.client import AsyncClient, Client
from mtl_bento.columns.categorical import CategoricalColumn
from mtl_bento.columns.image import ImageColumn
from mtl_bento.errors import MtlBentoError, RequestError, SchemaError, SourceError, SpecError
from mtl_bento.guard import refusal_body
from mtl_bento.model import Model
from mtl_bento.schema import Schema
from mtl_bento.service import Worker, encode
from mtl_bento.sources import Served

URL = "http://service.test"
Handler = Callable[[httpx.Request], httpx.Response]


class Service:
    """Answers requests as the service does, and counts the rows of each."""

    def __init__(self, folder: Path) -> None:
        self.worker = Worker(folder)
        self.reader = wire.Reader(self.worker.schema)
        served = Served(folder, "small:v1", {}, "a test")
        self.about = self.worker.about(artifact.read_manifest(folder), served)
        self.sizes: list[int] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/model":
            return httpx.Response(200, content=self.about)
        assert request.url.path == "/predict"
        assert request.headers["content-type"] == "application/json"
        self.sizes.append(len(json.loads(request.content)["rows"]))
        try:
            return httpx.Response(200, content=encode(self.worker.answers(self.reader.read(request.content))))
        except MtlBentoError as error:
            return httpx.Response(error.status, json=refusal_body(error))


@pytest.fixture(scope="module")
def loaded(model_folder: Path) -> Service:
    return Service(model_folder)


@pytest.fixture
def service(loaded: Service) -> Service:
    loaded.sizes.clear()
    return loaded


@pytest.fixture
def client(service: Service) -> Client:
    return Client(URL, transport=httpx.MockTransport(service))


def client_of(handler: Handler) -> Client:
    return Client(URL, transport=httpx.MockTransport(handler))


@pytest.fixture
def frame(table: pa.Table) -> pd.DataFrame:
    frame = table.slice(0, 50).to_pandas()
    frame.index = pd.Index([f"row {i}" for i in range(50)], name="key")
    return frame


@pytest.mark.parametrize("output", ["labels", "full"])
def test_a_pandas_frame_comes_back_as_the_model_predicts_it(
    client: Client, model: Model, frame: pd.DataFrame, output: str
) -> None:
    # Columns, dtypes and index are the same; numbers are those of 32 bits on the way.
    pd.testing.assert_frame_equal(client.predict(frame, output=output), model.predict(frame, output=output), rtol=1e-5)


def test_labels_are_exactly_the_targets_in_their_own_types(client: Client, frame: pd.DataFrame) -> None:
    predicted = client.predict(frame)
    assert list(predicted.columns) == ["income", "分类", "hours.per week", "smoker"]
    assert predicted["smoker"].dtype == np.bool_
    assert predicted["hours.per week"].dtype == np.float64
    assert set(predicted["分类"]) <= {"低", "中", "高"}


def test_a_polars_frame_and_a_table_come_back_in_their_kind(client: Client, frame: pd.DataFrame) -> None:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    expected = client.predict(table)
    assert isinstance(expected, pa.Table)
    answered = client.predict(pl.from_arrow(table))
    assert isinstance(answered, pl.DataFrame)
    assert answered.to_dicts() == expected.to_pylist()


def test_a_path_is_read_and_columns_that_are_no_inputs_stay_here(
    client: Client, frame: pd.DataFrame, tmp_path: Path
) -> None:
    table = pa.Table.from_pandas(frame.assign(secret=1), preserve_index=False)
    parquet.write_table(table, tmp_path / "rows.parquet")
    pd.testing.assert_frame_equal(client.predict(tmp_path / "rows.parquet"), client.predict(table).to_pandas())


def test_rows_come_back_as_the_service_answers(client: Client) -> None:
    answers = client.predict([{"age": np.float32(39.5), "state": "CA", "when": pd.Timestamp("2024-05-02")}, {}])
    assert [list(answer) for answer in answers] == [["income", "分类", "hours.per week", "smoker"]] * 2
    assert answers[0]["income"].keys() == {"value", "probability", "probabilities"}
    assert isinstance(answers[0]["smoker"]["value"], bool)
    nothing = client.predict([{"age": float("nan"), "embedding": None, "when": pd.NaT}])
    assert wire.disagreement(nothing, answers[1:], {"hours.per week": 8.0}) is None


def test_no_rows_are_answered_by_no_answers(client: Client, service: Service) -> None:
    assert client.predict([]) == []
    assert service.sizes == []


def test_many_rows_go_out_in_parts_that_the_service_takes(client: Client, service: Service, table: pa.Table) -> None:
    rows = pa.concat_tables([table] * 4)  # 2,400
    answered = client.predict(rows)
    assert service.sizes == [1000, 1000, 400]
    assert answered.slice(600, 600)["income"].to_pylist() == answered.slice(0, 600)["income"].to_pylist()
    service.sizes.clear()
    assert len(client.predict([{"age": 1}] * 1001)) == 1001
    assert service.sizes == [1000, 1]


def test_a_refusal_is_raised_as_its_own_class_with_its_places(client: Client) -> None:
    with pytest.raises(SchemaError, match=r"^rows\[0\]\.age: 'old' is not a number; send a number or null$") as caught:
        client.predict([{"age": "old"}])
    assert caught.value.detail == [
        {"loc": ["rows", 0, "age"], "msg": "'old' is not a number; send a number or null", "type": "float_type"}
    ]
    with pytest.raises(SchemaError, match="did you mean 'age'"):
        client.predict([{"agee": 1}])


def test_a_refused_row_of_a_later_part_is_counted_from_the_callers_first(client: Client) -> None:
    rows: list[dict[str, Any]] = [{"age": 1}] * 1500
    rows[1200] = {"age": "x"}
    with pytest.raises(SchemaError, match=r"^rows\[1200\]\.age") as caught:
        client.predict(rows)
    assert caught.value.detail[0]["loc"] == ["rows", 1200, "age"]


def test_an_infinity_is_refused_before_it_is_sent(client: Client, service: Service) -> None:
    with pytest.raises(SchemaError, match="Infinity cannot be sent"):
        client.predict([{"age": float("inf")}])
    assert service.sizes == []


def test_a_table_without_any_input_is_refused_as_the_model_refuses_it(client: Client, model: Model) -> None:
    table = pa.table({"other": [1]})
    with pytest.raises(SchemaError) as here:
        model.predict(table)
    with pytest.raises(SchemaError) as there:
        client.predict(table)
    assert str(here.value) == str(there.value)


def test_an_unknown_output_is_refused(client: Client) -> None:
    with pytest.raises(SpecError, match="output 'all' is not known; allowed: 'labels', 'full'"):
        client.predict([{}], output="all")


# Pictures


class Gallery:
    """A service of pictures as a function: it keeps what it is sent and answers with the places of the rows."""

    def __init__(self) -> None:
        photo = ImageColumn(name="photo", size=(32, 32), grid=(1, 1))
        self.schema = Schema(columns=(photo, CategoricalColumn(name="word", levels=("a.png",))))
        self.reader = wire.Reader(self.schema)
        self.asked: list[str] = []
        self.sizes: list[int] = []
        self.rows: list[Any] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.path)
        if request.url.path == "/model":
            columns = {"labels": {"n": "int64"}, "full": {"n": "int64"}}
            schema = self.schema.model_dump(mode="json")
            return httpx.Response(200, json={"schema": schema, "max_rows": self.schema.max_rows, "columns": columns})
        try:
            cells = self.reader.read(request.content)
        except MtlBentoError as error:
            return httpx.Response(error.status, json=refusal_body(error))
        self.sizes.append(len(cells))
        self.rows += json.loads(request.content)["rows"]
        return httpx.Response(200, json=[{"n": {"value": len(self.rows)}} for _ in cells])


@pytest.fixture
def gallery() -> Gallery:
    return Gallery()


@pytest.fixture
def ask(gallery: Gallery) -> Client:
    return client_of(gallery)


def test_a_picture_is_sent_from_bytes_a_path_or_an_image(
    ask: Client, gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = noise(0)
    Path("a.png").write_bytes(file)
    text = base64.b64encode(file).decode()
    image = Image.open("a.png")
    rows = [{"photo": cell} for cell in (file, bytearray(file), Path("a.png"), text, None)]
    assert len(ask.predict([*rows, {"photo": image}])) == 6
    assert gallery.rows[:5] == [{"photo": text}] * 4 + [{"photo": None}]
    sent = Image.open(io.BytesIO(base64.b64decode(gallery.rows[5]["photo"])))
    np.testing.assert_array_equal(np.asarray(sent), np.asarray(image))
    assert gallery.asked == ["/predict"]  # nothing had to be known of the model


def test_a_text_that_is_a_path_is_a_file_for_inputs_of_pictures_only(
    ask: Client, gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.png").write_bytes(noise(0))
    ask.predict([{"photo": "a.png", "word": "a.png"}])
    assert gallery.rows == [{"photo": base64.b64encode(noise(0)).decode(), "word": "a.png"}]
    with pytest.raises(
        SchemaError, match=r"^'no\.png' cannot be read \(No such file or directory\); give the path of a pi"
    ):
        ask.predict([{"photo": "no.png"}])


def test_an_image_of_any_mode_goes_as_it_is_looked_at(ask: Client, gallery: Gallery) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.open(io.BytesIO(content(picture(40, 60), "JPEG", exif=exif)))
    ask.predict([{"photo": image} for image in (Image.new("CMYK", (9, 9)), Image.new("F", (9, 9)), turned)])
    table = wire.rows_to_table(gallery.rows, gallery.schema)
    (_, _, pixels) = gallery.schema.encode(table)["image:photo"][:, :-1].reshape(3, 32, 32, 3)
    assert pixels[0, 0, 0] > 200  # red is above, as the camera was held, not on the left
    assert pixels[0, -1, 0] > 200
    assert pixels[-1, 0, 2] > 200


def test_pictures_of_a_table_are_read_beside_it_and_sent_64_at_a_time(
    ask: Client, gallery: Gallery, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(noise(0, 4, 4))
    parquet.write_table(pa.table({"photo": ["a.png", None] * 50}), tmp_path / "t.parquet")
    answered = ask.predict(tmp_path / "t.parquet")
    assert len(answered) == 100
    assert gallery.sizes == [64, 36]
    assert gallery.rows[:2] == [{"photo": base64.b64encode(noise(0, 4, 4)).decode()}, {}]
    assert len(ask.predict([{"photo": noise(0, 4, 4)}] * 65)) == 65
    assert gallery.sizes[2:] == [64, 1]


def test_large_pictures_go_out_in_requests_that_services_take(
    ask: Client, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtl_bento.client.MOST_BYTES", 10_000)
    small, large = noise(0), noise(0, 90, 90)  # 4 kB and 33 kB in base64
    ask.predict([{"photo": cell} for cell in (small, small, small, large, small)])
    assert gallery.sizes == [2, 1, 1, 1]
    with pytest.raises(SchemaError, match=r"^rows\[3\]\.photo: the picture is no picture"):
        ask.predict([{"photo": cell} for cell in (small, small, small, "data:image/png;base64,AAAA")])


def test_a_busy_service_is_asked_again_after_the_time_it_names(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("mtl_bento.client.time.sleep", waits.append)
    busy = iter([httpx.Response(503, headers={"Retry-After": "3"}), httpx.Response(503), None])
    answers = client_of(lambda request: next(busy) or service(request)).predict([{}])
    assert len(answers) == 1
    assert waits == [3.0, 1.0]


def test_a_service_that_stays_busy_is_given_up_after_four_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtl_bento.client.time.sleep", lambda _: None)
    asked: list[httpx.Request] = []

    def busy(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(503, json={"error": "too many", "type": "RequestError", "detail": []})

    with pytest.raises(RequestError, match="too many"):
        client_of(busy).predict([{}])
    assert len(asked) == 4


@pytest.mark.parametrize("kind", ["NoSuchError", "Iterable", "nearest", None])
def test_an_error_of_a_class_that_is_not_ours_is_a_request_error(kind: str | None) -> None:
    reply = httpx.Response(400, json={"error": "no", "type": kind, "detail": []})
    with pytest.raises(RequestError, match=r"^no$"):
        client_of(lambda _: reply).model()


def test_a_server_that_is_not_ours_is_named() -> None:
    with pytest.raises(RequestError, match=r"http://service.test/model answered 404 and no JSON of ours"):
        client_of(lambda _: httpx.Response(404, text="<html>")).model()


def test_no_service_is_one_line_with_what_to_do() -> None:
    def refuse(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(SourceError, match=r"^No service answers at http://service.test \(refused\); start one by"):
        client_of(refuse).predict([{}])


@pytest.mark.parametrize("url", ["localhost:3000", "ftp://host", "http://", "", "http://a:b", "small:latest"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(SourceError, match="is no address of a service"):
        Client(url)


def test_the_asynchronous_client_answers_alike(client: Client, service: Service, frame: pd.DataFrame) -> None:
    async def ask() -> tuple[Any, Any, Any]:
        async with AsyncClient(URL, transport=httpx.MockTransport(service)) as asynchronous:
            rows = asynchronous.predict([{"age": 3}])
            return await asynchronous.predict(frame), await rows, await asynchronous.model()

    predicted, rows, about = asyncio.run(ask())
    pd.testing.assert_frame_equal(predicted, client.predict(frame))
    assert rows == client.predict([{"age": 3}])
    assert about == client.model()


def test_the_asynchronous_client_waits_and_refuses_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("mtl_bento.client.asyncio.sleep", sleep)
    busy = iter([httpx.Response(503, headers={"Retry-After": "2"}), httpx.Response(200, json=[{}])])

    async def ask() -> Any:
        async with AsyncClient(URL, transport=httpx.MockTransport(lambda _: next(busy))) as asynchronous:
            return await asynchronous.predict([{}])

    assert asyncio.run(ask()) == [{}]
    assert waits == [2.0]


def test_headers_of_the_caller_go_with_every_request(service: Service) -> None:
    seen: list[str] = []

    def note(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return service(request)

    with Client(URL + "/", headers={"Authorization": "Bearer x"}, transport=httpx.MockTransport(note)) as client:
        client.predict(pa.table({"age": [1.0]}))
    assert seen == ["Bearer x"] * 2


def test_importing_the_client_imports_neither_torch_nor_pyarrow() -> None:
    code = (
        "import sys, mtl_bento; mtl_bento.Client;"
        "print({'torch', 'pyarrow', 'bentoml', 'numpy', 'PIL'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("output", ["labels", "full"])
def test_intervals_and_sets_come_back_as_the_model_predicts_them(
    calibrated_model: Model, calibrated_folder: Path, table: pa.Table, output: str
) -> None:
    # Types too: the schema would differ where a list of labels came back as another.
    rows = table.slice(0, 40)
    answered = client_of(Service(calibrated_folder)).predict(rows, output=output)
    expected = calibrated_model.predict(rows, output=output)
    assert answered.schema == expected.schema
    pd.testing.assert_frame_equal(answered.to_pandas(), expected.to_pandas(), rtol=1e-5)
    if output == "full":
        assert {"income__set", "分类__set", "smoker__set", "hours.per week__lower", "hours.per week__upper"} < set(
            answered.column_names
        )
        assert answered.schema.field("smoker__set").type == pa.list_(pa.bool_())
