import pytest
import torch

from local_learning.build import build_chain
from local_learning.features import LAYOUTS, as_map, layout_of, map_shape
from local_learning.heads import make_head


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((2, 6, 4, 4), "nchw", (6, 4)),
        ((2, 4, 4, 4), "nchw", (4, 4)),
        ((2, 64, 1, 1), "nchw", (64, 1)),
        ((2, 4, 4, 6), "nhwc", (6, 4)),
        ((2, 9, 5), "tokens", (5, 3)),
        ((2, 10, 5), "tokens", (5, 3)),
        ((2, 6, 5), "tokens", (5, 2)),
        ((2, 1, 5), "tokens", (5, 1)),
        ((2, 5), "flat", (5, 1)),
    ],
)
def test_every_layout_becomes_a_map(shape: tuple[int, ...], layout: str, expected: tuple[int, int]) -> None:
    assert layout_of(shape) == layout
    assert map_shape(shape) == expected
    channels, size = expected
    assert as_map(torch.zeros(shape), layout).shape == (2, channels, size, size)


def test_the_numbers_stay_in_their_places() -> None:
    images = torch.randn(2, 5, 3, 3)
    assert as_map(images, "nchw") is images
    assert torch.equal(as_map(images.permute(0, 2, 3, 1), "nhwc"), images)
    tokens = images.flatten(2).transpose(1, 2)
    for prefix in range(4):
        with_prefix = torch.cat([torch.randn(2, prefix, 5), tokens], dim=1)
        assert torch.equal(as_map(with_prefix, "tokens"), images)
    flat = torch.randn(2, 5)
    assert torch.equal(as_map(flat, "flat").flatten(1), flat)


@pytest.mark.parametrize(
    "shape", [(2, 6, 4, 5), (2, 4, 5, 4), (2,), (2, 3, 4, 4, 4), (2, 0, 5), (2, 3, 0, 0)]
)
def test_what_is_no_square_map_is_refused(shape: tuple[int, ...]) -> None:
    for function in (layout_of, map_shape):
        with pytest.raises(ValueError, match="a head cannot sit on features of shape ") as caught:
            function(shape)
        assert str(shape) in str(caught.value)


def test_an_unknown_layout_is_refused() -> None:
    with pytest.raises(ValueError, match="layout is 'chwn'; it must be one of nchw, nhwc, tokens, flat"):
        as_map(torch.zeros(2, 3, 4, 4), "chwn")
    assert len(LAYOUTS) == 4


@pytest.mark.parametrize(
    ("name", "image_size", "layouts", "sizes"),
    [
        ("timm/vit_tiny_patch16_224", 32, {"tokens"}, {2}),
        ("timm/deit_tiny_distilled_patch16_224", 48, {"tokens"}, {3}),
        ("timm/convnext_atto", 64, {"nchw"}, {16, 8, 4, 2}),
        ("timm/swin_tiny_patch4_window7_224", 224, {"nhwc"}, {56, 28, 14, 7}),
        ("vgg6a", 32, {"nchw", "flat"}, {32, 16, 8, 4, 1}),
    ],
)
def test_heads_sit_on_every_layer(name: str, image_size: int, layouts: set[str], sizes: set[int]) -> None:
    torch.manual_seed(0)
    chain = build_chain(name, num_classes=10, image_size=image_size)
    features = torch.randn(2, 3, image_size, image_size)
    seen: set[tuple[str, int]] = set()
    for layer in chain.layers:
        with torch.no_grad():
            features = layer(features)
        layout = layout_of(features.shape)
        in_chs, in_size = map_shape(features.shape)
        leaf = features.clone().requires_grad_()
        for kind in ("linear", "aux2"):
            head = make_head(kind, in_chs, in_size, 10)
            logits = head(as_map(leaf, layout))
            assert logits.shape == (2, 10)
            logits.square().sum().backward()
        assert leaf.grad is not None
        assert leaf.grad.count_nonzero() > 0
        seen.add((layout, in_size))
    assert {layout for layout, _ in seen} == layouts
    assert {size for _, size in seen} == sizes
