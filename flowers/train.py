"""Trains a classifier on a folder of photos: `python -m flowers.train --help`."""

from omegaconf import DictConfig

from flowers import run
from flowers.program import program


def train(cfg: DictConfig) -> float:
    """Runs the stages that `cfg` asks for, in its run folder; returns the best checkpoint's validation accuracy."""
    # Imported here: a mistyped override is answered before these seconds are spent.
    from hydra.utils import instantiate
    from lightning import Trainer, seed_everything

    from flowers import callbacks, checkpoints, hardware, results, stages, summary
    from flowers.data import FlowersData
    from flowers.features import FrozenFeatures
    from flowers.model import FlowerClassifier

    folder = run.begin(cfg)
    legs = stages.plan(cfg.head.epochs, cfg.finetune.epochs, folder)
    seed_everything(cfg.seed)
    data = FlowersData(**{**cfg.data, "source": instantiate(cfg.data.source)}, seed=cfg.seed)
    model = FlowerClassifier(
        **run.plain(cfg.model),
        classes=data.classes,
        image_size=cfg.data.image_size,
        resize=cfg.data.resize,
        split_digest=data.split_digest,
        config=run.plain(cfg),
        optimizer=instantiate(cfg.optimizer),
        scheduler=instantiate(cfg.scheduler),
        backbone_lr=cfg.finetune.backbone_lr,
        compiled=cfg.finetune.compile,
        seed=cfg.seed,
    )
    kept = FrozenFeatures(data, model, max(cfg.head.views, 1), **cfg.features)
    trainer = Trainer(
        **hardware.settled(cfg.trainer),
        callbacks=[clock := callbacks.Clock(), *map(instantiate, cfg.callbacks.values())],
        logger=instantiate(cfg.logger),
        plugins=checkpoints.AtomicCheckpointIO(),
        default_root_dir=folder,
    )
    stages.check(legs, data, trainer, cfg.head.views)
    run.accept(cfg, folder, data.rows)
    summary.log_start(data, model, legs, trainer)
    with run.resumable(f"python -m flowers.train resume={folder}"):
        for leg in legs:
            frozen = kept if leg.stage == "head" and cfg.head.views else data
            model.enter(leg.stage, leg.epochs)
            trainer.fit_loop.max_epochs = leg.until
            trainer.fit(model, frozen if leg.left else data, ckpt_path=leg.checkpoint, weights_only=True)
        return float(results.conclude(folder, data, trainer, clock)["val"]["accuracy"])


main = program(train, "train", run.arguments)

if __name__ == "__main__":
    main()
