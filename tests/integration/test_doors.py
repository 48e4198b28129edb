"""A stranger adds a part of each kind, with the recipes of CONTRIBUTING.md and nothing of ours edited."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowers import Classifier
from flowers.deploy.export.pipeline import run_export
from flowers.evaluation.evaluator import run_evaluation
from flowers.runs.run_folder import read_config
from flowers.runtime.files import read_json
from flowers.settings.config import check_targets, load_config
from flowers.settings.registry import KINDS
from tests.helpers import configuration, install, shown_package

ROOT = Path(__file__).parents[2]
CONSOLE_COMMAND = "import sys\nfrom flowers.__main__ import main\nsys.exit(main())\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the package of the recipes is installed."""
    site = tmp_path_factory.mktemp("site")
    name, parts, files = shown_package(ROOT / "CONTRIBUTING.md")
    assert {*parts} == {*KINDS}
    install(site, parts, files | {"meadow/__init__.py": ""}, name)
    return site


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of the stranger, with a callback and a loss that cannot be imported."""
    work = tmp_path_factory.mktemp("work")
    (work / "conf" / "loss").mkdir(parents=True)
    (work / "conf" / "loss" / "broken.yaml").write_text("_target_: my_losses.broken\n_partial_: true\n")
    (work / "my_losses.py").write_text("import no_such_package\n")
    (work / "my_callbacks.py").write_text(
        "from lightning import Callback\n\n\n"
        "class Touch(Callback):\n"
        "    def on_fit_end(self, trainer, module):\n"
        "        open('touched', 'w').close()\n"
    )
    return work


def command(work: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `flowers …` in the working directory of the stranger, as pip installs the command: from another folder."""
    script = work.with_name(f"{work.name}-bin") / "flowers"
    script.parent.mkdir(exist_ok=True)
    script.write_text(CONSOLE_COMMAND)
    environment = {**os.environ, "FLOWERS_DATA": str(work / "data"), **environment}
    words = [sys.executable, str(script), *arguments]
    return subprocess.run(words, cwd=work, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def run(site: Path, work: Path) -> Path:
    """A run with the source, the backbone, the loss, the schedule and the tracker of the package."""
    settings = ["data=spots", "model=meadow_net", "loss=poly1", "scheduler=square_root", "logger=lines"]
    settings += ["data.image_size=32", "data.resize=32", "data.num_workers=0", "trainer=cpu", "model.options.width=4"]
    settings += ["head.epochs=1", "finetune.epochs=1", "loss.epsilon=2", "+callbacks.mine._target_=my_callbacks.Touch"]
    done = command(work, "train", *settings, "hydra.run.dir=run", PYTHONPATH=str(site))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"lines: {work}/run/lines.txt" in done.stdout
    return work / "run"


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package is found in this process, too."""
    monkeypatch.syspath_prepend(site)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "meadow"]:
        del sys.modules[name]


def test_a_run_uses_parts_of_a_package_and_of_the_working_directory(run: Path, work: Path):
    assert len([*(work / "data" / "spots").rglob("*.png")]) == 60  # the source
    config = read_config(run)
    assert config["loss"] == {"_target_": "meadow.losses.poly1", "_partial_": True, "epsilon": 2}
    assert config["scheduler"] == {"_target_": "meadow.schedules.square_root", "_partial_": True}
    assert " val/accuracy " in (run / "lines.txt").read_text(encoding="utf-8")  # the tracker
    assert " val_best/worst_f1 " in (run / "lines.txt").read_text(encoding="utf-8")  # the metric
    assert (work / "touched").exists()  # the callback


@pytest.mark.usefixtures("installed")
def test_evaluate_and_export_use_the_metric_and_the_exporter_of_a_package(run: Path, tmp_path: Path):
    run_evaluation(configuration(f"run={run}", f"output={tmp_path}/scores.json", f"report={tmp_path}", name="evaluate"))
    assert 0 <= read_json(tmp_path / "scores.json")["val"]["metrics"]["worst_f1"]["value"] <= 1
    quick = ["rounds=1", "seconds=0.001", "batch=1"]
    run_export(configuration(f"run={run}", f"output={tmp_path}/export", "formats=[labeled]", *quick, name="export"))
    assert (tmp_path / "export" / "labeled.txt").read_text(encoding="utf-8") == "bright\ndark"
    assert read_json(tmp_path / "export" / "parity.json")["versions"]["torch.export and labels"]["agreement"] == 1


@pytest.mark.usefixtures("installed")
def test_a_classifier_of_a_registered_network_is_loaded(run: Path, work: Path):
    classifier = Classifier.load(run, "cpu", "32-true")
    assert classifier(work / "data" / "spots" / "dark" / "0.png").label in ("bright", "dark")


def test_a_classifier_whose_network_nobody_registers_names_the_package(run: Path):
    with pytest.raises(
        ValueError, match=r"best.ckpt cannot be read: its network meadow_net is registered by .* meadow,"
    ):
        Classifier.load(run, "cpu", "32-true")


def test_a_program_of_a_package_runs_by_its_name_and_as_a_module(site: Path, work: Path, run: Path):
    found = command(work, "count", "photos=data/spots", PYTHONPATH=str(site))
    assert (found.returncode, found.stdout, found.stderr) == (0, "60 photos\n", "")
    wrong = command(work, "count", "photo=x", PYTHONPATH=str(site))
    assert (wrong.returncode, wrong.stderr) == (1, "error: photo: no such key: did you mean photos=x?\n")
    module = [sys.executable, "-m", "meadow.count", "photos=nowhere"]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(module, cwd=work, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (1, "error: photos=nowhere: expected a folder\n")


def test_a_loss_of_the_working_directory_says_why_it_cannot_be_imported(work: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(work)
    monkeypatch.syspath_prepend(work)
    settings = load_config(["loss=broken", "run_dir=x"])
    with pytest.raises(ValueError, match=r"loss._target_=my_losses.broken: cannot be imported") as error:
        check_targets(settings.to_dict())
    reason = f"ModuleNotFoundError: No module named 'no_such_package' ({work}/my_losses.py, line 1)"
    assert str(error.value).endswith(f": {reason}")


def test_an_option_that_two_packages_register_is_refused(site: Path, work: Path, tmp_path: Path):
    install(tmp_path, {"schedules": {"square_root": "heath.schedules:root"}}, {}, "heath")
    done = command(work, "train", "scheduler=square_root", PYTHONPATH=f"{site}{os.pathsep}{tmp_path}")
    where = "square_root of flowers.schedules, from the package meadow"
    assert done.stderr == f"error: {where}: heath has a part of this name, too: uninstall one of the packages\n"
