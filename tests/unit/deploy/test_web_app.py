"""Random requests: each is answered by its own route, or refused in one line of JSON."""

import asyncio
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from flowers.deploy.app_settings import ServerSettings
from flowers.deploy.classifier import Classifier
from flowers.deploy.inference_server import InferenceServer
from flowers.deploy.page_files import SERVER_PAGE, read_page
from flowers.deploy.web_app import build_app

REFUSALS = {400, 401, 403, 404, 405, 413, 415, 421, 422, 503}
TYPES = {
    ("GET", "/"): "text/html; charset=utf-8",
    ("GET", "/model"): "application/json",
    ("GET", "/health"): "application/json",
    ("GET", "/openapi.json"): "application/json",
    ("POST", "/predict"): "application/json",
    ("POST", "/explain"): "image/jpeg",
    ("GET", "/static/page.js"): "text/javascript; charset=utf-8",
    ("GET", "/static/page.css"): "text/css; charset=utf-8",
}
PATHS = [path for _, path in TYPES]


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(file, "PNG")
    return file.getvalue()


def form(*contents: bytes) -> bytes:
    part = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n%b\r\n'
    return b"".join(part % content for content in contents) + b"--b--\r\n"


def headers(*names_and_values: tuple[str, st.SearchStrategy[bytes]]) -> st.SearchStrategy[list[tuple[bytes, bytes]]]:
    pairs = [st.tuples(st.just(name.encode()), values) for name, values in names_and_values]
    return st.lists(st.one_of(*pairs, st.tuples(st.binary(min_size=1, max_size=9), st.binary(max_size=30))), max_size=4)


def one_of(*values: str) -> st.SearchStrategy[bytes]:
    return st.one_of(*(st.just(value.encode()) for value in values), st.binary(max_size=20))


METHODS = st.one_of(
    *map(st.just, ("GET", "POST")), st.sampled_from(["HEAD", "PUT", "OPTIONS", "get"]), st.text(max_size=6)
)
ADDRESSES = st.one_of(
    st.sampled_from(PATHS),
    st.tuples(st.sampled_from(PATHS), st.sampled_from(["/", "//", "/../etc/passwd", "\0", ";a", "%2f", "/upload"])).map(
        "".join
    ),
    st.text(max_size=20).map(lambda text: f"/{text}"),
    st.sampled_from(
        ["*", "", "//predict", "/static/../model", "/gradio_api/upload", "/file=/etc/passwd", "http://a/model"]
    ),
)
TARGETS = st.one_of(st.sampled_from([*TYPES]), st.tuples(METHODS, ADDRESSES))
FORM = "multipart/form-data; boundary=b"
HEADERS = headers(
    (
        "content-type",
        one_of("multipart/form-data; boundary=b", "image/png", "multipart/form-data; boundary*=x''b", "text/*"),
    ),
    ("content-length", one_of("0", "-1", "1e9", "9" * 30, "\u0663")),
    ("content-encoding", one_of("gzip", "identity")),
    ("host", one_of("localhost", "evil.com", "[::1", "localhost:x")),
    ("origin", one_of("http://localhost", "null", "http://[")),
    ("authorization", one_of("Bearer s3cret", "Bearer", "Basic YTpi")),
    ("x-forwarded-host", one_of("localhost", "evil.com")),
    ("range", one_of("bytes=0-1")),
)
PNG = picture()
FORMS = [form(PNG), form(PNG, b"text"), form(b""), form(PNG)[:-20], form(*[PNG] * 9)]
BODIES = st.one_of(
    st.sampled_from([b"", PNG, bytes(70_000), *FORMS]),
    st.binary(max_size=200),
    st.tuples(st.binary(max_size=20), st.integers(0, 200)).map(
        lambda each: FORMS[0][: each[1]] + each[0] + FORMS[0][each[1] :]
    ),
)
VALID = [(b"host", b"localhost"), (b"authorization", b"Bearer s3cret"), (b"content-type", FORM.encode())]


# How a request ends: complete, cut off, or complete while the client does not wait for the answer.
COMPLETE: list[dict[str, Any]] = [{"type": "http.request", "body": b"", "more_body": False}]
CUT: list[dict[str, Any]] = [{"type": "http.disconnect"}]
LEFT = COMPLETE + CUT
ENDS = st.sampled_from([COMPLETE, COMPLETE, CUT, LEFT])


async def ask(
    app: Any, method: str, path: str, sent: list[tuple[bytes, bytes]], chunks: list[bytes], end: list[dict[str, Any]]
) -> tuple[int, dict[bytes, bytes], bytes] | None:
    """Send a request as uvicorn does. None if there was no answer."""
    events = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks] + end
    done = asyncio.Event()
    answered: list[dict[str, Any]] = []

    async def receive() -> Any:
        if events:
            return events.pop(0)
        await done.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        answered.append(message)

    scope = {
        **{"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "root_path": ""},
        **{"method": method, "path": path, "raw_path": b"", "query_string": b"path=/etc/passwd&url=http://a"},
        **{"headers": [(name.lower(), value) for name, value in sent], "client": ("127.0.0.1", 1), "server": ("a", 1)},
    }
    await app(scope, receive, send)
    if not answered:
        return None
    start, *bodies = answered
    return start["status"], dict(start["headers"]), b"".join(each.get("body", b"") for each in bodies)


@pytest.mark.parametrize("examples", [200, pytest.param(2000, marks=pytest.mark.faults)])
def test_random_requests_are_answered_by_their_own_route_or_refused(trained: Path, examples: int):
    limits = ServerSettings(token="s3cret", max_request_bytes=50_000, max_files=5)
    app = build_app(InferenceServer(Classifier.load(trained, "cpu", "32-true"), limits))
    page = read_page(SERVER_PAGE)
    answered: set[tuple[str, str]] = set()

    def check(method: str, path: str, answer: tuple[int, dict[bytes, bytes], bytes] | None, is_cut: bool) -> None:
        if answer is None:
            assert is_cut
            return
        status, fields, body = answer
        assert fields[b"cache-control"] == b"no-store"
        if status != 200:
            assert status in REFUSALS
            assert is_cut or list(json.loads(body)) == ["error"]
            return
        answered.add((method, path))
        assert fields[b"content-type"].decode() == TYPES[method, path]
        if path == "/":
            assert body == page["index.html"]
        elif path.startswith("/static/"):
            assert body == page[path[1:]]
        elif path == "/predict":
            assert all(each["label"] or each["error"] for each in json.loads(body)["predictions"])

    with asyncio.Runner() as runner:

        @settings(
            max_examples=int(os.environ.get("FUZZ_EXAMPLES", examples)),
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(TARGETS, st.one_of(st.just([]), HEADERS), st.booleans(), BODIES, st.integers(1, 70_000), ENDS)
        def fuzz(
            target: tuple[str, str],
            sent: list[tuple[bytes, bytes]],
            is_valid: bool,
            body: bytes,
            size: int,
            end: list[dict[str, Any]],
        ) -> None:
            chunks = [body[start : start + size] for start in range(0, len(body), size)]
            sent = [*(VALID if is_valid else []), *sent]
            check(*target, runner.run(ask(app, *target, sent, chunks, end)), end is not COMPLETE)

        fuzz()
    assert len(answered) >= 6  # random requests also reach what they should


def test_a_client_that_leaves_costs_nothing_more(trained: Path, monkeypatch: pytest.MonkeyPatch):
    classifier = Classifier.load(trained, "cpu", "32-true")
    batches: list[int] = []
    classify: Callable[..., Any] = classifier.classify

    def counted(batch: Any) -> Any:
        batches.append(len(batch))
        return classify(batch)

    monkeypatch.setattr(classifier, "classify", counted)
    server = InferenceServer(classifier, ServerSettings(max_files=200))
    app = build_app(server)

    asyncio.run(ask(app, "POST", "/predict", VALID, [form(*[PNG] * 150)], LEFT))
    assert (server.in_flight, server.bodies.held) == (0, 0)
    assert sum(batches) <= classifier.backbone.batch_size
