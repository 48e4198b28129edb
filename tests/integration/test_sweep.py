import csv
import re
import shlex
import signal
import threading
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from flowers.runs.run_folder import RESULT_FILE
from flowers.runtime.files import read_json, short_name
from flowers.search.manifest import SearchManifest
from flowers.search.study import STUDY_FILE, Search, open_storage
from flowers.settings.overrides import check_overrides
from flowers.sweep import main, pack_trial_settings
from flowers.training.in_process import train_in_process
from tests.helpers import TINY, configuration, program

HEAD = (*TINY, "finetune.epochs=0", "optimizer.lr=tag(log,interval(1e-4,1e-1))", "scheduler=constant,cosine")


def searched(folder: Path, *given: str) -> float:
    asked = check_overrides(pack_trial_settings([f"sweep.folder={folder}", *given]), "sweep")
    return float(main(configuration(*asked, name="sweep")))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(encoding="utf-8") as file:
        return [
            {name: value for name, value in row.items() if name not in ("folder", "seconds")}
            for row in csv.DictReader(file)
        ]


def study(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="flowers", storage=open_storage(f"sqlite:///{folder / STUDY_FILE}"))


@pytest.mark.slow
def test_a_search_killed_again_and_again_ends_as_the_uninterrupted_one(painted: Path, tmp_path: Path):
    given = [
        *HEAD,
        f"data.root={painted}",
        "sweep.trials=6",
        "sweep.keep=3",
        "+callbacks.kill._target_=tests.helpers.KillAt",
    ]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    best = searched(whole, *given)
    first = program(*given, f"sweep.folder={killed}", name="sweep", KILL_AT_FIT="2.1")
    assert first.returncode == -signal.SIGKILL
    assert [trial.state for trial in study(killed).trials] == [TrialState.COMPLETE] * 2 + [TrialState.RUNNING]
    assert searched(killed, "sweep.trials=4") <= best
    assert searched(killed) == best  # the search resumes as it began, with six trials
    assert rows(killed) == rows(whole)
    assert len(rows(whole)) == 6
    kept = {path.parent.name for path in killed.glob("trials/*/checkpoints")}
    assert kept == {row["trial"] for row in rows(killed)[:3]}
    for picture in ("history.png", "importances.png"):
        assert (killed / picture).read_bytes().startswith(b"\x89PNG")


def test_the_best_is_repeated_by_the_command_that_is_printed(
    painted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level("INFO"):
        best = searched(tmp_path / "search", *HEAD, f"data.root={painted}", "sweep.trials=2", "sweep/sampler=random")
    command = caplog.messages[-1].removeprefix("repeat it with: python -m flowers.train ")
    again = tmp_path / "again"
    train_in_process([*shlex.split(command), f"hydra.run.dir={again}"])
    assert read_json(again / RESULT_FILE)["val"]["accuracy"] == best


def test_a_trial_that_fails_is_recorded_and_the_search_goes_on(painted: Path, tmp_path: Path):
    given = [*TINY, f"data.root={painted}", "finetune.epochs=0", "optimizer.lr=0.002,1e37", "sweep.trials=4"]
    searched(tmp_path, *given)
    done = study(tmp_path).trials
    failed = [trial for trial in done if trial.state == TrialState.FAIL]
    assert {trial.params["optimizer.lr"] for trial in failed} == {"1e+37"}
    assert len(failed) < len(done) == 4
    assert "became" in failed[0].user_attrs["traceback"]
    assert "Traceback" in (tmp_path / "trials" / str(failed[0].number) / "train.log").read_text(encoding="utf-8")


def test_a_search_of_which_all_fails_says_so(painted: Path, tmp_path: Path):
    given = [*TINY, f"data.root={painted}", "optimizer.lr=1e37", "finetune.epochs=0", "seed=0,1", "sweep.trials=2"]
    with pytest.raises(ValueError, match=r"all 2 trials failed; trial 0: ValueError: the .* loss became"):
        searched(tmp_path, *given)


def test_with_folds_a_trial_is_a_whole_cross_validation(painted: Path, tmp_path: Path):
    searched(tmp_path, *HEAD, f"data.root={painted}", "data.folds=3", "sweep.trials=1")
    (trial,) = study(tmp_path).trials
    folds = [read_json(tmp_path / f"trials/0/fold-{fold}/result.json")["val"] for fold in range(3)]
    assert trial.value == sum(fold["accuracy"] for fold in folds) / 3
    assert trial.user_attrs["n"] == sum(fold["n"] for fold in folds) == 60
    for fold in range(3):  # trackers show them together
        config = (tmp_path / f"trials/0/fold-{fold}/config.yaml").read_text(encoding="utf-8")
        assert f"group: {short_name(tmp_path)}\n" in config


def test_a_trial_that_falls_behind_is_stopped_in_this_process_and_in_one_of_its_own(painted: Path, tmp_path: Path):
    given = [*TINY, f"data.root={painted}", "optimizer.lr=tag(log,interval(1e-4,1e-2))", "sweep/pruner=median"]
    given += ["sweep.pruner.n_warmup_steps=0", "sweep.pruner.n_startup_trials=1", "sweep.trials=2"]
    for name, epochs in (("here", 0), ("apart", 2)):
        folder = tmp_path / name
        storage = open_storage(f"sqlite:///{tmp_path / name}.db")
        ahead = optuna.create_study(study_name="flowers", storage=storage, direction="maximize")
        perfect = dict.fromkeys(range(4), 1.0)
        ahead.add_trial(optuna.create_trial(value=1.0, intermediate_values=perfect, user_attrs=_told(folder)))
        searched(folder, *given, f"finetune.epochs={epochs}", f"sweep.storage=sqlite:///{tmp_path / name}.db")
        _, stopped = ahead.trials
        assert stopped.state == TrialState.PRUNED
        assert stopped.user_attrs["pruned"] == 1
        assert "stopped early" in (folder / "trials.csv").read_text(encoding="utf-8")


def _told(folder: Path) -> dict[str, Any]:
    return {"owner": "another", "accuracy": 1.0, "interval": [0.9, 1.0], "n": 10, "folder": str(folder / "elsewhere")}


def test_machines_that_share_a_study_claim_each_trial_once(tmp_path: Path):
    url, claimed = f"sqlite:///{tmp_path / 'shared.db'}", list[int]()
    begun = [SearchManifest(name, "", ["seed=range(0,9)"], True, []) for name in ("a", "b", "c")]
    machines = [Search(tmp_path / each.owner, each, url, "flowers", RandomSampler, NopPruner(), 0) for each in begun]

    def claim(machine: Search) -> None:
        while (trial := machine.next(12)) is not None:
            machine.sample(trial)
            claimed.append(trial.number)

    threads = [threading.Thread(target=claim, args=[machine]) for machine in machines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(claimed)) == len(claimed) == len(machines[0].trials()) == 12
    cut = Search(tmp_path / "a", begun[0], url, "flowers", RandomSampler, NopPruner(), 0)
    own = [trial.number for trial in cut.trials() if cut.is_own(trial)]
    again = [trial.number for trial in iter(lambda: cut.next(12), None)]
    assert again == own


def test_other_settings_than_those_of_the_folder_or_of_the_study_are_refused(painted: Path, tmp_path: Path):
    url = f"sweep.storage=sqlite:///{tmp_path / 'shared.db'}"
    searched(tmp_path / "a", *HEAD, f"data.root={painted}", "sweep.trials=1", url)
    with pytest.raises(ValueError, match=r"holds a search over .*: give those settings, or none"):
        searched(tmp_path / "a", *HEAD, "seed=1", url)
    with pytest.raises(ValueError, match=r"was started with sweep\.storage: resume it with one"):
        searched(tmp_path / "a")
    with pytest.raises(ValueError, match="is of another search"):
        searched(tmp_path / "b", *HEAD, f"data.root={painted}", "seed=1", url)


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        (["optimizer.ler=interval(0,1)"], "did you mean optimizer.lr?"),
        (["head.epochs=interval(1,5.5)"], "expected a whole number"),
        (["sweep.trails=5"], "did you mean sweep.trials?"),
        (["sweep/sampler=tpee"], "did you mean tpe?"),
        (["seed=0,1", "sweep.pruner=median"], "give sweep/pruner=median"),
        (["seed=1"], "nothing to search for"),
        (["resume=x"], "sweep.folder=FOLDER resumes a search"),
        (
            ["seed=0,1", "sweep.storage='postgrespl://me:secret@x/y'"],
            "postgrespl://me:***@x/y: cannot open this database",
        ),
    ],
)
def test_a_mistake_is_named_before_anything_is_trained(given: list[str], answer: str, tmp_path: Path):
    with pytest.raises(ValueError, match=re.escape(answer)):
        searched(tmp_path, *given)
    assert not list(tmp_path.glob("trials/*"))
