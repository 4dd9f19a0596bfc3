"""The guard, around applications that answer as BentoML does."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from mtl_bento.guard import Guard

JSON = {"Content-Type": "application/json"}


def answering(status: int, body: bytes = b"{}", **headers: str) -> Any:
    async def app(scope: Any, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        while (await receive()).get("more_body"):
            pass
        listed = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": listed})
        await send({"type": "http.response.body", "body": body[:3], "more_body": True})
        await send({"type": "http.response.body", "body": body[3:]})

    return app


def ask(app: Any, method: str = "POST", path: str = "/predict", **options: Any) -> httpx.Response:
    async def once() -> httpx.Response:
        transport = httpx.ASGITransport(app=Guard(app, model="small:v1", max_body=100), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **options)

    return asyncio.run(once())


def test_an_answer_passes_with_the_model_and_a_request_id() -> None:
    response = ask(answering(200, b"[1, 2]", server="x"), content=b"{}", headers=JSON)
    assert (response.status_code, response.json()) == (200, [1, 2])
    assert response.headers["x-model"] == "small:v1"
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["x-request-id"])
    assert response.headers["server"] == "x"


def test_the_callers_request_id_comes_back_unless_it_is_odd() -> None:
    for given, kept in (("abc-1", True), ("x" * 129, False), ("a b", False)):
        response = ask(answering(200), content=b"{}", headers={**JSON, "X-Request-Id": given})
        assert (response.headers["x-request-id"] == given) is kept


@pytest.mark.parametrize(
    ("method", "path", "kind", "status", "sentence"),
    [
        ("POST", "/predict/", "application/json", 404, "There is nothing at this path"),
        ("GET", "/static_content/nothing.js", None, 404, "There is nothing at this path"),
        ("GET", "/predict", None, 405, "/predict takes POST, not GET."),
        ("POST", "/model", "application/json", 405, "/model takes GET, not POST."),
        ("POST", "/predict", "text/plain", 415, "Content-Type 'text/plain' is not read; send application/json."),
        ("POST", "/predict", None, 415, "Content-Type '' is not read"),
        ("POST", "/predict", "application/x-www-form-urlencoded", 415, "is not read"),
        ("POST", "/predict", "multipart/form-data; boundary=x", 415, "is not read"),
        ("POST", "/predict", "application/vnd.bentoml+pickle", 415, "is not read"),
    ],
)
def test_what_no_route_takes_is_refused_before_the_metrics(
    method: str, path: str, kind: str | None, status: int, sentence: str
) -> None:
    async def unreached(*_: Any) -> None:
        raise AssertionError

    response = ask(unreached, method, path, content=b"{}", headers={"Content-Type": kind} if kind else {})
    assert response.status_code == status
    assert sentence in response.json()["error"]
    assert response.json()["type"] == "RequestError"
    assert response.json()["detail"] == []
    assert ("allow" in response.headers) == (status == 405)


def test_json_with_a_charset_is_taken() -> None:
    assert ask(answering(200), content=b"{}", headers={"Content-Type": "Application/JSON; charset=utf-8"}).is_success


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_413(chunked: bool) -> None:
    async def chunks() -> Any:
        for _ in range(11):
            yield b"0123456789"

    async def bentoml(scope: Any, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        # BentoML answers an exception while it reads with the exception's status.
        try:
            await answering(200)(scope, receive, send)
        except Exception as error:
            await answering(int(getattr(error, "error_code", 500)), b'[{"error": "x"}]')(scope, _nothing, send)

    response = ask(bentoml, content=chunks() if chunked else b"x" * 101, headers=JSON)
    assert response.status_code == 413
    assert "send fewer rows in one request" in response.json()["error"]


async def _nothing() -> dict[str, Any]:
    return {"type": "http.request", "body": b""}


@pytest.mark.parametrize("status", [429, 503, 504])
def test_too_many_requests_and_timeouts_are_503_with_the_time_to_wait(status: int) -> None:
    response = ask(answering(status, b'{"error": "Too many requests"}'), content=b"{}", headers=JSON)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"] == (
        "The service has more requests than it can answer in time; try again in a second."
    )


def test_errors_of_other_routes_stay_as_they_are() -> None:
    response = ask(answering(503, b"Service is not ready"), "GET", "/readyz")
    assert (response.status_code, response.text) == (503, "Service is not ready")
    assert response.headers["x-model"] == "small:v1"


def test_an_unexpected_error_says_nothing_of_the_request() -> None:
    async def broken(*_: Any) -> None:
        raise ValueError("secret")

    for app in (broken, answering(500, b'{"error": "secret"}')):
        response = ask(app, content=b"{}", headers=JSON)
        assert response.status_code == 500
        assert response.json()["type"] == "MtlBentoError"
        assert "secret" not in response.text


def test_a_websocket_is_closed() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Guard(answering(200), model="m")({"type": "websocket", "path": "/x"}, _nothing, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]
