import csv
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from flowers.models.checkpoint_format import read_checkpoint
from flowers.runs.run_folder import BEST_CHECKPOINT
from flowers.settings.config import CONF
from flowers.settings.overrides import check_overrides
from flowers.training.experiment import run_training
from flowers.training.multirun import MultirunSummary
from tests.helpers import SMALL, configuration

pytestmark = pytest.mark.distributed

JOBS = (*SMALL, "head.epochs=1", "finetune.epochs=0")
GARDEN = ("data=garden", "data.source.number=60", "data.source.size=48")


@pytest.fixture(scope="module")
def by_itself(painted: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of a run that no launcher started, with one thread as those below."""
    folder = tmp_path_factory.mktemp("by_itself")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run_training(configuration(*JOBS, f"data.root={painted}", f"run_dir={folder}"))
    torch.set_num_threads(threads)
    return dict(read_checkpoint(folder / BEST_CHECKPOINT)["state_dict"])


def multirun(launcher: str, folder: Path, *overrides: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Two runs at once that share a cache and a garden which is not there yet; the second one fails."""
    settings = {"FLOWERS_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, "-m", "flowers.train", "-m", f"hydra/launcher={launcher}", *JOBS, *GARDEN, *overrides]
    command += [
        f"data.root={folder}/garden",
        f"hydra.sweep.dir={os.path.relpath(folder)}/runs",
        "optimizer.lr=0.002,1e37",
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | settings, timeout=300)


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """A Ray cluster of two workers, started elsewhere and without this project's environment; how to reach it."""
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}
    environment["RAY_AUTH_TOKEN"] = secrets.token_hex(16)
    environment.pop("FLOWERS_CACHE")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    workers: list[subprocess.Popen[str]] = []
    head = ["--head", f"--port={address.rpartition(':')[2]}", "--include-dashboard=false", f"--temp-dir={folder}"]
    try:
        for role in (head, [f"--address={address}"]):
            command = [sys.executable, "-m", "ray.scripts.scripts", "start", *role, "--block", "--num-cpus=1"]
            worker = subprocess.Popen(
                [*command, "--node-ip-address=127.0.0.1"],
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
                cwd=folder,
            )
            workers.append(worker)
            assert worker.stdout is not None
            assert any("Ray runtime started" in line for line in worker.stdout)
        yield {name: environment[name] for name in environment if name.startswith("RAY_")} | {"RAY_ADDRESS": address}
    finally:
        for worker in reversed(workers):
            worker.terminate()
            worker.communicate(timeout=60)


def check(done: subprocess.CompletedProcess[str], folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """One run is the one by itself to the bit, one failed with manners, and what both needed was made once."""
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.splitlines()[-1].startswith("1 of 2 runs failed")
    with (folder / "runs" / "runs.csv").open(encoding="utf-8") as file:
        assert [(row["run"], row["accuracy"] != "") for row in csv.DictReader(file)] == [("0", True), ("1", False)]
    ours = read_checkpoint(folder / "runs" / "0" / BEST_CHECKPOINT)["state_dict"]
    assert all(torch.equal(ours[name], weights[name]) for name in weights)
    logs = [(folder / "runs" / name / "train.log").read_text(encoding="utf-8") for name in "01"]
    assert "Traceback" in logs[1]
    for made in ("painting 60 images", "checking 60 files", "features of 50 of 50", "features of 10 of 10"):
        assert "".join(logs).count(made) == 1, made


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_jobs_at_once_share_what_they_make_and_are_as_those_one_by_one(
    launcher: str, by_itself: dict[str, torch.Tensor], tmp_path: Path
):
    check(multirun(launcher, tmp_path), tmp_path, by_itself)


@pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install -e '.[ray]'")
def test_so_are_those_of_a_ray_cluster_that_was_started_elsewhere(by_itself: dict[str, torch.Tensor], tmp_path: Path):
    with tempfile.TemporaryDirectory() as elsewhere, cluster(Path(elsewhere)) as access:  # a socket's path is short
        done = multirun("ray", tmp_path, **access)
    check(done, tmp_path, by_itself)


def test_a_killed_job_ends_a_multirun_in_one_line(tmp_path: Path):
    done = multirun(
        "joblib", tmp_path, "+callbacks.kill._target_=tests.helpers.KillAt", "head.cached_views=0", KILL_AT="0.0"
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: the multirun stopped early: TerminatedWorkerError")
    assert "Traceback" not in done.stdout + done.stderr
    assert "failed" in done.stdout
    assert (tmp_path / "runs" / "runs.csv").exists()


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "hydra" / "launcher").glob("*.yaml")))
def test_a_launcher_whose_plugin_is_missing_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch):
    target = str(OmegaConf.load(CONF / "hydra" / "launcher" / f"{name}.yaml")._target_)
    monkeypatch.setitem(sys.modules, target.rpartition(".")[0], None)  # as good as not installed
    with pytest.raises(ValueError, match=rf"pip install '?hydra-{name.partition('_')[0]}-launcher"):
        check_overrides([f"hydra/launcher={name}"], "train")


def test_runs_that_went_to_a_folder_elsewhere_are_no_empty_table(tmp_path: Path):
    with pytest.raises(SystemExit, match=r"no run found in"):
        MultirunSummary().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
