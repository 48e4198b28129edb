"""Put what a user's mistake raises into one line. Nothing here imports Hydra, which a prediction does not need."""

import sys

from flowers.runtime.machine_errors import machine_error_text


def mistakes() -> tuple[type[Exception], ...]:
    """Return the types of errors that a user's mistake raises, here and in the code that reads the settings."""
    if "hydra" not in sys.modules:  # nothing has raised one of its errors
        return (ValueError,)
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    return ValueError, HydraException, OmegaConfBaseException


def error_text(error: BaseException) -> str:
    """Return an error's text; if Hydra raised it while it called something, with the text of its cause."""
    if "hydra" in sys.modules:
        from hydra.errors import HydraException, OverrideParseException
        from omegaconf.errors import MissingMandatoryValue

        if isinstance(error, OverrideParseException):
            return f"{error.override}: expected key=value"
        if isinstance(error, HydraException) and error.__cause__ is not None:
            return f"{str(error).splitlines()[0]} {error_text(error.__cause__)}"
        if isinstance(error, MissingMandatoryValue):
            return f"{error.full_key} is missing: give {error.full_key}=…"
    return str(error) if isinstance(error, ValueError) else machine_error_text(error) or str(error)
