import torch
from torch import Tensor

from flowers.models.network import Network


def test_images_become_logits_by_way_of_their_features():
    network = Network("resnet18", ["a", "b", "c"]).eval()
    images: Tensor = torch.randint(256, (4, 3, 48, 48), dtype=torch.uint8)
    logits = network(images)
    assert logits.shape == (4, 3)
    assert torch.equal(logits, network.logits(network.features(images)))


def test_the_digest_of_the_weights_tells_networks_apart():
    digests = set()
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        digests.add(Network("resnet18", ["a", "b"]).hparams["weights_digest"])
    assert len(digests) == 2
