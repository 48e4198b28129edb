from pathlib import Path

import optuna
from optuna.trial import TrialState, create_trial

from flowers.search.study import attach_trial, open_storage


def test_attach_trial_continues_a_trial_that_another_process_started(tmp_path: Path):
    """What `attach_trial` assumes of Optuna."""
    url = f"sqlite:///{tmp_path}/study.db"
    first = open_storage(url)
    study = optuna.create_study(storage=first, study_name="s", direction="maximize")
    study_id = first.get_study_id_from_name("s")
    first.create_new_trial(study_id, create_trial(state=TrialState.RUNNING, user_attrs={"owner": "me"}))

    second = open_storage(url)  # as another process opens it
    trial = attach_trial(optuna.load_study(study_name="s", storage=second), second, 0)
    reason = f"Optuna {optuna.__version__} no longer continues a trial from its number and the storage's id of it"
    assert trial.user_attrs == {"owner": "me"}, reason
    assert trial.suggest_float("lr", 0.1, 0.2) == trial.params["lr"], reason
    trial.study.tell(0, 0.5)
    assert [each.value for each in study.get_trials()] == [0.5], reason
