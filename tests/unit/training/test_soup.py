import resource
from pathlib import Path

import pytest

from flowers.training.soup import _write_run


def test_soup_leaves_no_half_of_a_split_where_files_may_not_grow(tmp_path: Path):
    (tmp_path / "split.csv").write_text("path,split\n" * 100)
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match="too large") as raised:
            _write_run(tmp_path / "soup", {}, tmp_path / "split.csv")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert raised.value.filename == str(tmp_path / "soup" / "split.csv")
    assert [path.name for path in (tmp_path / "soup").iterdir()] == ["checkpoints"]
