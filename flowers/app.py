"""Serve a trained run as a web page: `python -m flowers.app --help`."""

from omegaconf import DictConfig

from flowers.cli import program


def app(cfg: DictConfig) -> None:
    """Serve the page until it is interrupted."""
    try:
        from flowers.deploy.web_app import serve_app
    except ImportError as error:
        raise ValueError(f"the page needs {error.name}: pip install 'flowers[app]'") from error

    serve_app(cfg)


main = program(app, "app")

if __name__ == "__main__":
    main()
