"""A chain in blocks: what is shared, what each block is given, and what it minimises."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from local_learning.blocks import Block, DecoupledNet, decouple
from local_learning.catalogue import HEADS
from local_learning.chain import Chain
from local_learning.decoupling import Decoupling
from local_learning.heads import make_head
from local_learning.losses import CrossEntropy, InfoPro, PredSim
from local_learning.options import LocalLosses
from tests.local_learning.nets import CLASSES, SIZE, batch, equal_to, small_chain, small_net

NETWORKS = ["resnet18", "vgg6a", "timm/test_vit", "timm/test_convnext", "mlp"]


def size_of(name: str) -> int:
    return 64 if name.startswith("timm/") else SIZE


def every(cuts: tuple[int, ...], head: str = "linear", groups: int = 1) -> Decoupling:
    return Decoupling(cuts, (head,) * len(cuts), groups)


# ---- the trunk -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_a_net_in_blocks_is_the_chain(name: str) -> None:
    chain = small_chain(name)
    last = chain.num_layers
    images = batch(rows=2, size=size_of(name)).images
    for cuts in {(), (1,), (last,), tuple(range(1, last + 1))}:
        net = decouple(chain, every(cuts), CLASSES, size_of(name))
        assert [layer for block in net.blocks for layer in block.layers] == list(chain.layers)
        assert net.blocks[-1].head is chain.classifier
        assert len(net.blocks) == len(cuts) + 1
        for mode in (False, True):
            net.train(mode)
            assert torch.equal(net(images), chain(images))
            assert torch.equal(net.chain()(images), chain(images))


def test_a_cut_at_the_last_layer_leaves_the_classifier_alone() -> None:
    chain = small_chain()
    net = decouple(chain, every((4, 8)), CLASSES, SIZE)
    assert len(net.blocks[-1].layers) == 0
    parameters = {id(parameter) for parameter in net.blocks[-1].parameters()}
    assert parameters == {id(parameter) for parameter in chain.classifier.parameters()}
    losses = net.losses(*batch()[:2])
    loss = F.cross_entropy(chain(batch().images), batch().targets)
    assert torch.equal(losses[-1], loss)


@pytest.mark.parametrize("groups", [1, 2])
def test_decoupling_changes_neither_statistics_nor_modes(groups: int) -> None:
    chain = small_chain().train()
    chain.layers[1].eval()
    modes, before = [each.training for each in chain.modules()], copy.deepcopy(chain.state_dict())
    decouple(chain, every((2, 8), "predsim", groups), CLASSES, SIZE)
    assert [each.training for each in chain.modules()] == modes
    assert equal_to(list(chain.state_dict().values()), list(before.values()))
    assert all(parameter.grad is None for parameter in chain.parameters())


# ---- losses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [False, True])
def test_one_loss_per_block_and_the_last_is_the_networks(name: str, training: bool) -> None:
    chain = small_chain(name)
    cuts = (1,) if chain.num_layers == 1 else (1, chain.num_layers - 1)
    net = decouple(chain, every(cuts, "aux1"), CLASSES, size_of(name)).train(training)
    images, targets, *_ = batch(size=size_of(name))
    losses = net.losses(images, targets)
    assert [loss.shape for loss in losses] == [()] * len(net.blocks)
    assert torch.equal(losses[-1], F.cross_entropy(net(images), targets))
    inputs = images
    for block, expected in zip(net.blocks, losses, strict=True):
        loss, outputs = block.loss(inputs, targets, images)
        assert torch.equal(loss, expected)
        assert torch.equal(outputs, block(inputs))
        assert torch.equal(outputs, block.layers(inputs))
        logits = block.logits(outputs)
        assert [each.shape for each in logits] == [(6, CLASSES)]
        assert torch.equal(F.cross_entropy(logits[0], targets), expected)
        inputs = outputs.detach()


def test_all_logits_go_from_the_first_head_to_the_classifier() -> None:
    net = small_net(Decoupling((2, 5, 8), ("linear", "predsim", "infopro"), (1, 4, 2, 1))).eval()
    images = batch().images
    found = net.all_logits(images)
    assert [len(each) for each in found] == [1, 4, 2, 1]
    assert all(logits.shape == (6, CLASSES) for each in found for logits in each)
    assert torch.equal(found[-1][0], net(images))
    features = images
    for block, each in zip(net.blocks, found, strict=True):
        features = block.layers(features)
        assert equal_to(block.logits(features), each)
    net.drop_heads()
    assert [len(each) for each in net.all_logits(images)] == [1]


def test_the_last_loss_is_that_of_all_heads_with_cross_entropy() -> None:
    smooth = CrossEntropy(smoothing=0.1)
    cuts = Decoupling((1, 2, 3, 4), ("linear", "aux1", "predsim", "infopro"))
    net = decouple(small_chain(), cuts, CLASSES, SIZE, last_loss=smooth)
    first, second, predsim, infopro, last = (block.objective for block in net.blocks)
    assert first == second == last == smooth
    assert predsim == PredSim(0.99, CLASSES)  # which has none
    assert isinstance(infopro, InfoPro)
    assert infopro.smoothing == 0.1
    images, targets, *_ = batch()
    losses = net.losses(images, targets)
    for k in (0, 1, 4):
        logits = net.all_logits(images)[k][0]
        torch.testing.assert_close(losses[k], F.cross_entropy(logits, targets, label_smoothing=0.1))


# ---- heads ---------------------------------------------------------------------------------------------


def test_heads_take_the_chains_width() -> None:
    narrow = small_net(Decoupling((4, 8), ("aux2", "infopro")), width=0.25)
    wide = small_net(Decoupling((4,), ("aux2",)), width=0.5)
    assert expand(narrow.blocks[0]).out_channels == 512
    assert expand(wide.blocks[0]).out_channels == 1024
    decoder = [each for each in modules_of(narrow.blocks[1]) if isinstance(each, nn.Conv2d)]
    assert decoder[0].out_channels == 3  # 12 at width 1


def expand(block: Block) -> nn.Conv2d:
    return [each for each in modules_of(block) if isinstance(each, nn.Conv2d)][-1]


def modules_of(block: Block) -> list[nn.Module]:
    assert block.head is not None
    return list(block.head.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_heads_see_the_map_behind_their_cut(name: str) -> None:
    chain = small_chain(name).eval()
    cuts = tuple(range(1, chain.num_layers + 1))
    net = decouple(chain, every(cuts), CLASSES, size_of(name)).eval()
    seen: list[Tensor] = []
    for block in net.blocks[:-1]:
        assert block.head is not None
        block.head.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    images = batch(size=size_of(name)).images
    net.all_logits(images)
    features = images
    for layer, found in zip(chain.layers, seen, strict=True):
        features = layer(features)
        assert found.ndim == 4
        if features.ndim == 4:
            assert torch.equal(found, features)
        elif features.ndim == 3:  # without the class token
            assert torch.equal(found.flatten(2).transpose(1, 2), features[:, -(found.shape[2] ** 2) :])
        else:
            assert torch.equal(found[:, :, 0, 0], features)


def test_heads_have_the_precision_of_the_chain() -> None:
    chain = small_chain().to(torch.bfloat16)
    net = decouple(chain, every((4,), "predsim"), CLASSES, SIZE)
    assert {parameter.dtype for parameter in net.parameters()} == {torch.bfloat16}


def test_images_may_have_another_number_of_channels() -> None:
    chain = small_chain("mlp").double()
    flat = nn.Sequential(nn.Conv2d(1, 3, 1), *chain.layers).double()
    net = decouple(Chain([flat], chain.classifier), every((1,), "infopro"), CLASSES, SIZE, image_chs=1)
    images = batch().images[:, :1]
    outputs = net.blocks[0].read(net.blocks[0].layers(images))
    assert outputs.reconstruction.shape == images.shape
    assert all(loss.isfinite() for loss in net.losses(images, batch().targets))


class Own(nn.Module):
    """A user's head."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__()
        self.arguments, self.options = arguments, options
        self.fc = nn.Linear(int(str(arguments[1])), CLASSES)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.fc(features.amax(dim=(2, 3)))
        return logits


def test_a_users_own_head() -> None:
    chain = small_chain(width=0.25)
    cuts = Decoupling((3, 5), ("peak", "linear"))

    def make(kind: str, *arguments: Any, **options: Any) -> nn.Module:
        made = Own if kind == "peak" else make_head
        return made(kind, *arguments, **options)

    net = decouple(chain, cuts, CLASSES, SIZE, make=make)
    head = net.blocks[0].head
    assert isinstance(head, Own)
    assert head.arguments == ("peak", 32, 8, CLASSES)
    assert head.options == {"width": 0.25, "image_shape": (3, SIZE, SIZE)}
    images, targets, *_ = batch()
    features = net.blocks[0].layers(images)
    expected = F.cross_entropy(head.fc(features.amax(dim=(2, 3))), targets)
    assert torch.equal(net.losses(images, targets)[0], expected)


# ---- names and views -----------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2])
def test_names_are_those_of_the_chain_and_of_numbered_heads(groups: int) -> None:
    chain = small_chain()
    net = decouple(chain, Decoupling((4, 8), ("linear", "aux1"), groups), CLASSES, SIZE)
    view = net.with_names()
    state, own = view.state_dict(), {t.data_ptr() for t in net.state_dict().values()}
    heads = {key for key in state if key.startswith("heads.")}
    assert list(state)[: -len(heads)] == list(chain.state_dict())
    assert {key.split(".")[1] for key in heads} == {"1", "2"}
    for k in (1, 2):
        head = net.blocks[k - 1].head
        assert head is not None
        expected = {f"heads.{k}.{key}" for key in head.state_dict()}
        assert expected == {key for key in heads if key.startswith(f"heads.{k}.")}
    assert len(state) == len(net.state_dict())
    assert {tensor.data_ptr() for tensor in state.values()} == own
    view.load_state_dict({key: torch.zeros_like(tensor) for key, tensor in state.items()})
    assert not any(tensor.any() for tensor in net.state_dict().values())


def test_without_heads_the_names_are_the_chains() -> None:
    chain = small_chain()
    net = decouple(chain, every((4, 8)), CLASSES, SIZE)
    net.drop_heads()
    assert list(net.with_names().state_dict()) == list(chain.state_dict())
    assert [block.head for block in net.blocks] == [None, None, chain.classifier]


@pytest.mark.parametrize("groups", [1, 2])
def test_joined_it_is_one_block_with_the_same_layers(groups: int) -> None:
    net = decouple(small_chain(), every((4, 8), groups=groups), CLASSES, SIZE)
    whole = net.joined()
    assert whole.decoupling == Decoupling((), ())
    assert list(whole.blocks[0].layers) == [layer for block in net.blocks for layer in block.layers]
    images, targets, *_ = batch()
    (loss,) = whole.losses(images, targets)
    assert torch.equal(loss, F.cross_entropy(net(images), targets))
    assert len(net.blocks) == 3  # nothing is taken away
    gradients = torch.autograd.grad(loss, list(net.chain().parameters()))
    assert all(gradient is not None for gradient in gradients)


def test_width_goes_along() -> None:
    net = small_net(every((4,)), width=0.25)
    assert net.width == net.joined().width == net.chain().width == net.with_names().width == 0.25


# ---- what does not fit ---------------------------------------------------------------------------------


def test_a_cut_beyond_the_last_layer() -> None:
    with pytest.raises(ValueError, match=r"^cuts: there is no layer 9 to cut after; the network has 8$"):
        decouple(small_chain(), every((4, 9)), CLASSES, SIZE)


def test_a_head_that_there_is_not() -> None:
    with pytest.raises(ValueError, match=r"^head 'auxx2' is unknown; did you mean 'aux2'\? plugins "):
        decouple(small_chain(), Decoupling((2, 4), ("linear", "auxx2")), CLASSES, SIZE)


def test_a_map_that_no_head_can_sit_on() -> None:
    chain = Chain([nn.Conv2d(3, 4, (1, 3))], nn.Flatten())
    with pytest.raises(ValueError, match="a head cannot sit on features of shape"):
        decouple(chain, every((1,)), CLASSES, SIZE)


# ---- InfoPro -------------------------------------------------------------------------------------------


def infopro_net(kind: str = "infopro", cuts: tuple[int, ...] = (2, 4), **options: Any) -> DecoupledNet:
    return small_net(every(cuts, kind), options=LocalLosses(**options))


@pytest.mark.parametrize("kind", ["infopro", "infopro_contrast"])
def test_infopros_weights_are_linear_over_depth(kind: str) -> None:
    net = infopro_net(kind, (1, 2, 5), reconstruction=(2.0, 0.5), prediction=(1.0, 3.0))
    objectives: list[Any] = [block.objective for block in net.blocks[:-1]]
    assert [each.reconstruction for each in objectives] == [2.0, 1.25, 0.5]
    assert [each.prediction for each in objectives] == [1.0, 2.0, 3.0]
    (only,) = (block.objective for block in infopro_net(kind, (5,), reconstruction=(2.0, 0.5)).blocks[:-1])
    assert getattr(only, "reconstruction", None) == 2.0


def test_infopros_loss_is_that_of_the_image_with_pixels_in_0_to_1() -> None:
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    net = decouple(small_chain(), every((2, 4), "infopro"), CLASSES, SIZE, mean=mean, std=std)
    _, targets, *_ = batch()
    pixels = torch.rand(6, 3, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images = torch.stack([(pixels[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    inputs = images
    for block, loss in zip(net.blocks[:-1], net.losses(images, targets)[:-1], strict=True):
        outputs = block.read(block.layers(inputs))
        error = F.binary_cross_entropy(outputs.reconstruction.sigmoid(), pixels)
        expected = 5 * error + F.cross_entropy(outputs.logits, targets)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
        inputs = block.layers(inputs).detach()


@pytest.mark.parametrize(
    ("reconstruction", "prediction", "trained", "idle"),
    [(5.0, 0.0, "decoder", "classifier"), (0.0, 1.0, "classifier", "decoder")],
)
def test_reconstruction_and_cross_entropy_each_reach_their_trunk(
    reconstruction: float, prediction: float, trained: str, idle: str
) -> None:
    ends: dict[str, Any] = {"reconstruction": (reconstruction,) * 2, "prediction": (prediction,) * 2}
    net = infopro_net(**ends)
    for block, loss in zip(net.blocks[:-1], net.losses(*batch()[:2])[:-1], strict=True):
        torch.autograd.backward(loss)
        assert all(p.grad is not None and p.grad.any() for p in block.layers.parameters())
        assert block.head is not None
        head = dict(block.head.named_children())
        assert all(p.grad is not None and p.grad.any() for p in head[trained].parameters())
        assert not any(p.grad is not None and p.grad.any() for p in head[idle].parameters())
        for other in net.blocks:
            if other is not block:
                assert all(parameter.grad is None for parameter in other.parameters())
        net.zero_grad()


def test_the_probe_of_infopro_contrast_teaches_itself_only() -> None:
    net = infopro_net("infopro_contrast", reconstruction=(0.0, 0.0), prediction=(0.0, 0.0))
    block = net.blocks[0]
    torch.autograd.backward(net.losses(*batch()[:2])[0])
    assert block.head is not None
    for name, parameter in block.named_parameters():
        moved = parameter.grad is not None and bool(parameter.grad.any())
        assert moved == name.startswith("head.probe."), name


# ---- mixed precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS.ours)
@pytest.mark.parametrize("groups", [1, 2])
def test_losses_under_autocast_are_close_to_full_precision(head: str, groups: int) -> None:
    net = small_net(every((2, 4), head, groups)).float()
    images, targets, *_ = batch(rows=16)
    images = images.float()
    expected = net.losses(images, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = net.losses(images, targets)
    torch.autograd.backward(found)
    for loss, other in zip(found, expected, strict=True):
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, other, rtol=0.05, atol=0.02)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
