"""Serve a trained run to browsers and programs: `python -m flowers.app --help`."""

import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowers.settings.schema.programs import AppSettings


def app(settings: "AppSettings") -> None:
    """Serve until the process is interrupted."""
    from flowers.deploy.app_settings import server_settings
    from flowers.runtime.extras import require_extra

    require_extra("the server", "app", "fastapi", "uvicorn", "captum")
    server = server_settings(settings)
    from flowers.deploy.web_app import serve_app

    serve_app(settings, server)


def prepare(settings: "AppSettings") -> Callable[[], None]:
    """Raise ValueError if there is no model in `run=`, before torch is imported, which takes seconds."""
    from flowers.deploy.model_files import find_classifier

    find_classifier(settings.run)
    return partial(app, settings)


def main(settings: "AppSettings | None" = None) -> None:
    """Serve as the command line says, or as `settings` do."""
    if settings is None and not any(argument.startswith("-") for argument in sys.argv[1:]):
        sys.stdout.write("flowers app: loading; Ctrl-C stops it\n")  # before the imports, which take seconds
        sys.stdout.flush()
    from flowers.cli import program
    from flowers.settings.schema.programs import AppSettings

    program(app, AppSettings, prepare=prepare)(settings)


if __name__ == "__main__":
    main()
