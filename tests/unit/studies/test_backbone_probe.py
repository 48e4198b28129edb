import pytest

from flowers.studies.backbone_probe import Candidate, ProbeResult, against_best, parse_candidate


def result(correct: list[bool]) -> ProbeResult:
    return ProbeResult("resnet18", None, 1, 2, 1.0, "2026-01-01 00:00", None, correct, [0.1])


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("resnet18", Candidate("resnet18", "DEFAULT")),
        ("resnet18:null", Candidate("resnet18", None)),
        ("resnet18:a:b.pth", Candidate("resnet18", "a:b.pth")),
    ],
)
def test_parse_candidate_splits_at_the_first_colon(entry, expected):
    assert parse_candidate(entry) == expected


def test_parse_candidate_refuses_an_empty_part():
    with pytest.raises(ValueError, match=r"models: resnet18:: expected architecture"):
        parse_candidate("resnet18:")


def test_against_best_corrects_for_the_number_of_backbones():
    best, close, far = result([True] * 10), result([True] * 9 + [False]), result([False] * 10)
    p_close, p_far = against_best([best, close, far])
    assert p_close == 1.0
    assert p_far == pytest.approx(2 * 2 / 2**10)
