from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from flowers.data.synthetic import CLASS_NAMES, generate_dataset, render_image


def pixels(*arguments: object) -> np.ndarray:
    return np.asarray(render_image(*arguments))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", CLASS_NAMES)
def test_the_same_seed_paints_the_same_flower_and_another_one_another(kind: str):
    assert np.array_equal(pixels(kind, 3, 64, 0), pixels(kind, 3, 64, 0))
    assert not np.array_equal(pixels(kind, 3, 64, 0), pixels(kind, 3, 64, 1))
    assert not np.array_equal(pixels(kind, 3, 64, 0), pixels(kind, 4, 64, 0))
    assert pixels(kind, 3, 50, 0).shape == (50, 50, 3)


def test_a_kind_that_is_none_is_refused():
    with pytest.raises(ValueError, match="wanted one of daisy"):
        render_image("cactus", 0, 64, 0)


def test_a_garden_has_as_many_of_each_kind_and_the_first_are_those_of_a_smaller_one(tmp_path: Path):
    generate_dataset(tmp_path / "small", number=12, size=32)
    generate_dataset(tmp_path / "large", number=23, size=32)
    names = [path.relative_to(tmp_path / "large") for path in (tmp_path / "large").glob("*/*.jpg")]
    assert sorted(Counter(name.parent.name for name in names).values()) == [4, 4, 5, 5, 5]
    for path in (tmp_path / "small").glob("*/*.jpg"):
        assert path.read_bytes() == (tmp_path / "large" / path.relative_to(tmp_path / "small")).read_bytes()


def test_colour_alone_does_not_give_the_kind_away():
    colours = np.array([[pixels(kind, index, 32, 0).mean((0, 1)) for index in range(60)] for kind in CLASS_NAMES])
    known, asked = colours[:, :40].reshape(-1, 3), colours[:, 40:].reshape(-1, 3)
    distances = np.linalg.norm(asked[:, None] - known[None], axis=2)
    neighbors = np.argsort(distances, axis=1)[:, :5] // 40
    votes = np.array([np.bincount(row, minlength=5).argmax() for row in neighbors])
    accuracy = (votes == np.repeat(np.arange(5), 20)).mean()
    assert accuracy < 0.7


def test_a_garden_that_is_there_is_not_painted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    generate_dataset(tmp_path / "garden", number=10, size=32)
    monkeypatch.setattr("flowers.data.synthetic.render_image", None)
    generate_dataset(tmp_path / "garden", number=10, size=32)


def test_another_garden_or_a_folder_of_ones_own_is_refused_and_left_alone(tmp_path: Path):
    generate_dataset(tmp_path / "garden", number=10, size=32)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "letter.txt").write_text("dear", encoding="utf-8")
    for name in ("garden", "own"):
        with pytest.raises(ValueError, match=r"wanted .*: give another data.root"):
            generate_dataset(tmp_path / name, number=11, size=32)
    assert (tmp_path / "own" / "letter.txt").read_text(encoding="utf-8") == "dear"


def test_a_garden_cut_short_leaves_no_folder_and_the_next_call_paints_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr("flowers.data.synthetic.render_image", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            generate_dataset(tmp_path / "garden", number=10, size=32)
    assert not (tmp_path / "garden").exists()
    generate_dataset(tmp_path / "garden", number=10, size=32)
    assert len(list((tmp_path / "garden").glob("*/*.jpg"))) == 10


@pytest.mark.parametrize("wrong", [{"number": 9}, {"size": 31}])
def test_a_garden_too_small_is_refused(tmp_path: Path, wrong: dict[str, int]):
    with pytest.raises(ValueError, match="wanted at least 10"):
        generate_dataset(tmp_path / "garden", **wrong)


def test_what_a_killed_planting_left_is_cleared_by_the_next(tmp_path: Path):
    (tmp_path / ".garden.part" / "rose").mkdir(parents=True)
    generate_dataset(tmp_path / "garden", number=10, size=32)
    assert not list(tmp_path.glob(".*.part"))


def test_a_file_in_the_place_of_the_garden_is_refused_and_left_alone(tmp_path: Path):
    (tmp_path / "garden").write_text("dear", encoding="utf-8")
    with pytest.raises(ValueError, match=r"give another data\.root"):
        generate_dataset(tmp_path / "garden", number=10, size=32)
    assert (tmp_path / "garden").read_text(encoding="utf-8") == "dear"


def test_an_empty_folder_is_planted_in_by_any_of_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    generate_dataset(tmp_path / "link", number=10, size=32)
    assert (tmp_path / "there" / "garden.json").exists()
    monkeypatch.chdir(tmp_path / "here")
    generate_dataset(".", number=10, size=32)
    assert (tmp_path / "here" / "garden.json").exists()


def test_one_thread_and_many_paint_the_same_garden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for workers in (1, 8):
        monkeypatch.setattr("os.cpu_count", lambda workers=workers: workers)
        generate_dataset(tmp_path / str(workers), number=20, size=32)
    for path in (tmp_path / "1").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "8" / path.relative_to(tmp_path / "1")).read_bytes()


def test_two_at_once_paint_one_garden(tmp_path: Path):
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: generate_dataset(tmp_path / "garden", number=20, size=32), range(2)))
    assert len(list((tmp_path / "garden").glob("*/*.jpg"))) == 20
    assert not list(tmp_path.glob(".*.part"))
