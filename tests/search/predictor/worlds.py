"""Small spaces of several kinds, and accuracies drawn from the predictor's own model."""

import functools

import numpy as np

from search.predictor.encoding import Encoding
from search.predictor.process import Settings
from supernet.layers import Conv, MBConv, Op, Projection, Skip
from supernet.network.documents import find_space
from supernet.presets import preset
from supernet.space import Architecture, Fixed, Layer, Space, stage
from supernet.tail import Tail
from tests.search.spaces import OPS, space_of
from tools.chance import Numbers
from tools.seeding import numpy_stream

BLOCKS: tuple[Op, ...] = (MBConv(3, 2), MBConv(5, 4))


@functools.cache
def mini() -> Space:
    """A space of a file: 189 networks in two stages."""
    return find_space("configs/demo/mini.toml", num_classes=10, image_size=32)


@functools.cache
def tiny() -> Space:
    return preset("tiny", num_classes=10, image_size=16)


NO_SKIP = space_of([OPS] * 4)
ONE_LAYER = space_of([OPS])
PLAIN = Space(  # nothing in its layers has an activation
    (Fixed(Conv(1), 4),),
    tuple(stage((Skip(), Projection()), depth=3, out_chs=4, stride=1, first=(Projection(),))),
    Tail(),
    name="plain",
    image_size=4,
)
MIXED = Space(
    (Fixed(Conv(3), 8),),
    (
        Layer((Projection(), *BLOCKS), 16, 2),
        Layer((Skip(), *BLOCKS), 16),
        Layer((*BLOCKS, Skip()), 16),
        Layer((Skip(), MBConv(3, 2, 0.25)), 16),
        Layer((Conv(1), Conv(3)), 24),
    ),
    Tail(conv_chs=32, hidden_chs=8),
    name="mixed",
    image_size=8,
)


@functools.cache
def networks(space: Space) -> list[Architecture]:
    """The canonical string of each network."""
    return list(dict.fromkeys(map(space.canonical, space.architectures())))


encoding_of = functools.cache(Encoding)


@functools.cache
def _roots(space: Space, settings: Settings) -> Numbers:
    """A square root of the model's covariance of all networks."""
    encoding = encoding_of(space)
    points = encoding.points(encoding.networks(networks(space)))
    values, vectors = np.linalg.eigh(encoding.pairs(points, points).kernel(settings))
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0)))


def drawn(space: Space, settings: Settings, seed: int, scale: float = 0.3) -> tuple[Numbers, Numbers]:
    """What the model says the accuracies of all networks may be, and those of one training of each."""
    rng = numpy_stream(seed, "drawn")
    roots = _roots(space, settings)
    own = roots @ rng.normal(size=len(roots))
    once = own + np.sqrt(settings.noise) * rng.normal(size=len(own))
    return 1 - np.exp(-2.5 - scale * own), 1 - np.exp(-2.5 - scale * once)
