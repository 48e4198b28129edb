import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))

SMALL = {
    "FLOWERS_NOTEBOOK_GARDEN": "60",
    "FLOWERS_NOTEBOOK_SIZE": "32",
    "FLOWERS_NOTEBOOK_NETWORKS": "googlenet resnet18",
    "FLOWERS_NOTEBOOK_WEIGHTS": "none",
    "FLOWERS_NOTEBOOK_EPOCHS": "2",
}


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] * (path.stem == "lineage"), id=path.stem) for path in NOTEBOOKS],
)
def test_a_notebook_runs_from_top_to_bottom(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = SMALL | {"IPYTHONDIR": f"{tmp_path}/ipython", "JUPYTER_RUNTIME_DIR": f"{tmp_path}/jupyter"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(path.parent))  # a notebook server starts a notebook in its own folder
    (tmp_path / "cwd").mkdir()
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": tmp_path / "cwd"}}).execute()
    assert "random" in json.dumps(notebook.cells).lower()
    assert list((tmp_path / "cwd").iterdir()) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_shows_a_whole_run_is_small_and_names_no_machine(path: Path):
    notebook = nbformat.read(path, as_version=4)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert outputs
    assert all(output.output_type != "error" and output.get("name") != "stderr" for output in outputs)
    text = json.dumps([{**cell, "attachments": None} for cell in notebook.cells])
    assert not any(trace in text for trace in ("/tmp/", "/home/", "/root/", "/work/", "http:", "https:"))
    assert path.stat().st_size < 300_000
