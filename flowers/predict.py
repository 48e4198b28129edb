"""Classifies photos by a trained run: `python -m flowers.predict --help`."""

from omegaconf import DictConfig

from flowers.program import program


def predict(cfg: DictConfig) -> int:
    """Classifies the photos that `cfg` names, a row a file; returns how many could be read."""
    from flowers import answers, photos, progress, run
    from flowers.classifier import Classifier
    from flowers.data import cores

    if (cfg.run is None) == (cfg.checkpoint is None):
        raise ValueError("which model? Give run=FOLDER or checkpoint=FILE, one of them")
    if cfg.confidence is not None and not 0 <= cfg.confidence <= 1:
        raise ValueError(f"confidence={cfg.confidence}: wanted a probability from 0 to 1")
    files = [str(file) for file in photos.listed(run.plain(cfg)["photos"])]
    writer = answers.writer(cfg.output)
    classifier = Classifier.load(cfg.run or cfg.checkpoint, cfg.accelerator, cfg.precision)
    workers = min(cores(), 8) if cfg.num_workers is None else cfg.num_workers
    workers = 0 if len(files) <= classifier.backbone.batch_size else workers  # to start them would take longer
    said = progress.bar(classifier.stream(files, workers), "Classifying", len(files))
    return writer((answers.Answer.of(file, each, cfg.confidence) for file, each in said), classifier.classes)


main = program(predict, "predict")

if __name__ == "__main__":
    main()
