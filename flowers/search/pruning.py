"""Stop a trial that falls behind the other trials."""

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import optuna
from lightning import Callback, LightningModule, Trainer

from flowers.search.study import attach_trial, open_storage
from flowers.settings.schema.values import Target

# An environment variable and not configuration: the storage's URL may contain a password, which must not get into
# config.yaml; a trial's number among its overrides would keep `compare` from grouping trials that differ in the seed;
# and all processes of a trial inherit it.
PRUNING_ENV = "FLOWERS_PRUNING"


class PruningContext(NamedTuple):
    """What a trial's processes need to report to the study."""

    storage: str
    """URL of the study's database."""
    study: str
    trial: int
    """The trial's number."""
    pruner: Mapping[str, Any]
    """The pruner's configuration (`_target_` and arguments)."""
    first_step: int = 0
    """How many epochs the trial's runs before this one (folds) have together."""

    def to_environment(self) -> dict[str, str]:
        """Return the environment variable that gives this context to `PruningCallback`."""
        return {PRUNING_ENV: json.dumps(self._asdict())}


class PruningCallback(Callback):
    """Report the best validation accuracy so far to the study after each epoch; stop the trial if the study says so.

    A Lightning callback, for both stages. It does nothing outside of a search, as in a trial's folder that is resumed
    by hand.
    """

    def __init__(self) -> None:
        self._trial: optuna.Trial | None = None
        self._best = 0.0
        if PRUNING_ENV in os.environ:
            context = PruningContext(**json.loads(os.environ[PRUNING_ENV]))
            storage, pruner = open_storage(context.storage), Target.model_validate(context.pruner).build()
            self._study = optuna.load_study(study_name=context.study, storage=storage, pruner=pruner)
            self._trial = attach_trial(self._study, storage, context.trial)
            self._first_step = context.first_step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the epoch.

        Raises:
            TrialPruned: The trial is to stop; the study holds the epoch as the trial's attribute "pruned".
        """
        self._best = max(self._best, float(trainer.callback_metrics["val/accuracy"]))
        if self._trial is None:
            return
        falls_behind = trainer.is_global_zero and self._falls_behind(self._trial, trainer.current_epoch)
        if trainer.strategy.broadcast(falls_behind):  # all processes of a run stop together
            raise optuna.TrialPruned(
                f"stopped after epoch {trainer.current_epoch + 1}: other trials were better by then"
            )

    def _falls_behind(self, trial: optuna.Trial, epoch: int) -> bool:
        step = self._first_step + epoch
        (current,) = [each for each in self._study.get_trials(deepcopy=False) if each.number == trial.number]
        if step not in current.intermediate_values:  # else this epoch was reported before the run was killed
            trial.report(self._best, step)
        falls_behind = trial.should_prune()
        if falls_behind:
            trial.set_user_attr("pruned", step + 1)
        return falls_behind

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: the best validation accuracy so far."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._best = state_dict["best"]
