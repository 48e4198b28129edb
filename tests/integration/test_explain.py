import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from flowers.data.images import read_image
from flowers.deploy.classifier import Classifier
from flowers.deploy.explain import crop_image, explain_images, overlay_heat_map, side_by_side
from flowers.explain import main
from tests.helpers import configuration, program_here


def explain(*overrides: str) -> int:
    return int(main(configuration(*overrides, name="explain")))


def test_explain_writes_a_picture_per_image_and_skips_other_files(
    trained: Path, painted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
):
    for name in ("daisy/00000.jpg", "rose/00002.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes((painted / name).read_bytes())
    (tmp_path / "rose" / "notes.txt").write_text("not an image")
    (tmp_path / "rose" / "itself.jpg").symlink_to("itself.jpg")
    photos = f"photos=[{tmp_path}/rose,{tmp_path}/daisy/*.jpg]"
    assert explain(f"run={trained}", photos, f"output={tmp_path}/pictures", "accelerator=cpu") == 2
    pictures = sorted((tmp_path / "pictures").rglob("*.*"))
    assert [path.relative_to(tmp_path / "pictures").as_posix() for path in pictures] == [
        "daisy/00000.jpg.png",
        "rose/00002.jpg.png",
    ]
    assert "rose/notes.txt: not a JPEG" in caplog.text
    assert "rose/itself.jpg: " in caplog.text
    prediction = Classifier.load(trained)(tmp_path / "rose/00002.jpg")
    caption = f"{prediction.label}, probability {prediction.probability:.3f}"
    assert f"{pictures[1]}: {caption}\n" in capsys.readouterr().out


def test_explain_fails_with_one_line_if_no_file_can_be_read(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "a.jpg").write_text("not an image")
    monkeypatch.chdir(tmp_path)
    process = program_here(f"run={trained}", "photos=a.jpg", "output=pictures", name="explain")
    assert process.returncode == 1
    assert process.stderr.startswith("skipped a.jpg: not a JPEG")
    assert "error: none of 1 files could be read" in process.stderr
    assert "Traceback" not in process.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]


def test_explain_names_what_is_wrong_before_it_writes_anything(trained: Path, painted: Path, tmp_path: Path):
    run, photo, output = f"run={trained}", f"photos={painted}/daisy/00000.jpg", f"output={tmp_path}/pictures"
    with pytest.raises(ValueError, match=r"label=rows: no such class: did you mean rose\?"):
        explain(run, photo, output, "label=rows")
    with pytest.raises(ValueError, match=f"run={tmp_path}"):
        explain(f"run={tmp_path}", photo, output)
    with pytest.raises(ValueError, match="photos="):
        explain(run, output)
    with pytest.raises(ValueError, match=f"output={painted}: contains some of the images to explain"):
        explain(run, photo, f"output={painted}")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "pictures").write_text("a file")
    with pytest.raises(FileExistsError, match="pictures"):
        explain(run, photo, output)
    with pytest.raises(ValueError, match="output is missing: give output="):
        explain(run, photo)


def test_explain_images_adds_the_most_likely_class_to_the_caption_of_another(trained: Path, painted: Path):
    classifier = Classifier.load(trained)
    image = read_image(painted / "daisy" / "00000.jpg")
    other = list(classifier(image).probabilities)[1]
    ((prediction, picture, caption),) = explain_images(classifier, [crop_image(classifier, image)], other)
    assert prediction.probabilities == pytest.approx(classifier(image).probabilities, abs=0.01)
    probability = f"{prediction.probabilities[other]:.3f}"
    assert caption.startswith(f"{other}, probability {probability} (most likely: {prediction.label}, ")
    assert picture.size == (2 * 448 + 8, 448 + 44)


def test_picture_is_red_where_the_map_is_hot_and_shows_the_unchanged_image():
    image, heat_map = torch.full((3, 40, 60), 128, dtype=torch.uint8), torch.zeros(40, 60)
    heat_map[:, 30:] = 1
    overlay = overlay_heat_map(image, heat_map)
    (cold_red, _, cold_blue), (hot_red, _, hot_blue) = (overlay.getpixel((x, 20)) for x in (5, 55))  # type: ignore[misc]
    assert hot_red > hot_blue
    assert cold_blue > cold_red
    picture = side_by_side(image, heat_map, "a caption that is too long for this picture and is drawn in small letters")
    assert picture.crop((0, 0, 60, 40)).getcolors() == [(2400, (128, 128, 128))]
    assert Image.Image.tobytes(picture.crop((68, 0, 128, 40))) == overlay.tobytes()
    assert picture.crop((0, 44, 8, 84)).getcolors() == [(320, (255, 255, 255))]  # the margin of the caption is empty


@pytest.mark.parametrize("caption", ["$a_ [/b] {x} %s", "\x1b[31m\r\n", os.fsdecode(b"caf\xe9"), "", "x" * 60])
def test_picture_shows_any_caption_in_one_line(caption: str):
    picture = side_by_side(torch.zeros(3, 40, 60, dtype=torch.uint8), torch.zeros(40, 60), caption)
    assert picture.size == (128, 84)
    assert picture.crop((0, 44, 4, 84)).getcolors() == [(160, (255, 255, 255))]


def test_explain_shows_odd_file_names_as_one_line(
    trained: Path, painted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    (tmp_path / "odd").mkdir()
    name = os.fsdecode(b"=\xe9\x1b[31m\r\n")
    (tmp_path / "odd" / f"{name}1.jpg").write_bytes((painted / "rose" / "00002.jpg").read_bytes())
    (tmp_path / "odd" / f"{name}2.jpg").write_text("not an image")
    explain(f"run={trained}", f"photos={tmp_path}/odd", f"output={tmp_path}/pictures", "accelerator=cpu")
    assert (tmp_path / "pictures" / f"{name}1.jpg.png").is_file()
    for text in (capsys.readouterr().out, caplog.messages[-1]):
        assert "=\\udce9\\x1b[31m\\r\\n" in text
        assert text.count("\n") <= 1
