"""The command line: the `flowers` command, help, mistakes. None of these commands reads an image."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from flowers.runtime.extras import install_command
from flowers.settings.config_reference import CONF
from tests.helpers import install, program


def flowers(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flowers", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


def test_flowers_alone_lists_the_programs():
    done = flowers()
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == [
        *("train", "evaluate", "audit", "compare", "predict", "explain", "export", "app", "sweep"),
        *("ablation", "soup", "probe", "learning_curve", "suggest", "pack"),
        *("schema", "new-experiment", "complete"),
    ]


def test_flowers_names_the_nearest_program():
    done = flowers("trian")
    assert (done.returncode, done.stderr) == (1, "error: trian: no such program: try flowers train\n")


def test_a_broken_program_of_another_package_is_answered_with_its_whole_cause(tmp_path: Path):
    source = "try:\n    import no_such_module\nexcept ImportError as error:\n    raise RuntimeError('why') from error\n"
    install(
        tmp_path, {"programs": {"mow": "meadow.mow:MowSettings"}}, {"meadow/__init__.py": "", "meadow/mow.py": source}
    )
    done = flowers("mow", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: mow: meadow.mow cannot be imported: RuntimeError: why; because of ModuleNotFoundError: "
        f"No module named 'no_such_module' ({tmp_path / 'meadow' / 'mow.py'}, line 2)\n"
    )


def test_flowers_help_of_a_program_is_its_help():
    assert flowers("help", "predict").stdout == flowers("predict", "--help").stdout != flowers("help").stdout


def test_flowers_version_prints_the_version():
    assert flowers("--version").stdout.startswith("flowers 0.")


def test_flowers_runs_a_program_as_python_m_does(tmp_path: Path):
    reports_its_module = (
        "import os, sys, runpy, flowers.cli\n"
        "def program(task, name, arguments=list, prepare=None):\n"
        "    import __main__\n"
        "    return lambda: print(__main__.__spec__.name, sys.argv[1:], os.path.abspath(sys.path[0]))\n"
        "flowers.cli.program = program\n"
    )
    outputs = []
    for start in (
        "sys.path[0] = '/bin'; sys.argv = ['flowers', 'train', 'a=1']; from flowers.__main__ import main; main()",
        "sys.argv = ['x', 'a=1']; runpy.run_module('flowers.train', run_name='__main__', alter_sys=True)",
    ):
        command = [sys.executable, "-c", reports_its_module + start]
        outputs.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert outputs[0] == outputs[1] == f"flowers.train ['a=1'] {Path.cwd()}\n"
    assert flowers("train", "--cfg", "job", "seed=3").stdout == program("--cfg", "job", "seed=3").stdout


def test_help_exits_with_0_and_needs_no_valid_override():
    for arguments in (["-h"], ["--help", "head.epochs=3", "no.such.key=1"]):
        done = program(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert "head.epochs=5" in done.stdout


@pytest.mark.parametrize("name", ["evaluate", "compare", "predict", "explain", "export", "app", "pack"])
def test_a_program_without_a_run_folder_has_its_name_and_no_log_file(name: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(name, return_hydra_config=True).hydra
    assert (cfg.job.name, cfg.run.dir, cfg.output_subdir) == (name, ".", None)
    assert (cfg.job_logging.root, cfg.hydra_logging.root) == (None, None)


def test_a_mistake_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    failed = program("spilt=test", name="evaluate")
    assert (failed.returncode, failed.stderr) == (1, "error: spilt: no such key: did you mean split?\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flags", [("--hydra-help",), ("--info", "searchpath")])
def test_flags_of_hydra_work(flags: tuple[str, ...]):
    done = program(*flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("optimizer.lrr=1", "optimizer.lrr: no such key: did you mean optimizer.lr?"),
        ("data.flip=0.3", "data.flip is now data.hflip_prob"),
        ("head.epochs", "head.epochs: expected key=value: flowers train --help lists the settings"),
    ],
)
def test_a_mistake_is_answered_in_one_line(argument: str, message: str):
    done = program(argument)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"error: {message}\n")


@pytest.mark.parametrize(
    "command",
    [
        "train optimizer.lrr=1",
        "train --help",
        "train data=folder data.root=nowhere",
        "predict run=nowhere photos=a.jpg",
    ],
)
def test_help_and_a_mistake_import_no_torch(command: str):
    name, *arguments = command.split()
    code = (
        f"import sys; sys.argv[1:] = {arguments}\n"
        f"from flowers.{name} import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'lightning', 'torchvision'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("name", "module", "extra"), [("sweep", "optuna", "sweep"), ("explain", "captum", "explain")])
def test_a_missing_extra_is_named_before_anything_is_read(name: str, module: str, extra: str):
    code = (
        f"import sys, importlib.util as util\nfind = util.find_spec\n"
        f"util.find_spec = lambda name, package=None: None if name == '{module}' else find(name, package)\n"
        f"from flowers.{name} import {name}\n"
        f"try: {name}(None)\nexcept ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"needs {module}: {install_command(extra)}\n" in done.stdout


def test_shell_completion_is_that_of_hydra():
    done = program("-sc", "install=bash")
    assert (done.returncode, done.stderr) == (0, "")
    assert "hydra_bash_completion" in done.stdout


def test_bash_completes_a_command(tmp_path: Path):
    command = tmp_path / "flowers"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m flowers "$@"\n')
    command.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(CONF.parent)}
    setup = re.findall(r"^complete .*$", (CONF.parent / "docs" / "training.md").read_text("utf-8"), re.MULTILINE)[0]
    terminal, end = pty.openpty()  # completion needs a terminal
    environment |= {"PS1": "", "TERM": "dumb", "INPUTRC": "/dev/null"}
    with subprocess.Popen(["bash", "--norc", "-i"], stdin=end, stdout=end, stderr=end, env=environment):
        os.close(end)
        to_start = "\x01"  # Control-A: the completed line is printed, not run
        os.write(terminal, f"{setup}\nflowers train head.init=pr\t{to_start}echo completed: \nexit\n".encode())
        shown = b""
        try:
            while part := os.read(terminal, 4096):
                shown += part
        except OSError:  # bash has closed the terminal
            pass
    os.close(terminal)
    assert b"\ncompleted: flowers train head.init=probe\r\n" in shown


def test_schema_prints_one_kind_or_writes_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    printed = json.loads(flowers("schema", "kind=data", PYTHONPATH=str(CONF.parent)).stdout)
    assert printed["properties"]["val_fraction"]["exclusiveMaximum"] == 1
    written = flowers("schema", "output=schemas", PYTHONPATH=str(CONF.parent))
    files = json.loads(written.stdout)["yaml.schemas"]
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.json")} == set(files)
    assert json.loads((tmp_path / "schemas" / "data.json").read_text("utf-8")) == printed
    failed = flowers("schema", "kinds=data", PYTHONPATH=str(CONF.parent))
    assert (failed.returncode, failed.stderr) == (1, "error: kinds: no such key: expected kind or output\n")


def test_new_experiment_says_how_to_run_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    done = flowers("new-experiment", "mine", PYTHONPATH=str(CONF.parent))
    assert done.stdout == ("wrote conf/experiment/mine.yaml: edit it, then run\n  flowers train experiment=mine\n"), (
        done.stderr
    )
    printed = flowers("train", "experiment=mine", "--cfg", "job", PYTHONPATH=str(CONF.parent)).stdout
    assert "architecture: resnet50" in printed
    failed = flowers("new-experiment", "mine", PYTHONPATH=str(CONF.parent))
    assert (failed.returncode, failed.stdout, failed.stderr.count("\n")) == (1, "", 1)
