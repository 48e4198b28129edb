"""A callback that kills its own process, without any chance to tidy up, where the environment says so."""

import os
import signal
from typing import Any

from lightning import Callback, LightningModule, Trainer


class KillAt(Callback):
    """`KILL_AT=3.1`: in epoch 3 (from 0), after batch 1; `KILL_AT=3.save`: while epoch 3's checkpoint is written.

    `KILL_AT_FIT=2.1`: in epoch 1 of the process's fit number 2 (from 0). `KILL_RANK=1`: only that process of several.
    """

    fits = -1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        KillAt.fits += 1

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if os.environ.get("KILL_AT_FIT") == f"{self.fits}.{trainer.current_epoch}":
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        is_meant = os.environ.get("KILL_RANK", str(trainer.global_rank)) == str(trainer.global_rank)
        if is_meant and os.environ.get("KILL_AT") == f"{trainer.current_epoch}.{batch_idx}":
            os.kill(os.getpid(), signal.SIGKILL)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if os.environ.get("KILL_AT") == f"{trainer.current_epoch}.save":
            checkpoint["bomb"] = _Bomb()


class _Bomb:
    def __reduce__(self) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)
