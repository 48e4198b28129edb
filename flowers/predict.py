"""Classifies photos by a trained run: `python -m flowers.predict --help`."""

from omegaconf import DictConfig

from flowers.program import program


def predict(cfg: DictConfig) -> int:
    """Classifies the photos that `cfg` names, a row a file; returns how many could be read."""
    from flowers import answers, hardware, photos, progress, run
    from flowers.classifier import Classifier

    if (cfg.run is None) == (cfg.checkpoint is None):
        raise ValueError("which model? Give run=FOLDER or checkpoint=FILE, one of them")
    if cfg.confidence is not None and not 0 <= cfg.confidence <= 1:
        raise ValueError(f"confidence={cfg.confidence}: wanted a probability from 0 to 1")
    files = [str(file) for file in photos.listed(run.plain(cfg)["photos"])]
    writer = answers.writer(cfg.output)
    classifier = Classifier.load(cfg.run or cfg.checkpoint, cfg.accelerator, cfg.precision)
    cores = hardware.cores()
    # To start workers takes longer than a batch; on a few cores they take from the backbone more than they add.
    alone = len(files) <= classifier.backbone.batch_size or (classifier.model.device.type == "cpu" and cores <= 4)
    workers = cfg.num_workers if cfg.num_workers is not None else 0 if alone else min(cores, 8)
    said = progress.bar(classifier.stream(files, workers), "Classifying", len(files))
    return writer((answers.Answer.of(file, each, cfg.confidence) for file, each in said), classifier.classes)


main = program(predict, "predict")

if __name__ == "__main__":
    main()
