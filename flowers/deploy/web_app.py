"""A web page that classifies images, built with Gradio and served on this machine only."""

import errno
import json
import os
import re
import shutil
import socket
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from omegaconf import DictConfig
from PIL import Image
from rich.console import Console
from starlette.middleware.trustedhost import TrustedHostMiddleware

from flowers.data.images import IMAGE_FORMATS, read_error_reason, read_image
from flowers.deploy.classifier import Classifier
from flowers.deploy.explain import Explanation, ImageCrops, crop_image, explain_images
from flowers.deploy.hub_folder import find_classifier
from flowers.runtime.config import check_settings, require_extra
from flowers.runtime.hardware import available_cores
from flowers.runtime.text import escape_markdown, one_line

_HOST = "127.0.0.1"


_LOCAL_NAMES = (_HOST, "localhost")


# With this policy a browser contacts no other host, whatever the version of Gradio puts into its page.
_CONTENT_SECURITY_POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; connect-src 'self' data: blob: ws: wss:"
)


_MAX_BATCH = 16  # uploads; on a CPU, the frozen backbone computes batches of this size


_MULTIPART_BYTES = 100_000  # of an upload, beside the file


def serve_app(cfg: DictConfig) -> None:
    """Serve the page until the process is interrupted.

    Args:
        cfg: Composed from conf/app.yaml.

    Raises:
        ValueError: A setting is wrong, the port is in use, or there is no run.
    """
    require_extra("the web app", "app", "gradio", "uvicorn", "captum")
    import uvicorn

    check_settings(cfg, "app")
    _check_port(cfg.port)
    run = find_classifier(cfg.run)
    classifier = Classifier.load(run, cfg.accelerator, cfg.precision, reject=cfg.reject)
    settings = PageSettings(
        str(cfg.run), cfg.confidence, cfg.max_megapixels, cfg.max_upload_mb, list(cfg.allowed_hosts)
    )
    app = build_app(classifier, settings)
    console = Console(highlight=False)
    console.print(f"open http://{_HOST}:{cfg.port} in a browser on this machine; Ctrl-C stops the server")
    # A client that waits for its turn uses its connection again after more than the default of 5 seconds.
    uvicorn.run(app, host=_HOST, port=cfg.port, log_level="warning", timeout_keep_alive=75)


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except (OSError, OverflowError) as error:
            in_use = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            raise ValueError(f"port={port}: {'in use' if in_use else error}; give another port") from error


def build_app(classifier: Classifier, settings: "PageSettings") -> FastAPI:
    """Build the web application.

    Args:
        classifier: The trained classifier.
        settings: The settings of the page.

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
    _guard_requests(app, uploads, settings)
    return gr.mount_gradio_app(  # type: ignore[no-any-return]
        app,
        _build_page(classifier, settings),
        path="/",
        server_name=_HOST,
        footer_links=[],
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        max_file_size=int(settings.max_upload_mb * 1e6),
        show_error=False,
        ssr_mode=False,
    )


def _configure_gradio(uploads: Path) -> None:
    """Set what Gradio reads from the environment, partly when it is imported."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)  # the default folder is shared with other apps of this machine


def _build_page(classifier: Classifier, settings: "PageSettings") -> Any:
    import gradio as gr

    def markdown(text: str = "") -> Any:
        return gr.Markdown(text, latex_delimiters=[])  # a class name may hold dollars

    # PyTorch keeps threads and memory for each thread that calls it, and Gradio calls from dozens of threads.
    worker = ThreadPoolExecutor(1)

    def answer(files: Sequence[dict[str, str] | None]) -> tuple[list[Any], ...]:
        paths = [file["path"] if file else None for file in files]
        computed = worker.submit(answer_uploads, classifier, paths, settings.confidence, settings.max_megapixels)
        answers = computed.result()
        labels = [
            # A label shows the most likely class in large letters, as the answer, unless it has no heading.
            gr.Label(value=answer.probabilities, show_heading=not answer.abstains)
            for answer in answers
        ]
        return [answer.message for answer in answers], labels, [answer.picture for answer in answers]

    with gr.Blocks(title="flowers", analytics_enabled=False, delete_cache=(600, 600)) as page:
        markdown(f"## Which class: {', '.join(map(escape_markdown, classifier.classes))}?")
        with gr.Row():
            image = gr.Image(
                label="Drop, paste or choose an image", sources=["upload", "clipboard"], buttons=[], height=420
            )
            with gr.Column():
                message = markdown()
                label = gr.Label(show_label=False, num_top_classes=min(10, len(classifier.classes)))
        heat_map = gr.Image(
            label="What the model looks at (Grad-CAM)",
            interactive=False,
            buttons=["fullscreen"],
            format="jpeg",  # the compression of WebP takes 20 times as long, and as long as the network itself
        )
        name = escape_markdown(settings.name)
        markdown(f"Probabilities are calibrated on validation images. Model: {name}. Images stay on this machine.")
        # Without preprocessing the function gets the uploaded file itself. `read_image` knows more formats than Gradio
        # and says what is wrong with a file. The uploads that wait are answered together.
        image.change(
            answer,
            image,
            [message, label, heat_map],
            preprocess=False,
            api_visibility="private",
            batch=True,
            max_batch_size=_MAX_BATCH,
        )
    return page


class PageSettings(NamedTuple):
    """What the owner of the page may choose.

    Attributes:
        name: The name of the run, shown on the page.
        confidence: The probability below which the page says that it does not know. None to always name a class.
        max_megapixels: Images with more pixels are refused.
        max_upload_mb: Files of more megabytes are refused.
        allowed_hosts: Host names, beside localhost, under which a reverse proxy serves the page. "*.example.com" and
            "*" are patterns.
    """

    name: str
    confidence: float | None = None
    max_megapixels: float = 50.0
    max_upload_mb: float = 20.0
    allowed_hosts: Sequence[str] = ()


class Answer(NamedTuple):
    """What the page shows for an upload.

    Attributes:
        message: Markdown; empty if there is nothing to say.
        probabilities: The probability of each class, as it is displayed. None if there is no readable image.
        picture: The image beside its heat map. None if there is no readable image.
        abstains: Whether the page does not know the class.
    """

    message: str = ""
    probabilities: dict[str, float] | None = None
    picture: Image.Image | None = None
    abstains: bool = False


def answer_uploads(
    classifier: Classifier, files: Sequence[str | None], confidence: float | None, max_megapixels: float
) -> list[Answer]:
    """Classify and explain uploaded files, all in one batch.

    Args:
        classifier: The trained classifier.
        files: The paths. None if an upload was removed from the page.
        confidence: See `PageSettings`.
        max_megapixels: See `PageSettings`.
    """
    read = list(_readers().map(lambda file: _read_upload(classifier, file, max_megapixels), files))
    crops = [upload for upload in read if isinstance(upload, ImageCrops)]
    explanations = explain_images(classifier, crops) if crops else iter(())
    return [_answer(next(explanations), confidence) if isinstance(each, ImageCrops) else Answer(each) for each in read]


@cache
def _readers() -> ThreadPoolExecutor:
    # Threads suffice: Pillow and torch release the interpreter lock while they decode and resize.
    return ThreadPoolExecutor(available_cores())


def _read_upload(classifier: Classifier, file: str | None, max_megapixels: float) -> ImageCrops | str:
    """Return what the network sees of a file, or the message, in Markdown, why it sees nothing."""
    if file is None:
        return ""
    try:
        with Image.open(file, formats=IMAGE_FORMATS) as header:  # the pixels are not decoded yet
            megapixels = header.width * header.height / 1e6
            if megapixels > max_megapixels:
                size = f"{header.width} x {header.height} pixels, {megapixels:.1f} megapixels"
                return (
                    f"### This image is too large\nIt has {size}. This page takes up to {max_megapixels:g} megapixels."
                )
        return crop_image(classifier, read_image(file))
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises anything from EOFError to struct.error for a damaged file
        return f"### This file cannot be read as an image\n{escape_markdown(read_error_reason(error))}"


def _answer(explanation: Explanation, confidence: float | None) -> Answer:
    label, probability, probabilities, strangeness, rejected = explanation.prediction
    # Gradio names the file of a picture by its content, and writes it again while another request may be reading it.
    explanation.picture.info["comment"] = uuid.uuid4().hex
    shown = {one_line(name): value for name, value in probabilities.items()}
    if rejected:
        message = (
            f"### None of these\nThe image is stranger ({strangeness:.3g}) than nearly all images of the classes. "
            f"The most likely class would be {escape_markdown(label)}."
        )
        return Answer(message, shown, explanation.picture, abstains=True)
    if confidence is None or probability >= confidence:
        return Answer("", shown, explanation.picture)
    message = (
        f"### I don't know\nThe most likely class is {escape_markdown(label)}, but its probability is below "
        f"{confidence:.2f}"
    )
    return Answer(message, shown, explanation.picture, abstains=True)


def _guard_requests(app: FastAPI, uploads: Path, settings: PageSettings) -> None:
    """Refuse requests that are too large, for other host names, from other sites, and for files that were not uploaded.

    Gradio itself checks files only in apps that it launches, not in a mounted app. It would copy any file of this
    machine, or of a public address, into its cache and serve it.
    """

    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Response:
        if not _is_own_origin(request, settings.allowed_hosts):
            return PlainTextResponse("the request comes from another site", 403)
        if "transfer-encoding" in request.headers:  # of unknown length; no browser sends it
            return PlainTextResponse("the request has no length", 411)
        if int(request.headers.get("content-length", 0)) > settings.max_upload_mb * 1e6 + _MULTIPART_BYTES:
            return PlainTextResponse(f"this page takes up to {settings.max_upload_mb:g} MB", 413)
        if not await _names_only_uploads(request, uploads):
            return PlainTextResponse("only uploaded files can be used", 403)
        response: Response = await call_next(request)
        response.headers["Content-Security-Policy"] = _CONTENT_SECURITY_POLICY
        return response

    # Added last, so it runs first.
    app.add_middleware(
        TrustedHostMiddleware, allowed_hosts=[*_LOCAL_NAMES, *settings.allowed_hosts], www_redirect=False
    )


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
