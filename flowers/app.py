"""Serve a trained run as a web page: `python -m flowers.app --help`."""

from omegaconf import DictConfig

from flowers.cli import program
from flowers.runtime.config import require_extra


def app(cfg: DictConfig) -> None:
    """Serve the page until it is interrupted."""
    require_extra("the web page", "app", "gradio", "captum")
    from flowers.deploy.web_app import serve_app

    serve_app(cfg)


main = program(app, "app")

if __name__ == "__main__":
    main()
