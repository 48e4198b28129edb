"""A web page that classifies images, built with Gradio and served on this machine only."""

import errno
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from omegaconf import DictConfig
from PIL import Image
from rich.console import Console
from starlette.middleware.trustedhost import TrustedHostMiddleware

from flowers.data.images import read_error_reason, read_image
from flowers.deploy.classifier import Classifier
from flowers.deploy.explain import explain_image
from flowers.deploy.predict import check_confidence
from flowers.runtime.config import require_extra
from flowers.runtime.run_folder import find_checkpoint

_HOST = "127.0.0.1"


_LOCAL_NAMES = (_HOST, "localhost")


# With this policy a browser contacts no other host, whatever the version of Gradio puts into its page.
_CONTENT_SECURITY_POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; connect-src 'self' data: blob: ws: wss:"
)


_MAX_UPLOAD = "100mb"


def serve_app(cfg: DictConfig) -> None:
    """Serve the page until the process is interrupted.

    Args:
        cfg: Composed from conf/app.yaml.

    Raises:
        ValueError: A setting is wrong, the port is in use, or there is no run.
    """
    require_extra("the web app", "app", "gradio", "uvicorn", "captum")
    import uvicorn

    check_confidence(cfg.confidence)
    _check_port(cfg.port)
    checkpoint = find_checkpoint(cfg.run)
    classifier = Classifier.load(checkpoint, cfg.accelerator, cfg.precision)
    app = build_app(classifier, cfg.confidence, str(cfg.run), cfg.allowed_hosts)
    console = Console(highlight=False)
    console.print(f"open http://{_HOST}:{cfg.port} in a browser on this machine; Ctrl-C stops the server")
    uvicorn.run(app, host=_HOST, port=cfg.port, log_level="warning")


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except (OSError, OverflowError) as error:
            in_use = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            raise ValueError(f"port={port}: {'in use' if in_use else error}; give another port") from error


def build_app(
    classifier: Classifier, confidence: float | None, name: str, allowed_hosts: Sequence[str] = ()
) -> FastAPI:
    """Build the web application.

    Args:
        classifier: The trained classifier.
        confidence: The probability below which the page says that it does not know. None to always name a class.
        name: The name of the run, shown on the page.
        allowed_hosts: Host names, beside localhost, under which a reverse proxy serves the page. "*.example.com" and
            "*" are patterns.

    Returns:
        The application. It deletes the uploaded images when it shuts down.
    """
    uploads = Path(tempfile.mkdtemp(prefix="flowers-app-")).resolve()
    _configure_gradio(uploads)
    import gradio as gr

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        shutil.rmtree(uploads, ignore_errors=True)

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    _guard_requests(app, uploads, allowed_hosts)
    return gr.mount_gradio_app(  # type: ignore[no-any-return]
        app,
        _build_page(classifier, confidence, name),
        path="/",
        server_name=_HOST,
        footer_links=[],
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        max_file_size=_MAX_UPLOAD,
        show_error=False,
        ssr_mode=False,
    )


def _configure_gradio(uploads: Path) -> None:
    """Set what Gradio reads from the environment, partly when it is imported."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)  # the default folder is shared with other apps of this machine


def _build_page(classifier: Classifier, confidence: float | None, name: str) -> Any:
    import gradio as gr

    with gr.Blocks(title="flowers", analytics_enabled=False, delete_cache=(600, 600)) as page:
        gr.Markdown(f"## Which class: {', '.join(classifier.classes)}?")
        with gr.Row():
            image = gr.Image(
                label="Drop, paste or choose an image", sources=["upload", "clipboard"], buttons=[], height=420
            )
            with gr.Column():
                message = gr.Markdown()
                label = gr.Label(show_label=False, num_top_classes=min(10, len(classifier.classes)))
        heat_map = gr.Image(label="What the model looks at (Grad-CAM)", interactive=False, buttons=["fullscreen"])
        gr.Markdown(f"Probabilities are calibrated on validation images. Model: {name}. Images stay on this machine.")
        # Without preprocessing the function gets the uploaded file itself. `read_image` knows more formats than Gradio
        # and says what is wrong with a file.
        image.change(
            lambda upload: answer_upload(classifier, upload["path"] if upload else None, confidence),
            image,
            [message, label, heat_map],
            preprocess=False,
            api_visibility="private",
        )
    return page


def answer_upload(
    classifier: Classifier, file: str | None, confidence: float | None
) -> tuple[str, dict[str, float] | None, Image.Image | None]:
    """Classify and explain an uploaded file.

    Args:
        classifier: The trained classifier.
        file: The path. None if the upload was removed from the page.
        confidence: The probability below which the answer is "I don't know". None to always name a class.

    Returns:
        A message in Markdown, the probabilities by class, and the image beside its heat map. The last two are None if
        there is no readable image.
    """
    if file is None:
        return "", None, None
    try:
        image = read_image(file)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises anything from EOFError to struct.error for a damaged file
        return f"### This file cannot be read as an image\n{read_error_reason(error)}", None, None
    prediction, explanation = classifier(image), explain_image(classifier, image)
    message = ""
    if confidence is not None and prediction.probability < confidence:
        message = (
            f"### I don't know\nThe most likely class is {prediction.label}, but its probability is below "
            f"{confidence:.2f}"
        )
    return message, prediction.probabilities, explanation.picture


def _guard_requests(app: FastAPI, uploads: Path, allowed_hosts: Sequence[str]) -> None:
    """Refuse requests for other host names, from other sites, and for files that were not uploaded.

    Gradio itself checks files only in apps that it launches, not in a mounted app. It would copy any file of this
    machine, or of a public address, into its cache and serve it.
    """

    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Response:
        if not _is_own_origin(request, allowed_hosts):
            return PlainTextResponse("the request comes from another site", 403)
        if not await _names_only_uploads(request, uploads):
            return PlainTextResponse("only uploaded files can be used", 403)
        response: Response = await call_next(request)
        response.headers["Content-Security-Policy"] = _CONTENT_SECURITY_POLICY
        return response

    # Added last, so it runs first.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*_LOCAL_NAMES, *allowed_hosts], www_redirect=False)


def _is_own_origin(request: Request, allowed_hosts: Sequence[str]) -> bool:
    """Return whether the request comes from the page itself, or from a program that sends no origin."""
    origin = request.headers.get("origin")
    if origin is None:
        return True
    address = urlsplit(origin)
    is_same = address.netloc == request.headers.get("host")
    return is_same or any(fnmatch(address.hostname or "", pattern) for pattern in allowed_hosts)


async def _names_only_uploads(request: Request, uploads: Path) -> bool:
    """Return whether every file that the request names is an uploaded one."""
    route = request.url.path
    if (served := re.search("/file[=/](.*)", route, re.DOTALL)) and not _is_below(served[1], uploads):
        return False
    if request.method in ("GET", "HEAD", "OPTIONS") or route.endswith("/upload"):
        return True
    try:
        body = json.loads(await request.body() or b"null")
    except (ValueError, RecursionError):
        return False
    return all(_is_below(path, uploads) for path in _paths_in(body))


def _paths_in(body: Any) -> Iterator[str]:
    """Yield each file path in a JSON body. Gradio describes a file as an object whose "path" is a text."""
    waiting = [body]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if isinstance(path := value.get("path"), str):
                yield path
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _is_below(path: str, folder: Path) -> bool:
    """Return whether `path`, with its symbolic links resolved, is inside `folder`."""
    try:
        return Path(path).resolve().is_relative_to(folder)
    except (ValueError, OSError, RuntimeError):  # a null byte, a name that is too long, a loop of links
        return False
