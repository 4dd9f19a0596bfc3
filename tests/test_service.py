"""The worker by itself, and servers on loopback asked by real clients."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from servers import ROOT, Server, bentoml_command, environment_of
from small import make_table

from mtl_bento import artifact, wire
from mtl_bento.client import AsyncClient, Client
from mtl_bento.errors import SchemaError
from mtl_bento.model import Model
from mtl_bento.service import Worker, encode, service_name
from mtl_bento.sources import Served

SPREADS = {"hours.per week": 8.0}
"""About the standard deviation of the small table's number to predict."""

JSON = {"Content-Type": "application/json"}


# The worker


@pytest.fixture(scope="module")
def worker(model_folder: Path) -> Worker:
    return Worker(model_folder)


def test_the_worker_passes_its_self_test_and_warms_up(worker: Worker) -> None:
    worker.self_test()
    worker.warm_up()


def test_a_calibrated_model_passes_its_self_test_and_says_what_its_answers_hold(
    calibrated_model: Model, calibrated_folder: Path, table: pa.Table
) -> None:
    worker = Worker(calibrated_folder)
    worker.self_test()
    rows = wire.table_to_rows(table.slice(0, 20), worker.schema)
    answers = worker.answers(wire.Reader(worker.schema).cells({"rows": rows}))
    assert answers == calibrated_model.rows(table.slice(0, 20))
    assert answers[0]["hours.per week"].keys() == {"value", "lower", "upper"}  # type: ignore[index]
    assert answers[0]["分类"].keys() == {"value", "probability", "probabilities", "set"}  # type: ignore[index]
    served = Served(calibrated_folder, "small:v1", {}, "a test")
    about = json.loads(worker.about(artifact.read_manifest(calibrated_folder), served))
    smoker, hours = about["tasks"][3], about["tasks"][2]
    assert (smoker["spec"]["threshold"], smoker["spec"]["interval"]) == (0.3, 0.9)
    assert smoker["calibration"][-1] == "'true' is answered from probability 0.3 on: rare, and best by F1"
    assert hours["calibration"][0].startswith("`lower` to `upper` holds the truth in 0.9 of the rows: ")
    assert about["columns"]["full"]["smoker__set"] == "list<item: bool>"
    assert f"- hours.per week: {hours['calibration'][0]}." in calibrated_model.card_text().splitlines()


def test_a_row_that_only_the_columns_refuse_harms_no_other_of_its_batch(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A column from elsewhere may be stricter than its request type: here one refuses ages over 100.
    column = type(worker.schema.columns[0])
    encode_cells = column.encode

    def stricter(self: Any, values: pa.ChunkedArray) -> np.ndarray:
        encoded = encode_cells(self, values)
        if (encoded > 100).any():
            row = int((encoded > 100).argmax())
            detail = [{"loc": ["rows", row, self.name], "msg": "is too old; send less", "type": "cell"}]
            raise SchemaError(f"Column {self.name!r}, row {row}: is too old; send less.", detail=detail)
        return encoded

    monkeypatch.setattr(column, "encode", stricter)
    cells = wire.Reader(worker.schema).cells({"rows": [{"age": 30}, {"age": 40}, {"age": 200}]})
    answers = worker.answers(cells)
    assert wire.disagreement(answers[:2], worker.answers(cells[:2]), SPREADS) is None  # type: ignore[arg-type]
    with pytest.raises(SchemaError, match=r"^rows\[2\]\.age: is too old; send less$") as caught:
        encode(answers)
    assert caught.value.detail[0]["loc"] == ["rows", 2, "age"]


@pytest.mark.parametrize(
    ("name", "service"), [("flights:v1", "flights"), ("a-b.c:v1", "a_b_c"), ("Flüge", "fl_ge"), ("分类", "multi_task")]
)
def test_a_service_is_named_after_its_model(name: str, service: str) -> None:
    assert service_name(Served(Path(), name, {}, "")) == service


def test_the_parent_process_imports_no_torch(model_folder: Path) -> None:
    code = (
        "import sys; from mtl_bento import service; print(service.MultiTaskService.name, 'torch' in sys.modules);"
        "print(hasattr(service, 'Nothing'))"
    )
    environment = {**os.environ, "MTL_BENTO_MODEL": str(model_folder)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "small False\nFalse\n"


# Servers on loopback


@pytest.fixture(scope="module")
def server(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Bento that plain `bentoml build` made of the newest model, served after a newer one was saved."""
    home = tmp_path_factory.mktemp("bentoml")
    save = (
        "import bentoml, shutil, sys; labels = {'framework': 'mtl-bento', 'run': 'small'}\n"
        "with bentoml.models.create(sys.argv[2], labels=labels) as stored:\n"
        "    shutil.copytree(sys.argv[1], stored.path, dirs_exist_ok=True)"
    )
    for step in ("old", "build", "new"):
        if step == "build":
            built = bentoml_command("build", "--version", "plain", home=home)
            assert built.returncode == 0, built.stdout + built.stderr
        else:
            command = [sys.executable, "-c", save, str(model_folder), f"small:{step}"]
            subprocess.run(command, env=environment_of(home), check=True)
    running = Server("small:plain", home=home, cwd=home)
    try:
        running.wait(200)
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


def post(server: Server, content: bytes | Iterator[bytes], **headers: str) -> httpx.Response:
    return httpx.post(f"{server.url}/predict", content=content, headers={**JSON, **headers}, timeout=30)


def metrics(server: Server, name: str) -> list[tuple[str, float]]:
    """The samples of a metric: labels and value."""
    found = re.findall(rf"^{name}\{{(.*)\}} (\S+)$", httpx.get(f"{server.url}/metrics").text, re.MULTILINE)
    return [(labels, float(value)) for labels, value in found]


def total(server: Server, name: str) -> float:
    return sum(value for _, value in metrics(server, name))


service = pytest.mark.service


@service
def test_a_bento_of_a_plain_build_keeps_its_model_when_a_newer_one_is_saved(server: Server, client: Client) -> None:
    assert client.model()["model"] == "small:old"
    assert post(server, b'{"rows": [{}]}').headers["x-model"] == "small:old"
    line = "Serving model small:old (the one that this Bento is pinned to). To choose another: MTL_BENTO_MODEL=TAG."
    assert server.log.count(line) == 1
    source = server.log_path.parent / "bentos/small/plain/src"
    assert {path.name for path in source.iterdir()} == {"mtl_bento", "bentofile.yaml"}


def unseen(n: int) -> pa.Table:
    """Rows that nobody trained on, with missing cells in every column, unseen categories and a column too few."""
    table = make_table(n, seed=7).drop_columns(["children"])
    states = [f"new {i}" if i % 7 == 0 else state for i, state in enumerate(table["state"].to_pylist())]
    table = table.set_column(table.column_names.index("state"), "state", pa.array(states, pa.string()))
    rng = np.random.default_rng(1)
    arrays = [pa.array(column.to_pylist(), column.type, mask=rng.random(n) < 0.1) for column in table.columns]
    return pa.table(arrays, names=table.column_names)


@service
def test_answers_over_http_equal_those_offline_on_a_thousand_rows(client: Client, model: Model) -> None:
    table = unseen(1000)
    rows = wire.table_to_rows(table, model.schema)
    assert wire.disagreement(client.predict(rows), model.rows(table), SPREADS) is None
    online, offline = client.predict(table, output="full"), model.predict(table, output="full")
    assert online.schema == offline.schema
    for name in offline.column_names:
        if pa.types.is_floating(offline[name].type):
            np.testing.assert_allclose(online[name].to_numpy(), offline[name].to_numpy(), atol=5e-4, rtol=0)
        else:
            assert online[name].equals(offline[name])


@service
def test_names_and_labels_in_any_script_go_through_http_and_the_client(client: Client, model: Model) -> None:
    frame = unseen(5).to_pandas()
    predicted = client.predict(frame)
    pd.testing.assert_frame_equal(predicted, model.predict(frame), rtol=1e-5)
    assert set(predicted["分类"]) <= {"低", "中", "高"}
    assert client.predict([{"state": "São Paulo", "вес, кг": 70}])[0]["分类"]["value"] in ("低", "中", "高")


@service
def test_requests_of_several_clients_are_answered_in_one_batch(server: Server) -> None:
    name = "bentoml_service_adaptive_batch_size"

    async def crowd() -> None:
        clients = [AsyncClient(server.url) for _ in range(16)]
        for _ in range(8):  # the first requests teach BentoML's dispatcher and are taken one by one
            await asyncio.gather(*(client.predict([{"age": 30}]) for client in clients))
        await asyncio.gather(*(client.close() for client in clients))

    batches, requests = total(server, f"{name}_count"), total(server, f"{name}_sum")
    asyncio.run(crowd())
    batches, requests = total(server, f"{name}_count") - batches, total(server, f"{name}_sum") - requests
    assert requests == 16 * 8
    assert batches < requests / 2


@service
def test_a_bad_row_is_its_own_callers_400_and_harms_nobody(server: Server) -> None:
    async def ask_for(client: AsyncClient, i: int) -> Any:
        return await client.predict([{"age": "old" if i % 4 == 0 else i}])

    async def crowd() -> list[Any]:
        async with AsyncClient(server.url) as client:
            return await asyncio.gather(*(ask_for(client, i) for i in range(40)), return_exceptions=True)

    for i, answer in enumerate(asyncio.run(crowd())):
        if i % 4 == 0:
            assert isinstance(answer, SchemaError)
            assert str(answer) == "rows[0].age: 'old' is not a number; send a number or null"
        else:
            assert answer[0]["income"]["value"] in ("<=50K", ">50K")


@service
@pytest.mark.parametrize(
    ("content", "kind", "sentence"),
    [
        (b'{"rows": [{"age": "1"}]}', "SchemaError", "rows[0].age: '1' is not a number; send a number or null"),
        (b'{"rows": [{"age": true}]}', "SchemaError", "rows[0].age: true is not a number; send a number or null"),
        (b'{"rows": [{"agee": 1}]}', "SchemaError", "rows[0].agee: there is no such name; did you mean 'age'?"),
        (b'{"rows": [{}], "rowz": 1}', "SchemaError", "rowz: there is no such name; did you mean 'rows'?"),
        (b'{"rows": []}', "SchemaError", 'rows: there is no row; send {"rows": [{...}, ...]} with at least one'),
        (
            json.dumps({"rows": [{}] * 1001}).encode(),
            "SchemaError",
            "rows: there are 1001 rows; send at most 1000 in one request",
        ),
        (
            b'{"rows": [{"age": NaN}]}',
            "RequestError",
            "The body holds NaN, which is not JSON; send a finite number, or null for a missing value.",
        ),
        (
            b'{"rows": [{"age": 1, "age": 2}]}',
            "RequestError",
            "The body gives the key 'age' twice in one object; give it once.",
        ),
    ],
)
def test_a_bad_request_is_400_with_a_sentence(server: Server, content: bytes, kind: str, sentence: str) -> None:
    response = post(server, content)
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/json"
    assert response.json()["error"] == sentence
    assert response.json()["type"] == kind


@service
def test_a_body_that_is_too_large_is_refused_by_its_length_and_by_its_chunks(server: Server) -> None:
    announced = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    announced.request("POST", "/predict", headers={**JSON, "Content-Length": str(33 * 2**20)})
    assert announced.getresponse().status == 413
    announced.close()

    def endless() -> Iterator[bytes]:
        for _ in range(34):
            yield b" " * 2**20

    with contextlib.suppress(httpx.WriteError):  # the server answers and closes before all is written
        assert post(server, endless()).status_code == 413
    assert post(server, b'{"rows": [{}]}').is_success


@service
def test_unknown_paths_leave_no_trace_in_the_metrics(server: Server) -> None:
    for i in range(20):
        assert httpx.get(f"{server.url}/nothing-{i}").status_code == 404
    assert "nothing-" not in httpx.get(f"{server.url}/metrics").text


@service
def test_the_model_is_described_with_its_tasks_schema_and_card(client: Client, model: Model) -> None:
    about = client.model()
    assert [(task["name"], task["kind"], task.get("classes")) for task in about["tasks"]] == [
        ("income", "binary", ["<=50K", ">50K"]),
        ("分类", "multiclass", ["中", "低", "高"]),
        ("hours.per week", "regression", None),
        ("smoker", "binary", [False, True]),
    ]
    assert about["schema"] == model.schema.model_dump(mode="json")
    assert about["card"] == model.card
    assert about["max_rows"] == 1000
    assert about["columns"]["labels"] == {
        "income": "string",
        "分类": "string",
        "hours.per week": "double",
        "smoker": "bool",
    }


@service
def test_bentomls_own_routes_and_client_work(server: Server) -> None:
    for path in ("/", "/livez", "/readyz", "/healthz", "/metrics", "/schema.json", "/docs.json"):
        assert httpx.get(f"{server.url}{path}").status_code == 200, path
    docs = httpx.get(f"{server.url}/docs.json").json()
    assert list(docs["components"]["schemas"]["Row"]["properties"])[:2] == ["age", "вес, кг"]
    page = httpx.get(f"{server.url}/").text
    for asset in re.findall(r"\./(static_content/[\w.-]+)", page):
        assert httpx.get(f"{server.url}/{asset}").status_code == 200
    code = (
        "import bentoml, sys\n"
        "with bentoml.SyncHTTPClient(sys.argv[1]) as client:\n"
        "    print(client.predict(rows=[{'age': 39}])[0]['income']['value'])"
    )
    done = subprocess.run([sys.executable, "-c", code, server.url], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("<=50K", ">50K")


@service
def test_the_log_holds_no_values_of_requests(server: Server) -> None:
    post(server, b'{"rows": [{"age": "value-of-a-caller"}]}')
    post(server, b'{"rows": [{"state": "value-of-a-caller"}]}')
    post(server, b"value-of-a-caller")
    httpx.get(f"{server.url}/value-of-a-caller")
    assert "value-of-a-caller" not in server.log
    assert "Traceback" not in server.log


def with_other_answers(folder: Path, to: Path) -> Path:
    """A model folder whose samples expect another number than the model answers; its checksums are right."""
    files = {name: (folder / name).read_bytes() for name in (artifact.MANIFEST, artifact.WEIGHTS, artifact.CARD)}
    samples = json.loads((folder / artifact.SAMPLES).read_bytes())
    samples["answers"][3]["hours.per week"]["value"] += 0.01
    artifact.write_folder(to, {**files, artifact.SAMPLES: artifact.to_json(samples)})
    return to


@service
def test_a_model_that_fails_its_self_test_is_never_ready_and_says_why(model_folder: Path, tmp_path: Path) -> None:
    folder = with_other_answers(model_folder, tmp_path / "other")
    server = Server("--arg", f"model={folder}", home=tmp_path, cwd=ROOT)
    try:
        server.wait(503)
        said = re.findall(r"^.*Not serving other: Model .* does not answer its self-test.*$", server.log, re.MULTILINE)
        assert len(said) == 1
        assert "Traceback" not in server.log
        response = post(server, b'{"rows": [{}]}')
        assert response.status_code == 503
        assert response.json()["type"] == "ArtifactError"
        assert "row 3, target 'hours.per week': value is" in response.json()["error"]
        assert httpx.get(f"{server.url}/model").json()["type"] == "ArtifactError"
        assert httpx.get(f"{server.url}/livez").status_code == 200
    finally:
        code = server.stop()
    assert code == 0


@service
def test_without_a_model_or_with_a_damaged_one_serving_ends_in_one_line(model_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "broken")
    (tmp_path / "broken" / artifact.WEIGHTS).write_bytes(b"")
    for arguments, sentence in (
        ((), "There is no packaged model to serve; run `make demo` for an example, or `mtl-bento package RUN`"),
        (("--arg", f"model={tmp_path / 'broken'}"), f"{artifact.WEIGHTS} is damaged; copy the whole folder again"),
        (("--arg", "model=none:v1"), "There is no folder and no packaged model 'none:v1'"),
    ):
        done = bentoml_command("serve", *arguments, home=tmp_path)
        assert done.returncode == 1
        said = done.stdout + done.stderr
        assert sentence in said
        assert len(said.strip().splitlines()) == 1
