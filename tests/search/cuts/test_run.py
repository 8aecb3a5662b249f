import torch
from accelerate import Accelerator

from search.cuts.config import DecouplingSearchConfig
from search.cuts.networks import own_loaders
from tools.images.datasets import load_data
from tools.images.loaders import eval_batches
from tools.images.options import DataConfig


def test_validation_images_are_not_augmented_in_any_way() -> None:
    data_config = DataConfig(image_size=16, train_size=100, validation=0.4, rotate=30, cutout=8)
    config = DecouplingSearchConfig(data=data_config)
    data = load_data(data_config, 0)
    _, validation = own_loaders(config, data, Accelerator(cpu=True))
    (plain,) = eval_batches(data.validation, data, data_config, batch_size=100, device="cpu")
    found = validation.batch(0)
    assert len(found.images) == 40
    assert torch.equal(found.images, plain.images[found.indices])
    assert torch.equal(found.targets, plain.targets[found.indices])
