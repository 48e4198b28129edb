"""Shows a trained run as a web page for one's own photos: `python -m flowers.app --help`."""

from omegaconf import DictConfig

from flowers.program import program


def app(cfg: DictConfig) -> None:
    """Serves the page on this machine alone, until it is interrupted."""
    import errno
    import socket

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

        from flowers import page
    except ImportError as error:
        raise ValueError("the page needs Gradio: pip install 'flowers[app]'") from error
    from rich.console import Console

    from flowers.classifier import Classifier

    classifier = Classifier.load(cfg.run, cfg.accelerator, cfg.precision)
    served = page.build(classifier, cfg.confidence, cfg.run)
    Console().print(f"open http://127.0.0.1:{cfg.port} in a browser on this machine; Ctrl-C ends it", highlight=False)
    uvicorn.run(served, host="127.0.0.1", port=cfg.port, log_level="warning")


main = program(app, "app")

if __name__ == "__main__":
    main()
