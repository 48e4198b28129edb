from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from flowers.data.splits import ImageRecord
from flowers.studies.audit import (
    Audit,
    Preview,
    audit_images,
    class_overlap,
    duplicate_groups,
    nearest_neighbors,
    preview_image,
)

CLASSES = ["a", "b", "c"]
GOOD = Preview(b"", 1.0, 30.0, 224)


@pytest.fixture(name="folder", scope="module")
def make_folder():
    """60 photos in three clear clusters, the features of which are 16 numbers."""
    generator = np.random.default_rng(0)
    truth = np.arange(60) % 3
    features = torch.from_numpy(4 * np.eye(3, 16)[truth] + generator.normal(size=(60, 16))).float()
    images = []
    for number, label in enumerate(truth):
        digest, phash = generator.bytes(32).hex(), generator.bytes(32).hex()
        name = CLASSES[label]
        images.append(ImageRecord(f"{name}/{number}.jpg", name, digest, phash, group=digest[:16]))
    return images, features


def audit(images, features, **given: Any) -> Audit:
    settings: dict[str, Any] = {
        "folds": 3,
        "seed": 0,
        "neighbors": 3,
        "image_size": 224,
        "previews": [GOOD] * len(images),
    } | given
    return audit_images(images, CLASSES, features, **settings)


def test_audit_ranks_a_wrong_label_first_and_suggests_the_right_one(folder):
    images, features = folder
    wrong = [images[0]._replace(label="b"), *images[1:]]
    first = audit(wrong, features).likely("label")[0]
    assert (first.photo, first.suggested) == (0, 0)
    assert len(first.neighbors) == 3
    ranked = [finding.photo for finding in audit(wrong, features).findings if finding.kind == "label"]
    assert sorted(ranked) == [*range(60)]


def test_audit_does_not_ask_again_about_a_judged_photo(folder):
    images, features = folder
    wrong = [images[0]._replace(label="b"), *images[1:]]
    assert all(finding.photo for finding in audit(wrong, features, is_judged=[True] + [False] * 59).findings)


def test_audit_puts_identical_photos_with_two_labels_first_among_conflicts(folder):
    images, features = folder
    near = images[3]._replace(label="c", group=images[0].group)  # alike, but not identical
    copy = images[7]._replace(path="a/copy.jpg", label="a")
    photos = [*images[:3], near, *images[4:], copy]
    found = audit(photos, torch.cat([features, features[7:8]])).likely("conflict")
    assert [(finding.photo, finding.score) for finding in found[:2]] == [(7, 1.0), (60, 1.0)]
    assert {finding.photo for finding in found} == {0, 3, 7, 60}
    assert found[0].neighbors == (60,)


def test_audit_names_all_but_the_first_of_near_duplicates(folder):
    images, features = folder
    photos = [*images, images[4]._replace(path="b/copy.jpg")]
    found = audit(photos, torch.cat([features, features[4:5]])).likely("duplicate")
    assert [(finding.photo, finding.neighbors) for finding in found] == [(60, (4,))]


def test_audit_names_outliers_and_bad_photos(folder):
    images, features = folder
    moved = features.clone()
    moved[5] = -8 * torch.eye(16)[9]
    previews = [Preview(b"", 0.01, 30.0, 224), Preview(b"", 1.0, 0.5, 224), Preview(b"", 1.0, 30.0, 20), *[GOOD] * 57]
    found = audit(images, moved, previews=previews)
    kinds = {kind: [finding.photo for finding in found.likely(kind)] for kind in ("outlier", "dark", "blurred", "tiny")}
    assert kinds == {"outlier": [5], "dark": [0], "blurred": [1], "tiny": [2]}


def test_audit_refuses_a_class_with_fewer_photos_than_folds(folder):
    with pytest.raises(ValueError, match="has 20 usable"):
        audit(*folder, folds=21)


def test_nearest_neighbors_are_those_of_all_cosines():
    features = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    similarities, nearest = nearest_neighbors(features, 5, block=16)
    directions = torch.nn.functional.normalize(features - features.mean(0), dim=1)
    cosines = (directions @ directions.T).fill_diagonal_(-2)
    values, indices = cosines.topk(5, dim=1)
    torch.testing.assert_close(torch.from_numpy(similarities), values)
    assert torch.from_numpy(nearest).equal(indices)


def test_duplicate_groups_join_hashes_and_cosines():
    similarities = np.array([[0.5], [0.999], [0.999], [0.1], [0.2]], dtype=np.float32)
    nearest = np.array([[1], [2], [1], [0], [0]])
    assert duplicate_groups(["g", "h", "i", "j", "i"], similarities, nearest) == [[1, 2, 4]]


def test_class_overlap_counts_mistakes_both_ways():
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    probabilities = np.eye(3)[[0, 1, 0, 1, 2, 2]]
    assert class_overlap(labels, probabilities, CLASSES) == [("a", "b", 0.5)]


def test_preview_tells_light_from_dark_and_sharp_from_blurred():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    sharp, blurred = preview_image(noise), preview_image(noise.filter(ImageFilter.GaussianBlur(8)))
    assert sharp.sharpness > 5 * blurred.sharpness
    assert sharp.side == 300
    assert preview_image(Image.new("RGB", (64, 64), "black")).brightness == 0
    assert sharp.brightness > 0.7
