"""The service: one BentoML service made from a model's schema, `POST /predict` batched over requests, `GET /model`.

`mtl_bento.service:MultiTaskService` is built when it is asked for, so that importing this module needs no model.
BentoML imports it in two processes: a parent that watches, and a worker that answers. Only the worker imports torch.

    Guard                  unknown paths, wrong types, too large bodies; the shape of errors; X-Model, X-Request-Id
      BentoML              metrics, timeouts, adaptive batching
        PredictInput       validates a request into cells, before it joins a batch: a bad row is its own caller's 400
          Worker.answers   one table, one pass of the networks, for all requests of the batch
"""

from __future__ import annotations

import gc
import importlib.metadata
import itertools
import json
import logging
import os
import re
import sys
import uuid
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, cast
from urllib.parse import quote

import bentoml
import pyarrow as pa
from _bentoml_sdk import Service
from _bentoml_sdk.io_models import IOMixin, IORootModel
from bentoml.exceptions import BentoMLException
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import ValidationError, create_model
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mtl_bento import artifact, wire
from mtl_bento.errors import ArtifactError, MtlBentoError, RequestError, SchemaError
from mtl_bento.schema import Schema
from mtl_bento.sources import VARIABLE, Served, bento_manifest, served_model

MAX_BATCH = 2048
"""Rows that one pass of the networks takes: two full requests, or many small ones."""
MAX_BODY = 32 * 2**20
"""Bytes of a request's body: 1,000 rows with a vector of 1,280 numbers each."""
TIMEOUT_S = 10
"""Seconds until a request is given up. BentoML never cancels its timers, so a long one would pile them up."""
LATENCY_MS = 5000
"""Milliseconds that a request may wait for its batch before it is turned away: low values turn away bursts."""
MAX_CONCURRENCY = 512
"""Requests in work at once; more are turned away."""
TORCH_BUILD = "UV_TORCH_BACKEND"
"""uv's variable for the build of torch to install."""
RUNTIME = (
    "torch", "bentoml", "pydantic", "pyarrow", "numpy", "safetensors", "httpx", "click", "rich", "pyyaml",
)  # fmt: skip
"""What the served image needs: the wheel's own dependencies but uv, which only builds need."""

log = logging.getLogger("bentoml.mtl_bento")

Answer: TypeAlias = dict[str, Any]


def __getattr__(name: str) -> Any:
    """Return the service as `MultiTaskService`; raises BentoMLException in one line where no model can be served."""
    if name != "MultiTaskService":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return make_service(served_model(getattr(bentoml.use_arguments(), "model", None)))
    except MtlBentoError as error:
        # BentoML prints its own exceptions as one line, and any other as a traceback.
        raise BentoMLException(str(error)) from None


def make_service(served: Served) -> Service[Any]:
    """Return the BentoML service of a model; raises ArtifactError where its folder is damaged."""
    manifest = artifact.read_manifest(served.folder)
    schema = Schema.model_validate(manifest["schema"])
    samples = artifact.read_samples(served.folder)
    state = _State()
    request_model = _request_type(schema, state)
    answer_model = _answer_type(samples)
    bento = bento_manifest()
    # BentoML passes --arg to services in source, not to Bentos.
    choices = f"{VARIABLE}=TAG" if bento else f"`--arg model=TAG` or {VARIABLE}=TAG"

    @bentoml.service(
        # A Bento finds its services by their names, whichever model it serves.
        name=bento.get("entry_service") or service_name(served),
        service_class=GuardedService,
        # A Bento that is being served has its image behind it.
        image=None if bento else image(manifest["card"].get("requires", [])),
        envs=environment(),
        labels=dict(served.labels),
        description=(served.folder / artifact.CARD).read_text(encoding="utf-8"),
        workers=1,
        traffic={"timeout": TIMEOUT_S, "max_concurrency": MAX_CONCURRENCY},
        tracing={"excluded_urls": ".*"},  # tracing costs 300 us a request even where nothing is sampled
        logging={"access": {"enabled": False}},
    )
    class MultiTaskService:
        """Answers every target of a row at once."""

        model_name: ClassVar[str] = served.name

        def __init__(self) -> None:
            _keep_requests_out_of_logs()
            try:
                state.worker = Worker(served.folder)
                state.worker.self_test()
            except MtlBentoError as error:
                # An exception here would be tried again every ten seconds for ever; so it stays up, and never ready.
                state.failure = error
                log.critical("Not serving %s: %s", served.name, error)
                return
            state.worker.warm_up()
            state.about = state.worker.about(manifest, served)
            settle_memory()

        @bentoml.on_deployment  # type: ignore[untyped-decorator]
        def say() -> None:  # BentoML calls it without an instance, in the parent process
            log.info("Serving model %s (%s). To choose another: %s.", served.name, served.chosen_by, choices)

        async def __is_ready__(self) -> bool:
            return state.failure is None

        @bentoml.api(  # type: ignore[untyped-decorator]
            batchable=True,
            max_batch_size=MAX_BATCH,
            max_latency_ms=LATENCY_MS,
            input_spec=request_model,
            output_spec=answer_model,
        )
        def predict(self, rows: list[wire.Cells]) -> list[Any]:
            """Answer every target of each row; rows of requests that arrive together are answered together."""
            answers = state.ready().answers(rows)
            assert len(answers) == len(rows)  # BentoML would deal a short batch out to the wrong callers
            return answers

    async def about(_: Request) -> Response:
        if state.about is None:
            return JSONResponse(refusal_body(state.failure or RequestError("The model is being loaded.")), 503)
        return Response(state.about, media_type="application/json")

    service: Service[Any] = MultiTaskService
    service.mount_asgi_app(Starlette(routes=[Route("/model", about, methods=["GET"])]), path="/", name="model")
    if ":" in served.name:
        # What `bentoml build` without `models:` records, so that the Bento keeps its model.
        service.models.append(bentoml.models.BentoModel(served.name))
    return service


def service_name(served: Served) -> str:
    """Return what the service is called, and a Bento of it that is given no name: as its model."""
    name = re.sub(r"[^a-z0-9]+", "_", served.name.partition(":")[0].lower()).strip("_")
    return name or "multi_task"


class _State:
    """What the worker process holds: the model, or why it cannot serve."""

    def __init__(self) -> None:
        self.worker: Worker | None = None
        self.failure: MtlBentoError | None = None
        self.about: bytes | None = None

    def ready(self) -> Worker:
        """Return the worker; raises ArtifactError where the model failed its self-test."""
        if self.worker is None or self.failure is not None:
            raise self.failure or ArtifactError("The model is not loaded.")
        return self.worker


# Answering


class Worker:
    """A model and what surrounds it in the process that answers. Imports torch."""

    def __init__(self, folder: Path) -> None:
        import torch

        from mtl_bento.model import Model

        # HTTP takes most of the time; a second thread of the networks would take it from the event loop.
        torch.set_num_threads(1)
        self.folder = folder
        self.model = Model.load(folder)
        self.schema = self.model.schema
        self.samples = artifact.read_samples(folder)

    def answers(self, cells: Sequence[wire.Cells]) -> list[Answer | SchemaError]:
        """Return an answer for each row, or the error of a row that the columns refuse although it was validated."""
        try:
            return list(self._together(cells))
        except SchemaError:
            return [self._alone(row) for row in cells]

    def self_test(self) -> None:
        """Answer the model's made-up rows, as requests; raises ArtifactError where an answer is not as it was."""
        body = json.dumps({"rows": self.samples["rows"]}).encode()
        answers = json.loads(encode(self.answers(wire.Reader(self.schema).read(body))))
        spreads = {task.name: float(getattr(task.spec, "spread", 0.0)) for task in self.model.tasks}
        if wrong := wire.disagreement(answers, self.samples["answers"], spreads):
            raise ArtifactError(
                f"Model {self.folder} does not answer its self-test as it did when it was made ({wrong}); "
                "serve it with the versions of torch and mtl-bento that it was made with, or package the run anew."
            )

    def warm_up(self) -> None:
        """Answer made-up rows in several batch sizes, so that no caller pays for what happens once."""
        cells = wire.Reader(self.schema).cells({"rows": self.samples["rows"]})
        for size in (1, 64, MAX_BATCH):
            self.answers(list(itertools.islice(itertools.cycle(cells), size)))

    def about(self, manifest: dict[str, Any], served: Served) -> bytes:
        """Return what `GET /model` answers: tasks, schema, types of the answers' columns, limits and the card."""
        card = manifest["card"]
        few = wire.rows_to_table(self.samples["rows"][:1], self.schema)
        metrics, verdicts = card.get("metrics", {}), card.get("verdicts", {})
        tasks = [
            {
                "name": task.name,
                "kind": task.spec.kind,
                **{key: value for key, value in task.card().items() if key not in spec},  # the classes
                "metrics": metrics.get(task.name, {}),
                "verdict": verdicts.get(task.name),
                "spec": spec,
            }
            for task, spec in zip(self.model.tasks, manifest["tasks"], strict=True)
        ]
        columns = {
            output: {field.name: str(field.type) for field in self.model.table(few, output=output).schema}
            for output in ("labels", "full")
        }
        about = {
            "model": served.name,
            "max_rows": wire.MAX_ROWS,
            "tasks": tasks,
            "schema": manifest["schema"],
            "columns": columns,
            "card": card,
        }
        return json.dumps(about, ensure_ascii=False, allow_nan=False).encode()

    def _together(self, cells: Sequence[wire.Cells]) -> list[Answer]:
        try:
            return self.model.rows(wire.cells_to_table(cells, self.schema))
        except (pa.ArrowException, OverflowError) as error:
            raise SchemaError(str(error)) from error

    def _alone(self, row: wire.Cells) -> Answer | SchemaError:
        try:
            return self._together([row])[0]
        except SchemaError as error:
            return error


def encode(answers: Iterable[Answer | SchemaError]) -> bytes:
    """Return answers as JSON; raises the error of the first row that has one, with the row's place."""
    listed = list(answers)
    for place, answer in enumerate(listed):
        if isinstance(answer, SchemaError):
            raise _at(answer, place)
    return json.dumps(listed, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _at(error: SchemaError, place: int) -> SchemaError:
    moved = wire.shifted(error, place)
    if not moved.detail:
        return SchemaError(f"rows[{place}]: {error}")
    return SchemaError(wire.place_text(moved.detail[0]["loc"]) + moved.detail[0]["msg"], detail=moved.detail)


def settle_memory() -> None:
    """Keep what is loaded by now out of garbage collection: its pauses were the slowest answers."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


# Between HTTP and BentoML


class _Reading(IOMixin):  # type: ignore[misc]
    """Reads a request before BentoML puts it into a batch."""

    reader: ClassVar[wire.Reader]
    state: ClassVar[_State]

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> Any:
        """Return the request with its rows as cells; a bad one is its caller's 400."""
        del serde  # the content type was checked by the guard
        body = await request.body()
        try:
            cls.state.ready()
            cells = cls.reader.read(body)
        except MtlBentoError as error:
            raise _refused(request.scope, error) from None
        return cls.model_construct(rows=cells)


class _Writing(IOMixin):  # type: ignore[misc]
    """Writes answers without building a JSON schema for each response, as BentoML would."""

    media_type = "application/json"

    @classmethod
    async def to_http_response(cls, obj: Any, serde: Any) -> Response:
        """Return the answers as JSON, or the 400 of a row that the columns refused."""
        del serde
        try:
            return Response(encode(obj), media_type=cls.media_type)
        except SchemaError as error:
            return JSONResponse(refusal_body(error), error.status)


def _request_type(schema: Schema, state: _State) -> Any:
    reader = wire.Reader(schema)
    model = cast(Any, create_model("PredictInput", __base__=(_Reading, reader.model)))
    model.reader, model.state = reader, state
    return model


def _answer_type(samples: dict[str, Any]) -> Any:
    answer: Any = wire.answer_model(samples["answers"][0])
    return create_model("PredictOutput", __base__=(_Writing, IORootModel[list[answer]]))


REFUSALS = "mtl_bento.refusals"
"""Where a request's scope holds the error that the guard answers with."""


def _refused(scope: MutableMapping[str, Any], error: MtlBentoError) -> BentoMLException:
    """Leave the error for the guard, and return what makes BentoML stop with its status.

    BentoML's own text would say less, and its log more: the message must not hold values of the request.
    """
    scope.get(REFUSALS, []).append(error)
    status = HTTPStatus.SERVICE_UNAVAILABLE if error.status >= 500 else HTTPStatus(error.status)
    return BentoMLException(f"refused: {type(error).__name__}", error_code=status)


def refusal_body(error: MtlBentoError) -> dict[str, Any]:
    """Return the body of every error: a sentence, the class that the client raises again, and the places."""
    return {"error": str(error), "type": type(error).__name__, "detail": error.detail}


class _Unlogged(logging.Filter):
    """Drops the tracebacks that BentoML logs for refused requests: they would hold values of the request."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if isinstance(error, BentoMLException):
            return bool(error.error_code == HTTPStatus.INTERNAL_SERVER_ERROR)
        return not isinstance(error, ValidationError)


def _keep_requests_out_of_logs() -> None:
    logging.getLogger("bentoml._internal.server.http_app").addFilter(_Unlogged())


class GuardedService(Service[Any]):  # type: ignore[misc]
    """A BentoML service with the guard around all of it."""

    def to_asgi(self, is_main: bool = True) -> Any:
        """Return the service's ASGI application."""
        return Guard(super().to_asgi(is_main), model=self.inner.model_name)


# The guard

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

METHODS = {"/predict": ("POST", "OPTIONS"), "/model": ("GET", "HEAD", "OPTIONS")}
"""Our own routes; their errors have our shape."""
BENTOML_PATHS = ("/", "/livez", "/readyz", "/healthz", "/metrics", "/schema.json", "/docs.json")
JSON_TYPES = ("application/json",)
TURNED_AWAY = {429: 503, 504: 503}
"""BentoML's statuses for too many requests and for a timeout, and ours."""
RETRY_AFTER_S = 1


class Guard:
    """An ASGI layer outside of BentoML's metrics, which would keep every unknown path as a label for ever.

    It refuses unknown paths, wrong methods and content types, and bodies that are too large; gives every error of our
    routes its shape; and adds `X-Model` and `X-Request-Id` to every answer.
    """

    def __init__(self, app: Any, *, model: str, max_body: int = MAX_BODY) -> None:
        self.app, self.max_body = app, max_body
        self.model = quote(model, safe=":/._- ").encode()
        self.paths = {*METHODS, *BENTOML_PATHS, *_static_paths()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or let it pass."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # there is none; refused here for the same reason
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, model=self.model, max_body=self.max_body)
        if refusal := self._refusal(scope, exchange.request_headers):
            await exchange.refuse(*refusal)
            return
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except Exception:
            if not exchange.started:
                await exchange.refuse(500, _unexpected())
            raise

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> tuple[int, MtlBentoError] | None:
        path, method = scope["path"], scope["method"]
        if path not in self.paths:
            return 404, RequestError(f"There is nothing at this path; ask POST /predict or GET /model, or see {'/'!r}.")
        methods = METHODS.get(path)
        if methods is not None and method not in methods:
            return 405, RequestError(f"{path} takes {methods[0]}, not {method[:20]}.")
        if path == "/predict" and method == "POST":
            kind = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
            if kind not in JSON_TYPES:
                return 415, RequestError(f"Content-Type {kind[:60]!r} is not read; send {' or '.join(JSON_TYPES)}.")
            length = headers.get(b"content-length", b"0")
            if not length.isdigit() or int(length) > self.max_body:
                return 413, _too_large(self.max_body)
        return None


class _Exchange:
    """One request and its answer, with the guard between."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, model: bytes, max_body: int) -> None:
        self.scope, self._receive, self._send = scope, receive, send
        self.request_headers: dict[bytes, bytes] = dict(scope["headers"])
        given = self.request_headers.get(b"x-request-id", b"")
        request_id = given if re.fullmatch(rb"[!-~]{1,128}", given) else uuid.uuid4().hex.encode()
        self.headers = [(b"x-model", model), (b"x-request-id", request_id)]
        self.max_body, self.received = max_body, 0
        self.refusals: list[MtlBentoError] = []
        scope[REFUSALS] = self.refusals
        self.started = False
        self.held: Message | None = None
        """The start of an error of ours, until its body is there."""
        self.body = b""

    async def receive(self) -> Message:
        """Pass on what the client sends, and stop where it is too much."""
        message = await self._receive()
        self.received += len(message.get("body", b""))
        if self.received > self.max_body:
            self.refusals.append(_too_large(self.max_body))
            raise BentoMLException("too large", error_code=HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        return message

    async def send(self, message: Message) -> None:
        """Pass on what the service answers, with our headers; errors of our routes are held and given their shape."""
        if message["type"] == "http.response.start":
            if message["status"] >= 400 and self.scope["path"] in METHODS:
                self.held = message
                return
            await self._start(message["status"], list(message.get("headers", [])))
        elif self.held is not None:
            self.body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._answer_error(self.held["status"])
        else:
            await self._send(message)

    async def refuse(self, status: int, error: MtlBentoError) -> None:
        """Answer with an error."""
        await self._reply(status, refusal_body(error))

    async def _answer_error(self, status: int) -> None:
        if self.refusals:
            await self.refuse(status, self.refusals[0])
            return
        status = TURNED_AWAY.get(status, status)
        shaped = _shaped(self.body)
        await (self._reply(status, shaped) if shaped else self.refuse(status, _explained(status)))

    async def _reply(self, status: int, data: dict[str, Any]) -> None:
        body = json.dumps(data, ensure_ascii=False).encode("utf-8", "backslashreplace")
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if status == 503:
            headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
        if status == 405:
            headers.append((b"allow", ", ".join(METHODS[self.scope["path"]]).encode()))
        await self._start(status, headers)
        await self._send({"type": "http.response.body", "body": body})

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, *self.headers]})


def _shaped(body: bytes) -> dict[str, Any] | None:
    try:
        data = json.loads(body)
    except ValueError:
        return None
    return data if isinstance(data, dict) and data.keys() >= {"error", "type", "detail"} else None


def _explained(status: int) -> MtlBentoError:
    if status == 503:
        return RequestError("The service has more requests than it can answer in time; try again in a second.")
    return _unexpected() if status >= 500 else RequestError(HTTPStatus(status).phrase + ".")


def _unexpected() -> MtlBentoError:
    return MtlBentoError("An unexpected error happened in the service; its log says more.")


def _too_large(limit: int) -> MtlBentoError:
    return RequestError(f"The body is larger than {limit // 2**20} MiB; send fewer rows in one request.")


def _static_paths() -> set[str]:
    """Return the paths of the files of BentoML's page of the API."""
    from bentoml._internal import server

    folder = Path(server.__file__).parent / "static_content"
    return {f"/static_content/{file.relative_to(folder).as_posix()}" for file in folder.rglob("*") if file.is_file()}


# The image


def image(requires: Iterable[str] = ()) -> bentoml.images.Image:
    """Return the image of a Bento: a slim Python with the exact versions that are installed here.

    `requires` are the distributions of kinds from elsewhere, as "name==version".
    """
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    # distro="": BentoML's Debian installs compilers, which wheels do without.
    slim = bentoml.images.Image(
        base_image=f"python:{python}-slim", distro="", python_version=python, lock_python_packages=False
    )
    return slim.python_packages(*requirements(requires))


def environment() -> list[dict[str, str]]:
    """Return the variables of the image: no usage statistics, and which build of torch it installs.

    That is the build that is installed here; UV_TORCH_BACKEND names another ("cu126"), or none where it is empty.
    """
    variables = [{"name": "BENTOML_DO_NOT_TRACK", "value": "true"}]
    installed = importlib.metadata.version("torch").partition("+")[2]
    # A requirement cannot name the index of a local version such as 2.13.0+cpu; uv knows it by the name of the build.
    known = installed if re.fullmatch(r"cpu|xpu|cu\d+|rocm[\d.]+", installed) else ""
    if build := os.environ.get(TORCH_BUILD, known):
        variables.append({"name": TORCH_BUILD, "value": build})
    return variables


def requirements(requires: Iterable[str] = ()) -> list[str]:
    """Return `RUNTIME` and all that it needs, as "name==version" of what is installed here, in order of name."""
    pins: dict[str, str] = {}
    done: set[tuple[str, str]] = set()
    waiting = [Requirement(line) for line in (*RUNTIME, *requires)]
    for requirement in waiting:  # grows while it is read
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in done:
                continue
            done.add((name, extra))
            try:
                found = importlib.metadata.distribution(name)
            except importlib.metadata.PackageNotFoundError:
                continue  # needed elsewhere only, or bundled with another package
            pins[name] = found.version.partition("+")[0]
            needs = (Requirement(line) for line in found.requires or ())
            waiting += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
    given = {canonicalize_name(need.name): str(need) for need in map(Requirement, requires)}
    return sorted(({name: f"{name}=={version}" for name, version in pins.items()} | given).values())
