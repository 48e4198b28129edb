from contextlib import nullcontext

import pytest
import torch

from flowers.deploy.export.formats import OnnxExporter
from flowers.deploy.export.parity import check_agreement, collect_probabilities, compare_outputs


def test_collect_probabilities_keeps_the_order_of_images_of_different_sizes():
    sizes = [(4, 4 + index % 3) for index in range(100)] + [(5, 100 + index) for index in range(70)]
    images = [torch.full((1, 3, *size), index % 251, dtype=torch.uint8) for index, size in enumerate(sizes)]
    batch_sizes = []

    def program(batch: torch.Tensor) -> torch.Tensor:
        batch_sizes.append(len(batch))
        return batch[:, 0, 0, :2].float()

    outputs = collect_probabilities({"PyTorch": program}, iter(images), len(images))["PyTorch"]
    assert outputs[:, 0].tolist() == [index % 251 for index in range(170)]
    assert (max(batch_sizes), sum(batch_sizes)) == (16, 170)


def test_compare_outputs_counts_nan_as_disagreement():
    good, bad = torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([[float("nan"), 0.1], [0.2, 0.8]])
    rows = compare_outputs({"PyTorch": good, "ONNX": bad}, torch.tensor([0, 1]))
    assert (rows["PyTorch"]["agreement"], rows["ONNX"]["agreement"]) == (1, 0.5)
    assert rows["ONNX"]["largest_difference"] == 1
    with pytest.raises(ValueError, match="ONNX predicts another label than PyTorch for 1 of 2 val images"):
        check_agreement(rows, [OnnxExporter()], {"min_agreement": 0.999}, 2)


@pytest.mark.parametrize(
    ("different", "count", "is_refused"), [(1, 30, False), (2, 30, True), (3, 256, False), (9, 256, True)]
)
def test_check_agreement_refuses_what_the_number_of_images_can_tell(different: int, count: int, is_refused: bool):
    rows = {"ONNX": {"agreement_or_tie": (count - different) / count}}
    with pytest.raises(ValueError, match=f"for {different} of {count} ") if is_refused else nullcontext():
        check_agreement(rows, [OnnxExporter()], {"min_agreement": 0.985}, count)


def test_check_agreement_ignores_another_label_only_if_it_is_a_tie_for_pytorch():
    reference = torch.tensor([[0.501, 0.499], [0.6, 0.4]])
    for exported, agreement, or_tie in (([0.499, 0.501], 0.5, 1), ([0.1, 0.9], 0.5, 1), ([0.501, 0.499], 1, 1)):
        rows = compare_outputs(
            {"PyTorch": reference, "ONNX": torch.tensor([exported, [0.6, 0.4]])}, torch.tensor([0, 0])
        )
        assert (rows["ONNX"]["agreement"], rows["ONNX"]["agreement_or_tie"]) == (agreement, or_tie)
        check_agreement(rows, [OnnxExporter()], {"min_agreement": 0.999}, 2)
    rows = compare_outputs({"PyTorch": reference, "ONNX": reference.flip(1)}, torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="another label than PyTorch for 1 of 2 val images, ties aside"):
        check_agreement(rows, [OnnxExporter()], {"min_agreement": 0.999}, 2)
