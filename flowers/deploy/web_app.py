"""A web page that classifies images, by Gradio, reachable from this machine alone."""

import errno
import os
import socket
from typing import Any

import gradio as gr
from fastapi import FastAPI, Request, Response
from omegaconf import DictConfig
from PIL import Image
from rich.console import Console

from flowers.data.images import read_error_reason, read_image
from flowers.deploy.classifier import Classifier
from flowers.deploy.explain import explain_image

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read once, when Gradio is imported


os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


# The browser itself refuses to ask another host for anything, whatever a version of Gradio puts into its page.
_CONTENT_SECURITY_POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; connect-src 'self' data: blob: ws: wss:"
)


_MAX_UPLOAD = "100mb"


def answer_upload(
    classifier: Classifier, file: str | None, confidence: float | None
) -> tuple[str, dict[str, float] | None, Image.Image | None]:
    """What the page says of an uploaded file: a line, the classes' probabilities, and the photo beside its heat."""
    if file is None:
        return "", None, None
    try:
        image = read_image(file)
    except MemoryError:
        raise
    except Exception as error:  # a stranger's bytes make Pillow raise anything
        return f"### This is no photo that can be read\n{read_error_reason(error)}", None, None
    said, shown = classifier(image), explain_image(classifier, image)
    if confidence is not None and said.probability < confidence:
        line = f"### I don't know\n{said.label} is likeliest, but under the confidence of {confidence:.2f} asked for"
    else:
        line = ""
    return line, said.probabilities, shown.picture


def _upload_path(upload: Any) -> str | None:
    return str(upload.path) if upload and upload.path else None


def build_app(classifier: Classifier, confidence: float | None, name: str) -> FastAPI:
    """The page for photos, and the server's application around it; `name` is of the run, `confidence` as in predict."""
    with gr.Blocks(title="flowers", analytics_enabled=False, delete_cache=(600, 600)) as page:
        gr.Markdown(f"## Which is it: {', '.join(classifier.classes)}?")
        with gr.Row():
            photo = gr.Image(
                label="Drop, paste or choose a photo", sources=["upload", "clipboard"], buttons=[], height=420
            )
            # The file as it is: `photos.read` knows more formats than Gradio, and says what is wrong with others. Not
            # by a class of our own: Gradio writes a stub file beside the module of each.
            photo.preprocess = _upload_path  # type: ignore[assignment, method-assign]
            with gr.Column():
                line = gr.Markdown()
                label = gr.Label(show_label=False, num_top_classes=min(10, len(classifier.classes)))
        heat = gr.Image(label="What it goes by (Grad-CAM)", interactive=False, buttons=["fullscreen"])
        gr.Markdown(f"Probabilities are calibrated on validation photos. Model: {name}. Photos stay on this machine.")
        photo.change(
            lambda file: answer_upload(classifier, file, confidence),
            photo,
            [line, label, heat],
            api_visibility="private",
        )
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def keep_to_ourselves(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers["Content-Security-Policy"] = _CONTENT_SECURITY_POLICY
        return response

    return gr.mount_gradio_app(  # type: ignore[no-any-return]
        app,
        page,
        path="/",
        server_name="127.0.0.1",
        footer_links=[],
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        max_file_size=_MAX_UPLOAD,
        ssr_mode=False,
    )


def serve_app(cfg: DictConfig) -> None:
    """Serves the page on this machine alone, until it is interrupted."""

    if not cfg.run:
        raise ValueError("which run? Give run=FOLDER (or a checkpoint)")
    if cfg.confidence is not None and not 0 <= cfg.confidence <= 1:
        raise ValueError(f"confidence={cfg.confidence}: wanted a probability from 0 to 1")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", cfg.port))
        except (OSError, OverflowError) as error:
            in_use = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            raise ValueError(f"port={cfg.port}: {'in use' if in_use else error}: give another port=") from error
    try:
        import uvicorn

    except ImportError as error:
        raise ValueError("the page needs Gradio: pip install 'flowers[app]'") from error

    classifier = Classifier.load(cfg.run, cfg.accelerator, cfg.precision)
    served = build_app(classifier, cfg.confidence, cfg.run)
    Console().print(f"open http://127.0.0.1:{cfg.port} in a browser on this machine; Ctrl-C ends it", highlight=False)
    uvicorn.run(served, host="127.0.0.1", port=cfg.port, log_level="warning")
