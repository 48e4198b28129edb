from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from flowers.data.synthetic import CLASS_NAMES, generate_dataset, render_image


def pixels(*arguments: object) -> np.ndarray:
    return np.asarray(render_image(*arguments))  # type: ignore[arg-type]


@pytest.mark.parametrize("label", CLASS_NAMES)
def test_render_image_depends_on_label_index_and_seed(label: str):
    assert np.array_equal(pixels(label, 3, 64, 0), pixels(label, 3, 64, 0))
    assert not np.array_equal(pixels(label, 3, 64, 0), pixels(label, 3, 64, 1))
    assert not np.array_equal(pixels(label, 3, 64, 0), pixels(label, 4, 64, 0))
    assert pixels(label, 3, 50, 0).shape == (50, 50, 3)


def test_render_image_refuses_an_unknown_label():
    with pytest.raises(ValueError, match="expected one of daisy"):
        render_image("cactus", 0, 64, 0)


def test_generate_dataset_balances_the_classes_and_starts_with_the_images_of_a_smaller_one(tmp_path: Path):
    generate_dataset(tmp_path / "small", number=12, size=32)
    generate_dataset(tmp_path / "large", number=23, size=32)
    names = [path.relative_to(tmp_path / "large") for path in (tmp_path / "large").glob("*/*.jpg")]
    assert sorted(Counter(name.parent.name for name in names).values()) == [4, 4, 5, 5, 5]
    for path in (tmp_path / "small").glob("*/*.jpg"):
        assert path.read_bytes() == (tmp_path / "large" / path.relative_to(tmp_path / "small")).read_bytes()


def test_mean_color_does_not_determine_the_class():
    colors = np.array([[pixels(label, index, 32, 0).mean((0, 1)) for index in range(60)] for label in CLASS_NAMES])
    known, unknown = colors[:, :40].reshape(-1, 3), colors[:, 40:].reshape(-1, 3)
    distances = np.linalg.norm(unknown[:, None] - known[None], axis=2)
    neighbors = np.argsort(distances, axis=1)[:, :5] // 40
    votes = np.array([np.bincount(row, minlength=5).argmax() for row in neighbors])
    accuracy = (votes == np.repeat(np.arange(5), 20)).mean()
    assert accuracy < 0.7


def test_generate_dataset_does_nothing_if_the_dataset_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    generate_dataset(tmp_path / "garden", number=10, size=32)
    monkeypatch.setattr("flowers.data.synthetic.render_image", None)
    generate_dataset(tmp_path / "garden", number=10, size=32)


def test_generate_dataset_refuses_and_keeps_a_folder_with_other_contents(tmp_path: Path):
    generate_dataset(tmp_path / "garden", number=10, size=32)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "letter.txt").write_text("some text", encoding="utf-8")
    for name in ("garden", "own"):
        with pytest.raises(ValueError, match=r"expected .*; set another data\.root"):
            generate_dataset(tmp_path / name, number=11, size=32)
    assert (tmp_path / "own" / "letter.txt").read_text(encoding="utf-8") == "some text"


def test_generate_dataset_leaves_no_folder_when_interrupted_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr("flowers.data.synthetic.render_image", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            generate_dataset(tmp_path / "garden", number=10, size=32)
    assert not (tmp_path / "garden").exists()
    generate_dataset(tmp_path / "garden", number=10, size=32)
    assert len(list((tmp_path / "garden").glob("*/*.jpg"))) == 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"number": 9}, r"data\.source\.number=9: expected at least 10"),
        ({"size": 31}, r"data\.source\.size=31: expected at least 32"),
    ],
)
def test_generate_dataset_refuses_a_number_or_size_that_is_too_small(
    tmp_path: Path, settings: dict[str, int], message: str
):
    with pytest.raises(ValueError, match=message):
        generate_dataset(tmp_path / "garden", **settings)


def test_generate_dataset_deletes_what_a_killed_process_left(tmp_path: Path):
    (tmp_path / ".garden.part" / "rose").mkdir(parents=True)
    generate_dataset(tmp_path / "garden", number=10, size=32)
    assert not list(tmp_path.glob(".*.part"))


def test_generate_dataset_refuses_and_keeps_a_file_in_its_place(tmp_path: Path):
    (tmp_path / "garden").write_text("some text", encoding="utf-8")
    with pytest.raises(ValueError, match=r"set another data\.root"):
        generate_dataset(tmp_path / "garden", number=10, size=32)
    assert (tmp_path / "garden").read_text(encoding="utf-8") == "some text"


def test_generate_dataset_fills_an_empty_folder_given_as_link_or_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    generate_dataset(tmp_path / "link", number=10, size=32)
    assert (tmp_path / "there" / "garden.json").exists()
    monkeypatch.chdir(tmp_path / "here")
    generate_dataset(".", number=10, size=32)
    assert (tmp_path / "here" / "garden.json").exists()


def test_generate_dataset_is_the_same_for_any_number_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for workers in (1, 8):
        monkeypatch.setattr("os.cpu_count", lambda workers=workers: workers)
        generate_dataset(tmp_path / str(workers), number=20, size=32)
    for path in (tmp_path / "1").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "8" / path.relative_to(tmp_path / "1")).read_bytes()


def test_generate_dataset_called_twice_at_once_creates_one_dataset(tmp_path: Path):
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: generate_dataset(tmp_path / "garden", number=20, size=32), range(2)))
    assert len(list((tmp_path / "garden").glob("*/*.jpg"))) == 20
    assert not list(tmp_path.glob(".*.part"))
