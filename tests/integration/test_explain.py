import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import MissingMandatoryValue
from PIL import Image

from flowers.data.images import read_image
from flowers.deploy.classifier import Classifier
from flowers.deploy.explain import explain_image, overlay_heat_map, side_by_side
from flowers.explain import main
from tests.helpers import configuration


def explained(*overrides: str) -> int:
    return int(main(configuration(*overrides, name="explain")))


def test_each_photo_becomes_a_picture_and_what_is_none_is_passed_over(
    trained: Path, painted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
):
    for name in ("daisy/00000.jpg", "rose/00002.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes((painted / name).read_bytes())
    (tmp_path / "rose" / "notes.txt").write_text("no photo")
    given = f"photos=[{tmp_path}/rose,{tmp_path}/daisy/*.jpg]"
    assert explained(f"run={trained}", given, f"output={tmp_path}/heat", "accelerator=cpu") == 2
    written = sorted((tmp_path / "heat").rglob("*.*"))
    assert [path.relative_to(tmp_path / "heat").as_posix() for path in written] == [
        "daisy/00000.jpg.png",
        "rose/00002.jpg.png",
    ]
    assert "rose/notes.txt: not a JPEG" in caplog.text
    said = Classifier.load(trained)(tmp_path / "rose/00002.jpg")
    assert f"{written[1]}: {said.label}, probability {said.probability:.3f}\n" in capsys.readouterr().out


def test_the_program_ends_with_a_line_where_nothing_can_be_read(trained: Path, tmp_path: Path):
    (tmp_path / "a.jpg").write_text("no photo")
    command = [sys.executable, "-m", "flowers.explain", f"run={trained}", "photos=a.jpg", "output=heat"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("passed over, a.jpg: not a JPEG")
    assert "error: none of 1 files could be read" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]


def test_what_is_given_wrongly_is_named_before_anything_is_written(trained: Path, painted: Path, tmp_path: Path):
    run, photo, output = f"run={trained}", f"photos={painted}/daisy/00000.jpg", f"output={tmp_path}/heat"
    with pytest.raises(ValueError, match=r"label=rows: no such class: did you mean rose\?"):
        explained(run, photo, output, "label=rows")
    with pytest.raises(ValueError, match="no run there"):
        explained(f"run={tmp_path}", photo, output)
    with pytest.raises(ValueError, match="no images given"):
        explained(run, output)
    with pytest.raises(ValueError, match="holds photos that are to be explained"):
        explained(run, photo, f"output={painted}")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "heat").write_text("a file")
    with pytest.raises(ValueError, match=r"heat.* cannot be written"):
        explained(run, photo, output)
    with pytest.raises(MissingMandatoryValue, match="output"):
        explained(run, photo)


def test_a_named_class_is_captioned_with_the_likeliest_beside_it(trained: Path, painted: Path):
    classifier = Classifier.load(trained)
    image = read_image(painted / "daisy" / "00000.jpg")
    said = classifier(image)
    other = list(said.probabilities)[1]
    picture, caption = explain_image(classifier, image, other)
    assert caption.startswith(f"{other}, probability {said.probabilities[other]:.3f} (likeliest: {said.label}, ")
    assert picture.size == (2 * 448 + 8, 448 + 44)


def test_a_picture_is_red_where_it_is_hot_and_shows_the_photo_as_it_is():
    photo, heat = torch.full((3, 40, 60), 128, dtype=torch.uint8), torch.zeros(40, 60)
    heat[:, 30:] = 1
    laid = overlay_heat_map(photo, heat)
    (r, _, b), (red, _, blue) = (laid.getpixel((x, 20)) for x in (5, 55))  # type: ignore[misc]
    assert red > blue
    assert b > r
    picture = side_by_side(photo, heat, "a caption that is too long for so small a picture, and is written smaller")
    assert picture.crop((0, 0, 60, 40)).getcolors() == [(2400, (128, 128, 128))]
    assert Image.Image.tobytes(picture.crop((68, 0, 128, 40))) == laid.tobytes()
    assert picture.crop((0, 44, 8, 84)).getcolors() == [(320, (255, 255, 255))]  # the caption keeps to its margin
