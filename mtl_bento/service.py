"""The service: one BentoML service made from a model's schema, `POST /predict` batched over requests, `GET /model`.

`mtl_bento.service:MultiTaskService` is built when it is asked for, so that importing this module needs no model.
BentoML imports it in two processes: a parent that watches, and a worker that answers. Only the worker imports torch.

    Guard                  unknown paths, wrong types, too large bodies; the shape of errors; X-Model, X-Request-Id
      BentoML              metrics, timeouts, adaptive batching
        PredictInput       validates a request into cells, before it joins a batch: a bad row is its own caller's 400
          Worker.answers   one table, one pass of the networks, for all requests of the batch
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import logging
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, cast

import bentoml
import pyarrow as pa
from _bentoml_sdk import Service
from _bentoml_sdk.io_models import IOMixin, IORootModel
from bentoml.exceptions import BentoMLException
from pydantic import ValidationError, create_model
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mtl_bento import artifact, wire
from mtl_bento.columns._base import Column
from mtl_bento.errors import ArtifactError, MtlBentoError, RequestError, SchemaError
from mtl_bento.guard import Guard, refusal_body, refused
from mtl_bento.image import environment, image
from mtl_bento.memory import keep_memory
from mtl_bento.schema import Schema
from mtl_bento.sources import VARIABLE, Served, bento_manifest, served_model

TIMEOUT_S = 10
"""Seconds until a request is given up. BentoML never cancels its timers, so a long one would pile them up."""
LATENCY_MS = 5000
"""Milliseconds that a request may wait for its batch before it is turned away: low values turn away bursts."""
MAX_CONCURRENCY = 512
"""Requests in work at once; more are turned away."""
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
        threads=1,
        traffic={"timeout": TIMEOUT_S, "max_concurrency": MAX_CONCURRENCY},
        tracing={"excluded_urls": ".*"},  # tracing costs 300 us a request even where nothing is sampled
        logging={"access": {"enabled": False}},
    )
    class MultiTaskService:
        """Answers every target of a row at once."""

        model_name: ClassVar[str] = served.name

        def __init__(self) -> None:
            _keep_requests_out_of_logs()
            take_process()
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
            max_batch_size=max_batch(schema),
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


def max_batch(schema: Schema) -> int:
    """Return the rows that one pass of the networks takes: two full requests, or many small ones."""
    return 2 * schema.max_rows


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
        from mtl_bento.model import Model

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
        edges = {task.name: task.edges() for task in self.model.tasks}
        if wrong := wire.disagreement(answers, self.samples["answers"], spreads, edges):
            raise ArtifactError(
                f"Model {self.folder} does not answer its self-test as it did when it was made ({wrong}); "
                "serve it with the versions of torch and mtl-bento that it was made with, or package the run anew."
            )

    def warm_up(self) -> None:
        """Answer made-up rows in several batch sizes, so that no caller pays for what happens once."""
        cells = wire.Reader(self.schema).cells({"rows": self.samples["rows"]})
        for size in (1, 64, max_batch(self.schema)):
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
                "verdicts": verdicts.get(task.name, {}),
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
            "max_rows": self.schema.max_rows,
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


def take_process() -> None:
    """Set up the process that answers; a container has one of them."""
    import torch

    # BentoML runs one batch at a time, in a thread beside the event loop. HTTP takes most of the time: a second thread
    # of the networks would take it from the event loop.
    torch.set_num_threads(1)
    keep_memory(one_arena=True)


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
    decoder: ClassVar[ThreadPoolExecutor | None]
    """The thread that decodes pictures, beside the event loop, which a large one would hold up for a second.

    One, since each may take hundreds of megabytes for that second.
    """

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> Any:
        """Return the request with its rows as cells; a bad one is its caller's 400."""
        del serde  # the content type was checked by the guard
        body = await request.body()
        try:
            cls.state.ready()
            if cls.decoder is None:
                cells = cls.reader.read(body)
            else:
                cells = await asyncio.get_running_loop().run_in_executor(cls.decoder, cls.reader.read, body)
        except MtlBentoError as error:
            raise refused(request.scope, error) from None
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
    slow = schema.max_rows < Column.max_rows  # cells of which a request may hold few take long to read
    model.decoder = ThreadPoolExecutor(1, thread_name_prefix="decoder") if slow else None
    return model


def _answer_type(samples: dict[str, Any]) -> Any:
    answer: Any = wire.answer_model(samples["answers"][0])
    return create_model("PredictOutput", __base__=(_Writing, IORootModel[list[answer]]))


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
