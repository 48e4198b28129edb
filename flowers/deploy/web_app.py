"""The routes of `flowers.app`: a page, and answers to photos that are sent to it."""

import os
import re
import sys
from hmac import compare_digest
from http import HTTPStatus
from typing import Annotated, Any

import starlette.exceptions
from fastapi import Depends, FastAPI, HTTPException, Path, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from rich.console import Console
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flowers import __version__
from flowers.deploy.app_answers import JSON, Answers, Health, ModelFacts, RequestError
from flowers.deploy.app_settings import ServerSettings, bind, is_known_host, is_loopback, is_own_origin
from flowers.deploy.classifier import Classifier
from flowers.deploy.http_server import serve
from flowers.deploy.inference_server import InferenceServer
from flowers.deploy.page_files import SERVER_PAGE, read_page
from flowers.settings.schema.programs import AppSettings

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
}

_FILE = {"type": "string", "format": "binary"}
_UPLOADS = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "properties": {"files": {"type": "array", "items": _FILE, "minItems": 1}},
            "required": ["files"],
        }
    },
    "image/*": {"schema": _FILE},
    "application/octet-stream": {"schema": _FILE},
}
_BODY = {"requestBody": {"required": True, "content": _UPLOADS}}
_ERRORS = {
    400: "no valid request, or no image in it",
    401: "the token is missing or another one",
    403: "the request comes from the page of another site",
    404: "no such path",
    405: "no such method of this path",
    408: "the request was sent too slowly",
    413: "the request is too large",
    415: "a type of body that is not known",
    421: "the request is for a host that is not allowed",
    422: "the image cannot be read",
    503: "too many requests at the same time; Retry-After says when to try again",
}


def _responses(*more: int, answer: dict[str, Any] | None = None) -> dict[int | str, dict[str, Any]]:
    responses: dict[int | str, dict[str, Any]] = {200: answer} if answer else {}
    for code in sorted({400, 403, 408, 421, 503, *more}):
        responses[code] = {"model": RequestError, "description": _ERRORS[code]}
    return responses


def build_app(server: InferenceServer) -> FastAPI:
    """Return the application: the routes below, and nothing else.

    Args:
        server: What answers.
    """
    settings, page = server.settings, read_page(SERVER_PAGE)
    app = FastAPI(
        title="flowers",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        default_response_class=JSON,
    )
    bearer = HTTPBearer(auto_error=False, description="The token of the server")

    def check_token(given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        expected = settings.token or ""
        if given is None or not compare_digest(given.credentials.encode(), expected.encode()):
            raise HTTPException(
                401, "this server needs its token: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
            )

    guarded = [Depends(check_token)] if settings.token is not None else []

    def file(path: str) -> Response:
        return Response(page[path], media_type=_TYPES[path.rpartition(".")[2]])

    @app.get("/", response_class=Response, responses=_responses(answer={"content": {"text/html": {}}}))
    async def index() -> Response:
        """The page."""
        return file("index.html")

    names = [path.removeprefix("static/") for path in page if path.startswith("static/")]

    @app.get(
        "/static/{name}",
        response_class=Response,
        responses=_responses(404, answer={"content": {"text/css": {}, "text/javascript": {}}}),
    )
    async def static(name: Annotated[str, Path(json_schema_extra={"enum": names})]) -> Response:
        """What the page loads."""
        if name not in names:
            raise HTTPException(404)
        return file(f"static/{name}")

    @app.get("/model", dependencies=guarded, responses=_responses(401))
    async def model() -> ModelFacts:
        """What is served."""
        return JSON(server.facts)  # type: ignore[return-value]

    @app.get("/health", responses=_responses())
    async def health() -> Health:
        """Whether the server answers."""
        return JSON(Health(status="ok"))  # type: ignore[return-value]

    @app.get("/openapi.json", responses=_responses())
    async def openapi() -> dict[str, Any]:
        """This description."""
        return JSON(app.openapi())  # type: ignore[return-value]

    @app.post("/predict", dependencies=guarded, responses=_responses(401, 413, 415), openapi_extra=_BODY)
    async def predict(request: Request) -> Answers:
        """Classify one or several images."""
        return await server.predict(request)  # type: ignore[return-value]

    @app.post(
        "/explain",
        dependencies=guarded,
        response_class=Response,
        responses=_responses(401, 404, 413, 415, 422, answer={"content": {"image/jpeg": {"schema": _FILE}}}),
        openapi_extra=_BODY,
    )
    async def explain(request: Request) -> Response:
        """Draw an image beside its Grad-CAM heat map."""
        return await server.explain(request)

    async def answer_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, starlette.exceptions.HTTPException)
        text = error.detail if error.detail != HTTPStatus(error.status_code).phrase else _ERRORS[error.status_code]
        return JSON({"error": text}, error.status_code, error.headers)

    async def answer_mistake(_: Request, __: Exception) -> Response:
        return JSON({"error": "a mistake of the server, which its log describes"}, 500)

    app.add_exception_handler(starlette.exceptions.HTTPException, answer_error)
    app.add_exception_handler(Exception, answer_mistake)
    app.add_middleware(Gate, settings=settings, policy=_content_security_policy(page["index.html"]))
    return app


def _content_security_policy(page: bytes) -> str:
    """Return the policy in the page, for the header. The header also keeps other pages from framing this one."""
    found = re.search(rb'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert found is not None
    return f"{found[1].decode()}; frame-ancestors 'none'"


class Gate:
    """Refuses requests for other hosts and from other sites, and adds the headers that every answer has.

    A site that a browser shows cannot use this server: not under a name that leads here (DNS rebinding), and not by a
    form or a script.

    Args:
        app: The application behind it.
        settings: The settings of the server.
        policy: The Content-Security-Policy.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, policy: str) -> None:
        self.app, self.settings = app, settings
        self._headers = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        refusal = self._refusal(Request(scope)) if scope["type"] == "http" else None
        await (refusal or self.app)(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        if "content-length" in request.headers and "transfer-encoding" in request.headers:
            # Another program before this one may see another end of the body: what follows is not read (RFC 9112, 6.1).
            error = "Content-Length and Transfer-Encoding: expected one of them"
            return JSON({"error": error}, 400, {"Connection": "close"})
        hosts, origins = request.headers.getlist("host"), request.headers.getlist("origin")
        if self.settings.proxy and (forwarded := request.headers.getlist("x-forwarded-host")):
            hosts = [forwarded[-1].rpartition(",")[2].strip()]  # the last proxy is the one that was meant
        if len(hosts) != 1 or not is_known_host(hosts[0], self.settings.allowed_hosts):
            return JSON({"error": "this host is not among allowed_hosts"}, 421)
        if not all(is_own_origin(origin, hosts[0]) for origin in origins):
            return JSON({"error": "the request comes from another site"}, 403)
        return None


def serve_app(settings: AppSettings, server_settings: ServerSettings) -> None:
    """Serve a classifier until SIGINT or SIGTERM, then end the process: a batch that it computes cannot be interrupted.

    Args:
        settings: Those of `flowers.app`.
        server_settings: Made of them.

    Raises:
        ValueError: The port is in use, or the run cannot be served.
    """
    with bind(server_settings.host, server_settings.port) as bound:
        device = settings.accelerator, settings.precision
        classifier = Classifier.load(settings.run or "", *device, reject=settings.reject)
        server = InferenceServer(classifier, server_settings)
        console = Console(highlight=False, soft_wrap=True, markup=False)

        def say_ready() -> None:
            for line in _ready_lines(server, bound.getsockname()[1]):
                console.print(line)

        limits = server_settings.request_seconds, server_settings.proxy
        serve(build_app(server), bound, *limits, say_ready, server.stop)
    console.print("stopped")
    sys.stdout.flush()
    os._exit(0)


def _ready_lines(server: InferenceServer, port: int) -> list[str]:
    settings, facts = server.settings, server.facts
    named = [name for name in settings.allowed_hosts if "*" not in name]
    host = settings.host if is_loopback(settings.host) else next(iter(named), settings.host)
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    lines = [
        f"serving {facts.name}: {len(facts.classes)} classes; none of these: {'yes' if facts.rejects else 'no'}; "
        f"heat maps: {'yes' if facts.explains else 'no'}",
    ]
    if settings.token is not None:
        lines.append(
            f"open {address}#token=… in a browser, with the token after the sign =; programs send it as a header"
        )
    else:
        lines.append(f"open {address} in a browser")
        if not is_loopback(settings.host):
            lines.append(f"token=null: everyone who reaches port {port} of this machine may use it")
    return [
        *lines,
        f"programs POST images to {address}predict; {address}openapi.json describes it; Ctrl-C stops the server",
    ]
