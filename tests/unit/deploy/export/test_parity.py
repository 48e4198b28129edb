import pytest
import torch

from flowers.deploy.export.parity import check_agreement, collect_probabilities, compare_outputs


def test_photos_of_any_sizes_are_answered_in_their_order():
    sizes = [(4, 4 + number % 3) for number in range(100)] + [(5, 100 + number) for number in range(70)]
    photos = [torch.full((1, 3, *size), number % 251, dtype=torch.uint8) for number, size in enumerate(sizes)]
    batches = []

    def program(batch: torch.Tensor) -> torch.Tensor:
        batches.append(len(batch))
        return batch[:, 0, 0, :2].float()

    answers = collect_probabilities({"PyTorch": program}, iter(photos), len(photos))["PyTorch"]
    assert answers[:, 0].tolist() == [number % 251 for number in range(170)]
    assert (max(batches), sum(batches)) == (16, 170)


def test_what_is_no_number_agrees_with_nothing():
    good, bad = torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([[float("nan"), 0.1], [0.2, 0.8]])
    rows = compare_outputs({"PyTorch": good, "ONNX": bad}, torch.tensor([0, 1]))
    assert (rows["PyTorch"]["agreement"], rows["ONNX"]["agreement"]) == (1, 0.5)
    assert rows["ONNX"]["largest_difference"] == 1
    with pytest.raises(ValueError, match="ONNX gives 1 of 2 val photos another label"):
        check_agreement(rows, {"ONNX": ("min_agreement", 0.999)}, 2)


def test_another_label_counts_unless_pytorch_holds_both_for_as_likely():
    ours = torch.tensor([[0.501, 0.499], [0.6, 0.4]])
    for said, agreement, or_tie in (([0.499, 0.501], 0.5, 1), ([0.1, 0.9], 0.5, 1), ([0.501, 0.499], 1, 1)):
        rows = compare_outputs({"PyTorch": ours, "ONNX": torch.tensor([said, [0.6, 0.4]])}, torch.tensor([0, 0]))
        assert (rows["ONNX"]["agreement"], rows["ONNX"]["agreement_or_tie"]) == (agreement, or_tie)
        check_agreement(rows, {"ONNX": ("min_agreement", 0.999)}, 2)
    rows = compare_outputs({"PyTorch": ours, "ONNX": ours.flip(1)}, torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="gives 1 of 2 val photos another label than PyTorch, ties aside"):
        check_agreement(rows, {"ONNX": ("min_agreement", 0.999)}, 2)
