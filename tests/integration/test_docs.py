"""The commands, examples and links of README.md, CONTRIBUTING.md and docs/ are valid."""

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from benchmarks.settings import SCHEMAS
from flowers.runs.run_folder import read_config
from flowers.runtime.files import read_json
from flowers.settings.config import compose_settings
from flowers.settings.overrides import check_overrides, flatten, hydra_context
from flowers.settings.programs import CONFIGURED, settings_type
from tests.browser import open_chromium, requests_of_pages
from tests.faults.doors import cell_names
from tests.helpers import SMALL, code_blocks, curves, install, program_here, shown_package

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *DOCS]
PROGRAMS = [*CONFIGURED, *SCHEMAS]
FLAGS = {"-m", "--multirun", "--help"}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def inline_codes(page: Path) -> list[str]:
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", prose)


def program_calls(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each program that the bash blocks of a page call, with its arguments."""
    for block in code_blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for command in re.split(r"&&|\|", line):
                words = shlex.split(command, comments=True)
                module = next((word for flag, word in pairwise(words) if flag == "-m"), "")
                if module.startswith(("flowers.", "benchmarks.")):
                    yield module.partition(".")[2], words[words.index(module) + 1 :]
                elif words and Path(words[0]).name == "flowers" and words[1:]:
                    yield words[1], words[2:]


def check_call(program: str, arguments: Sequence[str]) -> None:
    """Compose the configuration of a call.

    Raises:
        Exception: The program would refuse the call.
    """
    if program not in PROGRAMS:
        assert importlib.util.find_spec(f"flowers.{program.replace('-', '_')}"), "no such program"
        return
    words = [word for word in arguments if word not in ("--cfg", "job")]
    flags = {word for word in words if word.startswith("-")}
    assert flags <= FLAGS, f"unknown flags {flags - FLAGS}"
    overrides = [word for word in words if word not in flags]
    if importlib.util.find_spec("hydra_plugins.hydra_ray_launcher") is None and "hydra/launcher=ray" in overrides:
        overrides = [word for word in overrides if not word.startswith("hydra")]
    own = [word for word in overrides if program != "sweep" or word.startswith(("sweep", "hydra"))]
    compose_first(program, own, has_sweeps=bool(flags & {"-m", "--multirun"}))
    if program == "sweep":
        compose_first("train", [word for word in overrides if word not in own], has_sweeps=True)


def compose_first(config: str, overrides: Sequence[str], has_sweeps: bool) -> None:
    """Compose a configuration, and check each of its values."""
    checked = check_overrides(overrides, config)
    parsed = OverridesParser.create().parse_overrides(checked)
    assert has_sweeps or not any(each.is_sweep_override() for each in parsed), "several values need -m"
    if not any(word.startswith("resume=") for word in overrides):
        compose_settings(checked, settings_type(config))


@pytest.fixture(scope="module")
def known_keys() -> set[str]:
    """All keys of all programs and of all options of their groups."""
    variants: list[tuple[str, list[str]]] = [(name, []) for name in PROGRAMS]
    variants += [("train", [f"data={name}"]) for name in ("garden", "shards")]
    variants += [("train", [f"scheduler={name}"]) for name in ("one_cycle", "step")]
    variants += [
        ("train", ["loss=focal", "data/augmentation=strong", "callbacks=ema", "model=timm"]),
        ("train", ["callbacks=early_stopping"]),
    ]
    variants += [("train", ["logger=[csv,mlflow,wandb]"])]
    variants += [("train", [f"mixing={name}"]) for name in ("mixup", "mixup_or_cutmix")]
    variants += [("ablation", ["recipe=best_small"])]
    with hydra_context():
        return {
            key for name, overrides in variants for key in flatten(OmegaConf.to_container(compose(name, overrides)))
        }


@pytest.fixture
def reader(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory of a reader who has written the files of a page, and has installed its package."""
    name, parts, files = shown_package(page)
    install(tmp_path / "site", parts, {}, name)
    install(tmp_path / "work", {}, files, name)
    monkeypatch.chdir(tmp_path / "work")
    for folder in ("site", "work"):
        monkeypatch.syspath_prepend(tmp_path / folder)
    before = {*sys.modules}
    yield tmp_path / "work"
    for module in {Path(path).parts[0].removesuffix(".py") for path in files}:
        for loaded in [each for each in sys.modules.keys() - before if each.partition(".")[0] == module]:
            del sys.modules[loaded]


@each_page
@pytest.mark.usefixtures("reader")
def test_the_commands_of_a_page_are_accepted_by_their_programs(page: Path):
    failures = []
    with hydra_context():  # what has the same options is composed once
        for program, arguments in program_calls(page):
            try:
                check_call(program, arguments)
            except Exception as error:
                failures.append(f"flowers {program} {shlex.join(arguments)}: {error}")
    assert failures == []


@each_page
def test_the_settings_named_in_the_text_of_a_page_exist(page: Path, known_keys: set[str]):
    named = [
        key for code in inline_codes(page) for key in re.findall(r"(?<![\w.+])([a-z_0-9]+(?:\.[a-z_0-9]+)+)=", code)
    ]
    unknown = [key for key in named if key not in known_keys and not key.startswith(("hydra.", "trainer."))]
    assert unknown == []


@pytest.mark.parametrize(
    "command", ["train data.batchsize=3", "train --resume", "train seed=0,1", "evaluate split=[a]"]
)
def test_a_wrong_command_would_be_found(command: str):
    program, *arguments = command.split()
    with pytest.raises((ValueError, AssertionError)):
        check_call(program, arguments)


@each_page
@pytest.mark.usefixtures("reader")
def test_the_python_examples_of_a_page_compile_and_their_imports_resolve(page: Path):
    for code in code_blocks(page, "python"):
        compile(code, str(page), "exec")
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                assert node.module
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)


def test_the_complete_example_trains_and_predicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = [setting for setting in SMALL if not setting.startswith(("data=", "head.", "finetune."))]
    settings += ["data=garden", "data.source.number=30", "data.source.size=32", "head.epochs=1", "finetune.epochs=0"]
    example = code_blocks(ROOT / "docs" / "python-api.md", "python")[0]
    small, replaced = re.subn(r"^overrides = .*$", f"overrides = {settings!r}", example, flags=re.MULTILINE)
    assert replaced == 1
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWERS_DATA", str(tmp_path / "data"))
    names: dict[str, object] = {}
    exec(compile(small, "python-api.md", "exec"), names)
    accuracy, prediction = names["accuracy"], names["prediction"]
    assert isinstance(accuracy, float)
    assert 0 <= accuracy <= 1
    assert getattr(prediction, "label", None) in getattr(names["classifier"], "classes", ())


@pytest.mark.parametrize("page", [ROOT / "docs" / "python-api.md"])
def test_own_parts_train_on_the_command_line_and_in_python(page: Path, reader: Path):
    _, arguments = list(program_calls(page))[-1]
    done = program_here(*arguments, "trainer=cpu", "data.num_workers=0", "hydra.run.dir=command")
    assert done.returncode == 0, done.stderr
    example = code_blocks(page, "python")[-1]
    small, replaced = re.subn(
        r"^parts = \[", "\\g<0>'trainer=cpu', 'data.num_workers=0', ", example, flags=re.MULTILINE
    )
    assert replaced == 1
    names: dict[str, Any] = {}
    exec(compile(small, "python-api.md", "exec"), names)
    for run in (reader / "command", Path(names["settings"].run_dir)):
        config = read_config(run)
        assert config["model"] == {"architecture": "small_net", "weights": None, "options": {"width": 32}}
        assert (config["loss"]["_target_"], config["loss"]["scale"]) == ("my_losses.scaled", 2)
        assert config["data"]["source"]["_target_"] == "my_sources.paint_stripes"
        assert config["data"]["augmentation"]["_target_"] == "my_transforms.turned"
        assert len(curves(run)["train/gap"]) == 5
        assert read_json(run / "result.json")["val"]["accuracy"] == 1


@each_page
def test_the_links_of_a_page_lead_somewhere(page: Path):
    text = page.read_text(encoding="utf-8")
    missing = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = page.parent / target if target else page
        if not file.exists() or (anchor and anchor not in heading_slugs(file)):
            missing.append(link)
    assert missing == []


def heading_slugs(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 110
    assert [line for line in lines if len(line) > 100] == []


def test_the_site_has_at_most_seventeen_pages_and_its_navigation_lists_each():
    site: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "mkdocs.yml"))
    nav = site["nav"]
    assert sorted(name for entry in nav for name in entry.values()) == [page.name for page in DOCS]
    assert len(DOCS) <= 17


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site, in a folder whose name an address must escape."""
    for package in ("mkdocs", "material", "mkdocstrings_handlers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site") / "mum's docs (1)"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


def test_the_site_builds_without_warnings_and_asks_no_other_host(site: Path):
    for page in site.rglob("*.html"):
        tags = re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", page.read_text(encoding="utf-8"))
        assert not [tag for tag in tags if re.search(r"(?:src|href)=[\"']?(?:https?:)?//", tag)]


def test_the_search_of_a_site_on_a_disk_finds_pages_and_asks_no_host(site: Path, tmp_path: Path):
    (tmp_path / "asks.html").write_text('<script src="http://127.0.0.1:9/"></script>', encoding="utf-8")
    with open_chromium(tmp_path, f"--log-net-log={tmp_path / 'net.json'}") as chromium:
        chromium.driver.get((site / "index.html").as_uri())
        chromium.driver.find_element("name", "query").send_keys("calibration")
        chromium.wait_for(lambda: chromium.driver.find_elements("css selector", ".md-search-result__item a"))
        found = chromium.driver.find_elements("css selector", ".md-search-result__item a")
        addresses = [link.get_attribute("href").partition("#")[0] for link in found]
        chromium.driver.get((tmp_path / "asks.html").as_uri())
    assert (site / "glossary.html").as_uri() in [address.partition("?")[0] for address in addresses]
    assert {*requests_of_pages(tmp_path / "net.json")} == {"http://127.0.0.1:9/"}  # of the page that asks


def test_each_promise_in_security_names_a_test_that_exists():
    named = [code for code in inline_codes(ROOT / "SECURITY.md") if "::" in code]
    assert len(named) > 10
    for code in named:
        path, _, function = code.partition("::")
        assert f"def {function}(" in (ROOT / path).read_text(encoding="utf-8"), code
    cells = [code for code in inline_codes(ROOT / "SECURITY.md") if re.fullmatch(r"\[.*\]", code)]
    assert len(cells) > 10
    assert [cell for cell in cells if cell.strip("[]") not in cell_names()] == []
