import logging
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial

from flowers.runtime.text import read_csv
from flowers.search.leaderboard import finalize_search
from flowers.search.manifest import SearchManifest
from flowers.search.study import Search

NAMES = ["=1+1", "[/b]", "$x", "esc\x1b[31m", "cr\r"]


def test_finalize_search_writes_and_shows_values_of_any_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    manifest = SearchManifest("me", str(tmp_path), ["data.root=a,b", "seed=0"], shared=False, options=[])
    search = Search(tmp_path, manifest, None, "s", optuna.samplers.RandomSampler, optuna.pruners.NopPruner(), 0)
    study = optuna.load_study(study_name="s", storage=search.storage)
    distribution = CategoricalDistribution(NAMES)
    for number, name in enumerate(NAMES):
        accuracy = 0.5 + number / 10
        attributes = {"owner": "me", "accuracy": accuracy, "interval": [0.4, 0.95], "n": 8, "folder": "none"}
        study.add_trial(
            create_trial(
                state=TrialState.COMPLETE,
                value=accuracy,
                params={"data.root": name},
                distributions={"data.root": distribution},
                user_attrs=attributes,
            )
        )
    logging.getLogger("flowers").setLevel(logging.CRITICAL)
    try:
        assert finalize_search(search) == 0.9
    finally:
        logging.getLogger("flowers").setLevel(logging.NOTSET)
    header, *rows = read_csv(tmp_path / "trials.csv")
    column = header.index("data.root")
    assert [row[column] for row in rows] == NAMES[::-1]
    assert ",'=1+1" in (tmp_path / "trials.csv").read_text(encoding="utf-8")
    out = capsys.readouterr().out
    assert "[/b]" in out
    assert "\x1b" not in out
    assert (tmp_path / "history.png").stat().st_size
