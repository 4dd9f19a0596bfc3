"""The guard: an ASGI layer around BentoML that refuses what no route takes, and gives every error its shape.

Whoever reads a request below it leaves the error for it (`refused`), since BentoML's own text would say less.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

from bentoml.exceptions import BentoMLException

from mtl_bento.errors import MtlBentoError, RequestError

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

MAX_BODY = 32 * 2**20
"""Bytes of a request's body: 1,000 rows with a vector of 1,280 numbers each."""
METHODS = {"/predict": ("POST", "OPTIONS"), "/model": ("GET", "HEAD", "OPTIONS")}
"""Our own routes; their errors have our shape."""
BENTOML_PATHS = ("/", "/livez", "/readyz", "/healthz", "/metrics", "/schema.json", "/docs.json")
JSON_TYPES = ("application/json",)
TURNED_AWAY = {429: 503, 504: 503}
"""BentoML's statuses for too many requests and for a timeout, and ours."""
RETRY_AFTER_S = 1
REFUSALS = "mtl_bento.refusals"
"""Where a request's scope holds the error that the guard answers with."""


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


def refused(scope: Scope, error: MtlBentoError) -> BentoMLException:
    """Leave the error for the guard, and return what makes BentoML stop with its status.

    BentoML's own text would say less, and its log more: the message must not hold values of the request.
    """
    scope.get(REFUSALS, []).append(error)
    status = HTTPStatus.SERVICE_UNAVAILABLE if error.status >= 500 else HTTPStatus(error.status)
    return BentoMLException(f"refused: {type(error).__name__}", error_code=status)


def refusal_body(error: MtlBentoError) -> dict[str, Any]:
    """Return the body of every error: a sentence, the class that the client raises again, and the places."""
    return {"error": str(error), "type": type(error).__name__, "detail": error.detail}
