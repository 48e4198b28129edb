import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from PIL import Image

from flowers.app import main
from flowers.deploy.app_settings import ServerSettings, bind
from flowers.deploy.classifier import Classifier
from flowers.deploy.inference_server import InferenceServer
from flowers.deploy.page_files import SERVER_PAGE, read_page
from flowers.deploy.web_app import build_app
from flowers.runs.predictions import load_predictions
from tests.helpers import configuration

ROUTES = {
    "GET /",
    "GET /static/NAME",
    "GET /model",
    "GET /health",
    "GET /openapi.json",
    "POST /predict",
    "POST /explain",
}
JPEG = {"Content-Type": "image/jpeg"}


@pytest.fixture(scope="module")
def classifier(trained: Path) -> Classifier:
    return Classifier.load(trained, "cpu", "32-true")


@contextmanager
def client(classifier: Classifier, settings: ServerSettings | None = None) -> Iterator[TestClient]:
    """A client of a server in this process, which raises what the server raises."""
    app = build_app(InferenceServer(classifier, settings or ServerSettings()))
    with TestClient(app, base_url="http://localhost:7860") as opened:
        yield opened


@pytest.fixture(scope="module")
def app(classifier: Classifier) -> Iterator[TestClient]:
    with client(classifier) as opened:
        yield opened


@pytest.fixture(scope="module")
def photos(painted: Path) -> list[Path]:
    return sorted(painted.glob("*/*.jpg"))


def predictions(response: httpx2.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    return list(response.json()["predictions"])


def test_app_has_these_routes_and_no_other(app: TestClient):
    assert isinstance(app.app, FastAPI)
    served = set()
    for route in app.app.routes:
        assert isinstance(route, APIRoute)
        served |= {f"{method} {route.path.replace('{name}', 'NAME')}" for method in route.methods or ()}
    described = {
        f"{method.upper()} {path.replace('{name}', 'NAME')}"
        for path, methods in app.get("/openapi.json").json()["paths"].items()
        for method in methods
    }
    assert served == described == ROUTES


def test_app_is_described_in_the_docs_with_all_its_routes():
    page = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `((?:GET|POST) [^`]*)` \|", page, re.MULTILINE)) == ROUTES


def test_app_serves_the_page_and_what_it_loads(app: TestClient):
    for path, content in read_page(SERVER_PAGE).items():
        response = app.get("/" if path == "index.html" else f"/{path}")
        assert response.content == content
        assert response.headers["x-content-type-options"] == "nosniff"
    assert app.get("/static/page.js").headers["content-type"].startswith("text/javascript")
    for path in ("/static/", "/static/index.html", "/static/..%2fpage_files.py", "/static/%2e%2e/%2e%2e/app.py", "/x"):
        response = app.get(path)
        assert (response.status_code, response.json()) == (404, {"error": "no such path"})


def test_page_may_contact_no_other_host(app: TestClient):
    response = app.get("/")
    policy = response.headers["Content-Security-Policy"]
    assert policy.removesuffix("; frame-ancestors 'none'") in response.text
    assert "default-src 'none'" in policy
    assert not re.search(r"https?:|\*", policy)


def test_app_answers_other_methods_with_405(app: TestClient):
    for method, path in (
        ("POST", "/"),
        ("GET", "/predict"),
        ("PUT", "/explain"),
        ("OPTIONS", "/model"),
        ("X", "/health"),
    ):
        response = app.request(method, path)
        assert (response.status_code, response.json()) == (405, {"error": "no such method of this path"})


def test_app_classifies_files_in_their_order(
    app: TestClient, classifier: Classifier, photos: list[Path], tmp_path: Path
):
    cmyk = tmp_path / "cmyk.tif"  # a format and a mode that browsers cannot show
    Image.open(photos[0]).convert("CMYK").save(cmyk)
    files = [*photos[:3], cmyk, photos[0]]
    sent = [("files", (file.name, file.read_bytes())) for file in files]
    answers = predictions(app.post("/predict", files=sent))
    assert [answer["name"] for answer in answers] == [file.name for file in files]
    for file, answer in zip(files, answers, strict=True):
        expected = classifier(file)
        assert answer["label"] == expected.label
        assert answer["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)
        assert answer["probability"] == answer["probabilities"][expected.label]
        assert (answer["rejected"], answer["abstains"], answer["strangeness"], answer["error"]) == (False,) * 2 + (
            None,
        ) * 2


def test_app_takes_one_image_as_the_body(app: TestClient, classifier: Classifier, photos: list[Path]):
    for kind in ("image/jpeg", "application/octet-stream", "image/x-anything; a=b"):
        (answer,) = predictions(app.post("/predict", content=photos[0].read_bytes(), headers={"Content-Type": kind}))
        assert (answer["name"], answer["label"]) == (None, classifier(photos[0]).label)


def test_app_says_which_file_cannot_be_read(app: TestClient, photos: list[Path]):
    content, large, rather_large = photos[0].read_bytes(), io.BytesIO(), io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(large, "PNG")
    Image.new("1", (8_000, 7_000)).save(rather_large, "PNG")
    bad = [b"text", content[: len(content) // 2], large.getvalue(), rather_large.getvalue(), b""]
    *answers, last = predictions(
        app.post("/predict", files=[("files", (f"{number}.jpg", each)) for number, each in enumerate([*bad, content])])
    )
    reasons = ["not a JPEG", "truncated", "over the limit of 50,000,000", "8000 x 7000 pixels", "empty"]
    for reason, answer in zip(reasons, answers, strict=True):
        assert reason in answer["error"]
        assert {answer[key] for key in answer if key not in ("name", "error")} == {None}
    assert last["label"] is not None


def test_app_explains_one_image(app: TestClient, photos: list[Path]):
    for request in ({"content": photos[0].read_bytes(), "headers": JPEG}, {"files": {"f": photos[0].read_bytes()}}):
        response = app.post("/explain", **request)
        assert response.headers["content-type"] == "image/jpeg"
        picture = Image.open(io.BytesIO(response.content))
        assert picture.width > picture.height
    response = app.post("/explain", content=b"text", headers=JPEG)
    assert (response.status_code, "not a JPEG" in response.json()["error"]) == (422, True)
    assert app.post("/explain", files=[("f", ("a", b"a")), ("f", ("b", b"b"))]).status_code == 400


def test_app_describes_its_model(app: TestClient, classifier: Classifier):
    facts = app.get("/model").json()
    assert facts["classes"] == classifier.classes
    assert facts["preprocessing"]["image_size"] == 32
    assert (facts["rejects"], facts["explains"], facts["confidence"]) == (False, True, None)
    assert facts["digests"]["split"] == classifier.model.hparams["split_digest"]
    assert facts["limits"] == {"files": 64, "request_bytes": 50_000_000, "pixels": 50_000_000}
    assert app.get("/health").json() == {"status": "ok"}


def test_app_abstains_below_the_confidence(classifier: Classifier, photos: list[Path]):
    with client(classifier, ServerSettings(confidence=1.0)) as strict:
        (answer,) = predictions(strict.post("/predict", files={"f": photos[0].read_bytes()}))
        assert (answer["abstains"], answer["label"]) == (True, classifier(photos[0]).label)


def test_app_rejects_what_is_none_of_the_classes(rejecting: Path, painted: Path):
    classifier = Classifier.load(rejecting, "cpu", "32-true", reject=0.9)
    assert classifier.rejection is not None
    val = load_predictions(rejecting / "predictions" / "val.csv").paths
    strangest = painted / val[int(classifier.rejection.val_scores.argmax())]
    with client(classifier) as rejecting_app:
        (answer,) = predictions(rejecting_app.post("/predict", files={"f": strangest.read_bytes()}))
        assert answer["rejected"] is True
        assert answer["strangeness"] > classifier.rejection.threshold
        assert rejecting_app.get("/model").json()["rejects"] is True


def test_app_sends_any_class_name_as_ascii(trained: Path, photos: list[Path]):
    classifier = Classifier.load(trained, "cpu", "32-true")
    names = ["$a$_b_", "</script>", "\x1b[31m\r", os.fsdecode(b"caf\xe9"), "=1|2"]
    classifier.classes[:] = names
    with client(classifier) as odd:
        response = odd.post("/predict", files={"f": photos[0].read_bytes()})
        assert response.content.isascii()
        assert set(json.loads(response.content)["predictions"][0]["probabilities"]) == set(names)
        assert json.loads(odd.get("/model").content)["classes"] == names


def test_app_refuses_other_hosts_and_other_sites(classifier: Classifier):
    with client(classifier, ServerSettings(allowed_hosts=["flowers.example.com", "*.lan"])) as app:
        for host in ("evil.example.com", "169.254.1.1", "evil.com:7860", "localhost@evil.com", "localhost.", "", "a b"):
            response = app.get("/health", headers={"Host": host})
            assert (response.status_code, list(response.json())) == (421, ["error"])
        for origin in ("http://evil.com", "http://localhost:1", "null", "https://flowers.example.com.evil.com", ""):
            for method, path in (("POST", "/predict"), ("GET", "/model")):
                assert app.request(method, path, headers={"Origin": origin}).status_code == 403
        for host, origin in (
            ("localhost:7860", "http://localhost:7860"),
            ("[::1]:7860", "http://[::1]:7860"),
            ("flowers.example.com", "https://flowers.example.com"),
            ("FLOWERS.example.com:443", "https://flowers.example.com"),
            ("a.lan", "http://a.lan"),
        ):
            assert app.get("/model", headers={"Host": host, "Origin": origin}).status_code == 200
        forwarded = {"X-Forwarded-Host": "localhost", "Host": "evil.com"}
        assert app.get("/model", headers=forwarded).status_code == 421


def test_app_believes_a_proxy_only_where_it_was_told_to(classifier: Classifier):
    settings = ServerSettings(allowed_hosts=["flowers.example.com"], proxy=True)
    headers = {"Host": "127.0.0.1:7860", "Origin": "https://flowers.example.com"}
    for proxied, status in ((settings, 200), (settings._replace(proxy=False), 403)):
        with client(classifier, proxied) as app:
            headers["X-Forwarded-Host"] = "flowers.example.com"
            assert app.get("/model", headers=headers).status_code == status
            headers["X-Forwarded-Host"] = "localhost, evil.com"
            assert app.get("/model", headers=headers).status_code == (421 if proxied.proxy else 403)


def test_app_asks_for_its_token(classifier: Classifier, photos: list[Path]):
    with client(classifier, ServerSettings(token="s3cret")) as app:
        for path in ("/model", "/predict", "/explain"):
            method = "GET" if path == "/model" else "POST"
            for given in (None, "Bearer s3cre", "Bearer s3crett", "Basic s3cret", "s3cret", "Bearer \xff", "Bearer "):
                headers = {} if given is None else {"Authorization": given.encode("latin-1")}
                response = app.request(method, path, headers=headers)  # type: ignore[arg-type]
                assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
                assert "s3cret" not in response.text
        allowed = {"Authorization": "Bearer s3cret"}
        assert app.get("/model", headers=allowed).status_code == 200
        assert len(predictions(app.post("/predict", files={"f": photos[0].read_bytes()}, headers=allowed))) == 1
        assert {app.get(path).status_code for path in ("/", "/health", "/openapi.json", "/static/page.js")} == {200}


def test_app_refuses_large_requests(classifier: Classifier, photos: list[Path]):
    with client(classifier, ServerSettings(max_request_bytes=1_000_000, max_files=3)) as app:
        large = bytes(1_300_000)
        for content in (large, iter([large]), iter([bytes(100_000)] * 11)):  # with a length, and without one
            response = app.post("/predict", content=content, headers=JPEG)
            assert response.status_code == 413
            assert response.json() == {"error": "the request is too large: expected at most 1,000,000 bytes"}
        assert app.post("/predict", content=b"", headers=JPEG | {"Content-Length": "9" * 99}).status_code == 413
        assert app.post("/predict", content=large, headers=JPEG | {"Content-Length": "9"}).status_code == 413
        sent = [("files", ("a", photos[0].read_bytes()))]
        assert len(predictions(app.post("/predict", files=3 * sent))) == 3
        assert app.post("/predict", files=4 * sent).json() == {
            "error": "too many files: expected at most 3 in a request"
        }
        assert app.post("/predict", data={f"{each}": "a" for each in range(30)}, files=sent).status_code == 413
        assert len(predictions(app.post("/predict", data={"a": "b"}, files=sent))) == 1


def test_app_refuses_bodies_that_it_does_not_know(app: TestClient):
    form = "multipart/form-data; boundary=x"
    for kind, body, status in (
        ("application/x-www-form-urlencoded", b"path=/etc/passwd", 415),
        ("application/json", b'{"path": "/etc/passwd"}', 415),
        ("text/plain", b"a", 415),
        ("multipart/mixed; boundary=x", b"--x--", 415),
        ("multipart/form-data", b"--x--", 400),
        (form, b"", 400),
        (form, b"--x--", 400),
        (form, b"--x\r\n", 400),
        (form, b"--x\r\nContent-Disposition: form-data; filename=a\r\n\r\n", 400),
        (form, b"--x\r\nContent-Disposition: form-data; name=path\r\n\r\n/etc/passwd\r\n--x--", 400),
        (form, b"--x\r\nContent-Disposition: form-data; filename=a" + bytes(5000) + b"\r\n\r\na\r\n--x--", 400),
        (form, b"junk\r\n--x\r\nContent-Disposition: form-data; filename=a\r\n\r\na\r\n--x--", 400),
        ("image/jpeg", b"", 400),
    ):
        response = app.post("/predict", content=body, headers={"Content-Type": kind})
        assert (response.status_code, list(response.json())) == (status, ["error"]), (kind, body)
    assert app.post("/predict", content=b"a", headers=JPEG | {"Content-Encoding": "gzip"}).status_code == 415
    odd = b"--x\r\nContent-Disposition: form-data; filename*=no-such-encoding''a%ff\r\n\r\na\r\n--x--\r\n"
    assert len(predictions(app.post("/predict", content=odd, headers={"Content-Type": form}))) == 1


def test_app_writes_no_file_while_it_answers(app: TestClient, photos: list[Path]):
    opened: list[Any] = []
    is_watching = True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if (
            is_watching
            and event == "open"
            and isinstance(arguments[2], int)
            and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        ):
            opened.append(arguments)

    sys.addaudithook(watch)
    content = photos[0].read_bytes() + bytes(3_000_000)  # above what other parsers keep in memory
    sent = [("files", (f"{number}.jpg", content)) for number in range(5)]
    assert len(predictions(app.post("/predict", files=sent))) == 5
    assert app.post("/explain", content=content, headers=JPEG).status_code == 200
    is_watching = False
    assert opened == []


def test_app_answers_many_requests_at_once_in_batches(classifier: Classifier, photos: list[Path]):
    batches = []

    class Counting(Classifier):
        def classify(self, batch: Any) -> Any:
            batches.append(batch)
            return super().classify(batch)

    counting = Counting(classifier.model, classifier.temperature)
    expected = classifier(photos[0]).label
    with client(counting) as app, ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda _: app.post("/predict", files={"f": photos[0].read_bytes()}), range(80)))
    assert {predictions(answer)[0]["label"] for answer in answers} == {expected}
    assert len(batches) < 80


def test_app_tells_a_request_too_many_to_come_again(classifier: Classifier, photos: list[Path]):
    with client(classifier, ServerSettings(max_in_flight=1)) as app, ThreadPoolExecutor(8) as pool:
        sent = [("files", ("a", photos[0].read_bytes()))] * 60
        responses = list(pool.map(lambda _: app.post("/predict", files=sent), range(8)))
    assert {response.status_code for response in responses} == {200, 503}
    assert all(response.headers["retry-after"] == "1" for response in responses if response.status_code == 503)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def process(trained: Path, *overrides: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], int, str]]:
    """A server of its own: the process, its port, and what it says until it is ready."""
    port = free_port()
    command = [sys.executable, "-m", "flowers.app", f"run={trained}", f"port={port}", "accelerator=cpu", *overrides]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment) as server:
        try:
            assert server.stdout is not None
            said = ""
            while "Ctrl-C stops the server" not in said:
                line = server.stdout.readline()
                assert line, said
                said += line
            yield server, port, said
        finally:
            server.kill()


def test_app_runs_and_cuts_slow_clients_and_stops_at_once(trained: Path, photos: list[Path]):
    with process(trained, "request_seconds=1", "confidence=1", FLOWERS_APP_TOKEN="s3cret") as (server, port, said):
        assert said.startswith("flowers app: loading")
        assert f"open http://127.0.0.1:{port}/#token=…" in said
        assert "s3cret" not in said
        address = f"http://127.0.0.1:{port}"
        allowed = {"Authorization": "Bearer s3cret"}
        content = photos[0].read_bytes()
        (answer,) = predictions(httpx2.post(f"{address}/predict", files={"f": content}, headers=allowed))
        assert answer["abstains"] is True
        assert httpx2.get(f"{address}/model").status_code == 401

        start = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer s3cret\r\nContent-Length: 99\r\n"
        for sent, status in ((b"", b""), (b"GET / HT", b"408"), (start, b"408"), (start + b"\r\nabc", b"408")):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.settimeout(10)
                connection.sendall(sent)
                assert connection.recv(1000)[9:12] == status
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
            assert b"400 \r\ncontent-type: application/json" in connection.recv(1000)

        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.settimeout(10)
            both = (
                b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            connection.sendall(both + b"0\r\n\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            received = b"".join(iter(lambda: connection.recv(1000), b""))
            assert received.startswith(b"HTTP/1.1 400 ")
            assert received.count(b"HTTP/1.1") == 1

        with socket.create_connection(("127.0.0.1", port)) as slow, httpx2.Client(base_url=address) as idle:
            slow.sendall(start + b"\r\nabc")
            assert idle.get("/health").status_code == 200
            started = time.monotonic()
            server.send_signal(signal.SIGINT)
            assert server.wait(10) == 0
            assert time.monotonic() - started < 2


def test_app_names_a_port_in_use(trained: Path):
    with socket.socket() as occupied:
        occupied.bind(("127.0.0.1", 0))
        occupied.listen()
        port = occupied.getsockname()[1]
        with pytest.raises(ValueError, match=f"port={port}: in use"):
            main(configuration(f"run={trained}", f"port={port}", name="app"))
    with pytest.raises(ValueError, match=r"host=no\.such\.host\.invalid: no such address"):
        bind("no.such.host.invalid", 0)


def test_app_names_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("FLOWERS_APP_TOKEN", raising=False)
    run = f"run={tmp_path}"
    for overrides, message in (
        (["port=0"], "run="),
        ([run, "port=70000"], "port=70000"),
        ([run, "port=0", "confidence=2"], "confidence=2"),
        ([run, "port=0", "max_megapixels=0"], "max_megapixels=0"),
        ([run, "port=0"], f"run={tmp_path}"),
        ([run, "host=0.0.0.0", "allowed_hosts=[a]"], r"host=0\.0\.0\.0: .*token=null"),
        ([run, "host=0.0.0.0", "token=null"], r"host=0\.0\.0\.0: .*allowed_hosts"),
        ([run, "host=0.0.0.0", "token=s"], r"host=0\.0\.0\.0: .*allowed_hosts"),
        ([run, "token='a b'"], "token: expected letters"),
    ):
        with pytest.raises(ValueError, match=message):
            main(configuration(*overrides, name="app"))


def test_app_tells_a_wrong_run_before_it_imports_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "model.onnx").touch()
    code = """if True:
        import sys
        from flowers.app import main
        try:
            main()
        except SystemExit as error:
            print(error.code, "torch" in sys.modules)
    """
    for run, message in ((tmp_path, "model.onnx is an exported program"), (tmp_path / "missing", "no run there")):
        said = subprocess.run([sys.executable, "-c", code, f"run={run}"], capture_output=True, text=True, check=True)
        assert message in said.stdout.splitlines()[-1]
        assert said.stdout.endswith(" False\n")
