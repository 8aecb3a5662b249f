"""Units by candidates against units of whole networks."""

import pytest

from supernet.additive import units
from supernet.presets import preset
from supernet.space import Architecture
from supernet.supernet import Supernet
from tools.cost import count_units


@pytest.mark.parametrize("name", ["tiny", "nas_bench_macro"])
def test_the_units_of_a_network_are_those_of_its_parts(name: str) -> None:
    space = preset(name, num_classes=10, image_size=16)
    cost, net = units(space), Supernet(space)
    for choices in ([0] * len(space.layers), [len(layer) - 1 for layer in space.layers]):
        network = Architecture(tuple(choices))
        assert cost.of(network) == count_units(net.extract(network), (3, 16, 16))
