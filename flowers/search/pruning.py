"""Stop a trial that falls behind the others."""

import json
import os
from typing import Any

import optuna
from hydra.utils import instantiate
from lightning import Callback, LightningModule, Trainer

# What a trial's process, this one or one of its own, is told of its search: storage, study, trial, pruner, offset.
PRUNING_ENV = "FLOWERS_TRIAL"


class PruningCallback(Callback):
    """Tells the study the best validation accuracy so far after each epoch of either stage; stops where it says so.

    Without a search around it (a trial's folder that is resumed by hand) it does nothing.
    """

    def __init__(self) -> None:
        self._trial: optuna.Trial | None = None
        self._best = 0.0
        if PRUNING_ENV in os.environ:
            told = json.loads(os.environ[PRUNING_ENV])
            study = optuna.load_study(
                study_name=told["study"], storage=told["storage"], pruner=instantiate(told["pruner"])
            )
            self._trial, self._offset = optuna.Trial(study, told["trial"]), int(told["offset"])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises TrialPruned, and notes the epoch in the study, where the trial is to stop."""
        self._best = max(self._best, float(trainer.callback_metrics["val/accuracy"]))
        if self._trial is None:
            return
        falls_behind = trainer.is_global_zero and self._falls_behind(trainer.current_epoch)
        if trainer.strategy.broadcast(falls_behind):  # all processes of a run stop together
            raise optuna.TrialPruned(f"stopped after epoch {trainer.current_epoch + 1}: others were better by then")

    def _falls_behind(self, epoch: int) -> bool:
        assert self._trial is not None
        step = self._offset + epoch
        if step not in self._trial.storage.get_trial(self._trial._trial_id).intermediate_values:  # else it is resumed
            self._trial.report(self._best, step)
        falls_behind = self._trial.should_prune()
        if falls_behind:
            self._trial.set_user_attr("pruned", step + 1)
        return falls_behind

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it."""
        self._best = state_dict["best"]
