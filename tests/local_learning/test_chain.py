import torch
from torch import nn

from local_learning.chain import Chain


def test_a_chain_runs_its_layers_and_then_the_classifier() -> None:
    layers = [nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 5))]
    classifier = nn.Linear(5, 2)
    chain = Chain(layers, classifier, width=0.5)
    images = torch.randn(6, 3)
    assert torch.equal(chain(images), classifier(layers[1](layers[0](images))))
    assert chain.num_layers == len(chain.layers) == 2
    assert chain.width == 0.5
    assert {key.split(".")[0] for key in chain.state_dict()} == {"layers", "classifier"}
