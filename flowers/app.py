"""Serve a trained run to browsers and programs: `python -m flowers.app --help`."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def app(cfg: "DictConfig") -> None:
    """Serve until the process is interrupted."""
    from flowers.deploy.app_settings import read_settings
    from flowers.runtime.extras import require_extra
    from flowers.settings.config import check_settings, to_container

    require_extra("the server", "app", "fastapi", "uvicorn", "captum")
    check_settings(cfg, "app")
    values = to_container(cfg)
    settings = read_settings(values)
    from flowers.deploy.web_app import serve_app

    serve_app(values, settings)


def check_run(cfg: "DictConfig") -> None:
    """Raise ValueError if there is no model in `run=`, before torch is imported, which takes seconds."""
    from flowers.deploy.model_files import find_classifier

    find_classifier(cfg.run)


def main(cfg: "DictConfig | None" = None) -> None:
    """Serve as the command line says, or as `cfg` does."""
    if cfg is None and not any(argument.startswith("-") for argument in sys.argv[1:]):
        sys.stdout.write("flowers app: loading; Ctrl-C stops it\n")  # before the imports, which take seconds
        sys.stdout.flush()
    from flowers.cli import program

    program(app, "app", check=check_run)(cfg)


if __name__ == "__main__":
    main()
