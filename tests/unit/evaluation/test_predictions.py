from pathlib import Path

import pytest
import torch

from flowers.evaluation.predictions import Predictions, load_predictions


def test_predictions_are_kept_to_the_last_bit(tmp_path: Path):
    logits = torch.randn(3, 2, dtype=torch.float64) * 1e-3
    said = Predictions(["a/1.png", 'a/"2",\n.png', "b/ü.png"], torch.tensor([0, 0, 1]), logits, ["a", "b, c"])
    said.save(tmp_path / "val.csv")
    kept = load_predictions(tmp_path / "val.csv")
    assert (list(kept.paths), list(kept.classes)) == (list(said.paths), list(said.classes))
    assert torch.equal(kept.logits, said.logits)
    assert torch.equal(kept.labels, said.labels)


@pytest.mark.parametrize("text", [None, "", "path,true,a\nx,b,1\n", "path,true,a\nx,a,one\n", "path,true,a\nx,a,1,2\n"])
def test_another_file_is_refused(tmp_path: Path, text: str | None):
    if text is not None:
        (tmp_path / "val.csv").write_text(text)
    with pytest.raises(ValueError, match=r"val\.csv cannot be read"):
        load_predictions(tmp_path / "val.csv")
