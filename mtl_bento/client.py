"""The client of a service: tables or rows in, predictions in the caller's kind of frame out, over HTTP.

    with Client("http://localhost:3000") as client:
        client.predict(frame)                                  # the targets as columns, the frame's index
        client.predict([{"age": 39, "state": "CA"}])           # as the service answers: a dict a row
        client.model()["tasks"]

Importing it imports neither torch nor pyarrow; pyarrow is needed once a table is sent. What is asked and how answers
are put together is written once, as generators that yield what to send; the two clients differ in how they send it.
"""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import math
import os
import re
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import httpx

from mtl_bento import errors
from mtl_bento.errors import MtlBentoError, RequestError, SchemaError, SourceError, SpecError

if TYPE_CHECKING:
    import pyarrow as pa

TIMEOUT_S = 60.0
TRIES = 4
"""How often a request is sent while the service answers that it has too many."""
LONGEST_WAIT_S = 10.0
FEW = 64
"""Rows that are sent without asking the service first how many it takes."""
MOST_BYTES = 24 * 2**20
"""Bytes of rows in one request, but for a row that is larger by itself: services take bodies of 32 MiB."""
OUTPUTS = ("labels", "full")


@dataclass(frozen=True)
class _Question:
    """A request to send: a body is posted, none is a GET."""

    url: str
    body: bytes | None = None

    def arguments(self) -> dict[str, Any]:
        """Return what httpx calls it."""
        if self.body is None:
            return {"method": "GET", "url": self.url}
        headers = {"Content-Type": "application/json"}
        return {"method": "POST", "url": self.url, "content": self.body, "headers": headers}


Ask: TypeAlias = "_Question | float"
"""A request to send, or seconds to wait."""
Steps: TypeAlias = "Generator[Ask, httpx.Response | None, Any]"


class Client:
    """A service, asked from ordinary code.

    Args:
        url: where the service is, `http://host:port`.
        timeout: seconds to wait for one answer.
        headers: sent with every request.
        transport: what sends requests instead of the network, for tests.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = TIMEOUT_S,
        headers: Mapping[str, str] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = _checked(url)
        self._http = httpx.Client(timeout=timeout, headers=dict(headers or {}), transport=transport)

    def predict(self, data: Any, *, output: str = "labels") -> Any:
        """Return predictions for a table (path, frame, pyarrow table) as its kind of frame, or for a list of dicts.

        Args:
            data: a table, which goes out in parts that the service takes; or rows as a list of dicts, which are
                answered by a list of dicts as `POST /predict` answers. A picture is bytes, a path of a file (as text
                only where the input is one of pictures), or an image of Pillow's.
            output: for tables, "labels" gives the targets as columns, "full" probabilities, intervals and prediction
                sets beside them.

        Raises:
            SourceError: no service answers.
            SchemaError, RequestError and others: as the service, or reading the table, says.
        """
        return self._run(_predict(self.url, data, output))

    def model(self) -> dict[str, Any]:
        """Return what the service says of its model: tasks, schema, columns of the answers, card."""
        about: dict[str, Any] = self._run(_about(self.url))
        return about

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _run(self, steps: Steps) -> Any:
        answer: httpx.Response | None = None
        try:
            while True:
                answer = self._perform(steps.send(answer))
        except StopIteration as end:
            return end.value

    def _perform(self, step: Ask) -> httpx.Response | None:
        if isinstance(step, _Question):
            try:
                return self._http.request(**step.arguments())
            except httpx.TransportError as error:
                raise _no_answer(self.url, error) from error
        time.sleep(step)
        return None


class AsyncClient:
    """A service, asked from asynchronous code; arguments and methods are those of `Client`, to be awaited."""

    def __init__(
        self,
        url: str,
        *,
        timeout: float = TIMEOUT_S,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = _checked(url)
        self._http = httpx.AsyncClient(timeout=timeout, headers=dict(headers or {}), transport=transport)

    async def predict(self, data: Any, *, output: str = "labels") -> Any:
        """Return predictions; see `Client.predict`."""
        return await self._run(_predict(self.url, data, output))

    async def model(self) -> dict[str, Any]:
        """Return what the service says of its model; see `Client.model`."""
        about: dict[str, Any] = await self._run(_about(self.url))
        return about

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, steps: Steps) -> Any:
        answer: httpx.Response | None = None
        try:
            while True:
                answer = await self._perform(steps.send(answer))
        except StopIteration as end:
            return end.value

    async def _perform(self, step: Ask) -> httpx.Response | None:
        if isinstance(step, _Question):
            try:
                return await self._http.request(**step.arguments())
            except httpx.TransportError as error:
                raise _no_answer(self.url, error) from error
        await asyncio.sleep(step)
        return None


# What is asked


def _about(url: str) -> Steps:
    return (yield from _ask(_Question(f"{url}/model"), start=0))


def _predict(url: str, data: Any, output: str) -> Steps:
    if output not in OUTPUTS:
        raise SpecError(f"output {output!r} is not known; allowed: {', '.join(map(repr, OUTPUTS))}.")
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        return (yield from _predict_rows(url, [_plain(row) for row in data]))
    return (yield from _predict_table(url, data, output))


def _predict_rows(url: str, rows: list[Any]) -> Steps:
    if len(rows) <= FEW and not any(
        _may_be_path(value) for row in rows if isinstance(row, dict) for value in row.values()
    ):
        return (yield from _answers(url, rows, FEW))
    about = yield from _about(url)
    pictures = [column["name"] for column in about["schema"]["columns"] if column["kind"] == "image"]
    rows = [_with_files(row, pictures) for row in rows]
    return (yield from _answers(url, rows, about["max_rows"]))


def _predict_table(url: str, data: Any, output: str) -> Steps:
    from mtl_bento import table as tables  # with pyarrow, for tables only
    from mtl_bento import wire
    from mtl_bento.schema import Schema

    about = yield from _about(url)
    table = tables.read(data)
    rows = wire.table_to_rows(table, Schema.model_validate(about["schema"]))
    answers = yield from _answers(url, rows, about["max_rows"])
    return tables.like(_assembled(answers, about["columns"][output]), data)


def _answers(url: str, rows: list[Any], most: int) -> Steps:
    answers: list[dict[str, Any]] = []
    texts = [json.dumps(row, ensure_ascii=False, allow_nan=False).encode() for row in rows]
    start = 0
    while start < len(rows):
        part = _part(texts[start : start + most])
        body = b'{"rows": [%s]}' % b", ".join(part)
        answers += yield from _ask(_Question(f"{url}/predict", body), start=start)
        start += len(part)
    return answers


def _part(texts: list[bytes]) -> list[bytes]:
    """Return the first texts, as many as fit into one request, at least one."""
    ends = itertools.accumulate(map(len, texts))
    return texts[: max(1, sum(end <= MOST_BYTES for end in ends))]


def _may_be_path(value: Any) -> bool:
    return isinstance(value, str) and len(value) < 4096 and value.lower().endswith((".jpg", ".jpeg", ".png", ".webp"))


def _with_files(row: Any, names: list[str]) -> Any:
    """Return the row with the files of pictures that it names by their paths."""
    if not isinstance(row, dict):
        return row
    return {name: _read(Path(value)) if name in names and _may_be_path(value) else value for name, value in row.items()}


def _read(path: os.PathLike[str]) -> str:
    try:
        return base64.b64encode(Path(path).read_bytes()).decode()
    except OSError as error:
        raise SchemaError(f"{str(path)!r} cannot be read ({error.strerror}); give the path of a picture.") from None


def _ask(question: _Question, *, start: int) -> Steps:
    """Ask again while the service has too many requests; `start` is the number of rows before this request's own."""
    for _ in range(TRIES - 1):
        response = yield question
        if response is None or response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
            break
        yield _wait_s(response)
    else:
        response = yield question
    assert response is not None  # a request is answered by a response, a pause by none
    return _answered(response, start)


def _wait_s(response: httpx.Response) -> float:
    given = response.headers.get("Retry-After", "")
    return min(float(given), LONGEST_WAIT_S) if re.fullmatch(r"\d+", given) else 1.0


# What is answered


def _answered(response: httpx.Response, start: int) -> Any:
    try:
        data = response.json()
    except ValueError:
        data = None
    if response.is_success and data is not None:
        return data
    if not (isinstance(data, dict) and isinstance(data.get("error"), str)):
        raise RequestError(
            f"{response.url} answered {response.status_code} and no JSON of ours; is it a service of mtl-bento?"
        )
    raise _again(data, start)


def _again(data: dict[str, Any], start: int) -> MtlBentoError:
    """Return the service's error as its own class, with rows counted from the first that the caller gave."""
    found = getattr(errors, str(data.get("type")), RequestError)
    kind = found if isinstance(found, type) and issubclass(found, MtlBentoError) else RequestError
    error = kind(data["error"], detail=data.get("detail"))
    if not start:
        return error
    from mtl_bento import wire  # with pyarrow; a later part of the rows is rarely refused

    return wire.shifted(error, start)


def _assembled(answers: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> pa.Table:
    import pyarrow as pa

    flat = [{name: value for target, answer in row.items() for name, value in _flat(target, answer)} for row in answers]
    return pa.table({name: _array([row.get(name) for row in flat], kind) for name, kind in columns.items()})


def _flat(target: str, answer: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Yield the columns of one answer: `income`, `income__proba__>50K`, `hours__lower`."""
    for key, value in answer.items():
        if key == "value" and isinstance(value, Mapping):  # a box
            yield target, list(value.values())
            yield from ((f"{target}__{name}", item) for name, item in value.items())
        elif key == "value":
            yield target, value
        elif key == "box":
            yield from ((f"{target}__{name}", item) for name, item in value.items())
        elif isinstance(value, Mapping):
            part = "proba" if key == "probabilities" else key
            yield from ((f"{target}__{part}__{name}", item) for name, item in value.items())
        else:
            yield f"{target}__{key}", value


def _array(values: list[Any], kind: str) -> pa.Array:
    """Return values as an array of a type by its name; spans, which are text in columns, as JSON."""
    import pyarrow as pa

    wanted = _type(kind)
    if pa.types.is_large_string(wanted):
        values = [json.dumps(v, ensure_ascii=False) if isinstance(v, list) else v for v in values]
    return pa.array(values, wanted)


def _type(kind: str) -> pa.DataType:
    """Return the type of a name such as "double", "list<item: string>" or "fixed_size_list<item: float>[4]"."""
    import pyarrow as pa

    nested = re.fullmatch(r"(?:fixed_size_)?list<\w+: (.*)>(?:\[(\d+)\])?", kind)
    if nested is None:
        return pa.type_for_alias(kind)
    inner, size = _type(nested[1]), nested[2]
    return pa.list_(inner, int(size)) if size else pa.list_(inner)


def _plain(value: Any) -> Any:
    """Return a value of a row as JSON holds it: numpy's scalars plain, times as ISO text, NaN as null.

    Bytes, files and Pillow's images become base64.
    """
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if isinstance(value, os.PathLike):
        return _read(value)
    if hasattr(value, "getexif"):  # one of Pillow's images, without importing it
        return _png(value)
    if hasattr(value, "isoformat"):  # date, datetime, pandas' Timestamp; its NaT has "NaT"
        text = value.isoformat()
        return None if text == "NaT" else text
    if hasattr(value, "tolist"):  # numpy's scalars and arrays, without importing numpy
        # The shortest digits of a 32-bit number, not those of its 64-bit neighbour.
        return _plain(float(str(value)) if type(value).__name__ == "float32" else value.tolist())
    if isinstance(value, float) and math.isinf(value):
        raise SchemaError("Infinity cannot be sent; give a finite number, or None for a missing value.")
    return None if isinstance(value, float) and math.isnan(value) else value


def _png(image: Any) -> str:
    file = io.BytesIO()
    plain = image if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else image.convert("RGB")
    # What EXIF says of the camera's turn goes along: the service turns the picture.
    plain.save(file, "PNG", exif=image.getexif())
    return base64.b64encode(file.getvalue()).decode()


def _checked(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise SourceError(f"{url!r} is no address of a service; give one such as http://localhost:3000.")
    return str(parsed).rstrip("/")


def _no_answer(url: str, error: httpx.TransportError) -> SourceError:
    reason = str(error) or type(error).__name__
    return SourceError(f"No service answers at {url} ({reason}); start one by `bentoml serve`, or mend the address.")
