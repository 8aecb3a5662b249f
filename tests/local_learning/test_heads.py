from collections.abc import Sequence
from typing import Any

import pytest
import torch
from timm.models._efficientnet_blocks import InvertedResidual
from torch import Tensor, nn

from local_learning.build import build_chain
from local_learning.heads import (
    InfoProContrastOutput,
    InfoProOutput,
    PredSimHead,
    PredSimOutput,
    make_head,
)
from local_learning.networks.expansion import Expansion
from local_learning.networks.relu_mean import ReluMean
from tests.local_learning.nets import OF_A_MAP
from tools.cost import count_macs, count_params

# Heads of ResNet-101 on ImageNet, on 1024 channels of 14 x 14: parameters, MACs in millions, and Table 1
# of SEDONA: FLOPs and parameters relative to the network, in percent.
TABLE_1 = [
    ("aux1", 2_842_856, "79.23", 1.02, 6.38),
    ("aux2", 3_380_968, "105.37", 1.35, 7.59),
    ("aux3", 4_312_552, "111.55", 1.43, 9.68),
    ("aux4", 5_512_936, "130.65", 1.68, 12.37),
    ("mlp_sr", 57_617_384, "104.76", 1.34, 129.33),
    ("predsim", 10_462_184, "1850.71", 23.63, 23.48),
]


@pytest.fixture(scope="module")
def resnet101() -> nn.Module:
    with torch.device("meta"):
        return build_chain("resnet101", num_classes=1000, image_size=224)


@pytest.mark.parametrize(("kind", "params", "megamacs", "flops_percent", "params_percent"), TABLE_1)
def test_table_1_of_sedona(
    resnet101: nn.Module, kind: str, params: int, megamacs: str, flops_percent: float, params_percent: float
) -> None:
    with torch.device("meta"):
        head = make_head(kind, 1024, 14, 1000)
    assert count_params(head) == params
    assert f"{count_macs(head, (1024, 14, 14)) / 1e6:.2f}" == megamacs

    network_flops = flops_of_table_1(resnet101, (3, 224, 224))
    assert f"{network_flops / 1e9:.3f}" == "7.832"
    head_flops = flops_of_table_1(head, (1024, 14, 14))
    assert 100 * head_flops / network_flops == pytest.approx(flops_percent, abs=0.005)
    assert 100 * params / count_params(resnet101) == pytest.approx(params_percent, abs=0.005)


def flops_of_table_1(module: nn.Module, input_shape: Sequence[int]) -> int:
    """MACs, and one for each element that goes through BatchNorm or ReLU."""
    elements = 0

    def add(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal elements
        elements += inputs[0].numel()

    counted = (nn.BatchNorm1d, nn.BatchNorm2d, nn.ReLU, ReluMean)
    hooks = [m.register_forward_hook(add) for m in module.modules() if isinstance(m, counted)]
    # Behind an expansion's BatchNorm there is a ReLU that is no module.
    hooks += [m.bn.register_forward_hook(add) for m in module.modules() if isinstance(m, Expansion)]
    macs = count_macs(module, input_shape)
    for hook in hooks:
        hook.remove()
    return macs + elements


def test_params_of_the_small_heads() -> None:
    chs, classes = 24, 10
    linear = chs * classes + classes
    decoder = 9 * chs * 12 + 2 * 12 + 9 * 12 * 3 + 3
    conv1c2f = 9 * chs * 48 + 2 * 48 + 48 * 128 + 128  # without its last layer
    params = {
        "linear": linear,
        "predsim": 8 * 8 * chs * classes + classes + 9 * chs * chs,
        "conv1c2f": conv1c2f + 128 * classes + classes,
        "infopro": decoder + conv1c2f + 128 * classes + classes,
        "infopro_contrast": decoder + conv1c2f + 128 * 128 + 128 + linear,
    }
    for kind, expected in params.items():
        assert count_params(make_head(kind, chs, 8, classes)) == expected, kind


@pytest.mark.parametrize("kind", OF_A_MAP)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 16])
@pytest.mark.parametrize("chs", [1, 13])
def test_every_head_trains_on_maps_of_any_size(kind: str, size: int, chs: int) -> None:
    torch.manual_seed(0)
    head = make_head(kind, chs, size, 7, width=0.1, image_shape=(1, 9, 12))
    features = torch.randn(2, chs, size, size, requires_grad=True)
    outputs = head(features)
    logits = outputs if isinstance(outputs, Tensor) else outputs.logits
    assert logits.shape == (2, 7)
    if isinstance(outputs, PredSimOutput):
        assert outputs.similarity.shape == features.shape
    if isinstance(outputs, InfoProOutput | InfoProContrastOutput):
        assert outputs.reconstruction.shape == (2, 1, 9, 12)
    if isinstance(outputs, InfoProContrastOutput):
        assert outputs.embedding.shape == (2, 13)
        lengths = outputs.embedding.norm(dim=1)
        assert ((lengths - 1).abs() < 1e-5).logical_or(lengths == 0).all()
    torch.autograd.backward(mixed(outputs))
    for parameter in (features, *head.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("kind", OF_A_MAP)
def test_every_parameter_learns(kind: str) -> None:
    torch.manual_seed(0)
    head = make_head(kind, 16, 8, 10).double()
    torch.autograd.backward(mixed(head(torch.randn(4, 16, 8, 8, dtype=torch.float64))))
    gradients = {name: parameter.grad for name, parameter in head.named_parameters()}
    assert [name for name, grad in gradients.items() if grad is None or grad.count_nonzero() == 0] == []


def mixed(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Some loss that hangs on every output."""
    parts = (outputs,) if isinstance(outputs, Tensor) else outputs
    return torch.stack([(torch.randn_like(part) * part).sum() for part in parts]).sum()


def test_the_probe_leaves_the_features_alone() -> None:
    torch.manual_seed(0)
    head = make_head("infopro_contrast", 16, 8, 10)
    features = torch.randn(4, 16, 8, 8, requires_grad=True)
    outputs = head(features)
    assert isinstance(outputs, InfoProContrastOutput)

    def gradient(output: Tensor) -> Tensor | None:
        (grad,) = torch.autograd.grad(mixed(output), features, retain_graph=True, allow_unused=True)
        return grad

    assert gradient(outputs.logits) is None
    for output in (outputs.embedding, outputs.reconstruction):
        grad = gradient(output)
        assert grad is not None
        assert grad.count_nonzero() > 0
    probe = [p for name, p in head.named_parameters() if name.startswith("probe.")]
    assert len(probe) == 2
    assert all(grad.count_nonzero() > 0 for grad in torch.autograd.grad(mixed(outputs.logits), probe))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (2, [(16, 16, 1), (16, 16, 1), (16, 16, 1)]),
        (3, [(16, 16, 1), (16, 16, 1), (16, 16, 1)]),
        (4, [(16, 16, 1), (16, 24, 2), (24, 24, 1)]),
    ],
)
def test_small_maps_are_strided_once(size: int, expected: list[tuple[int, int, int]]) -> None:
    for depth in range(1, 5):
        head = make_head(f"aux{depth}", 64, size, 10)
        residuals = [m for m in head.modules() if isinstance(m, InvertedResidual)]
        shapes = [(m.conv_pw.in_channels, m.conv_pwl.out_channels, m.conv_dw.stride[0]) for m in residuals]
        assert shapes == expected[: depth - 1]
        assert [m.has_skip for m in residuals] == [s == 1 and i == o for i, o, s in shapes]


def test_width_scales_the_fixed_channels() -> None:
    def convs_and_fcs(kind: str, in_chs: int, width: float) -> list[int]:
        head = make_head(kind, in_chs, 8, 10, width=width)
        modules = [m for m in head.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        return [m.weight.shape[0] for m in modules]

    assert convs_and_fcs("aux1", 64, 0.25) == [16, 16, 512, 10]
    assert convs_and_fcs("conv1c2f", 64, 0.25) == [128, 32, 10]
    assert convs_and_fcs("infopro", 64, 1.0) == [12, 3, 64, 128, 10]
    assert convs_and_fcs("infopro", 63, 1.0) == [12, 3, 126, 128, 10]
    assert convs_and_fcs("infopro", 16, 0.25) == [3, 3, 16, 32, 10]
    assert convs_and_fcs("infopro_contrast", 64, 0.5) == [6, 3, 64, 64, 64, 10]
    assert convs_and_fcs("mlp_sr", 8, 0.001) == [8, 8, 8, 32, 32, 32, 10]
    assert convs_and_fcs("aux1", 2, 0.0001) == [1, 1, 1, 10]

    def pooled_size(in_chs: int, size: int, width: float) -> Any:
        head = make_head("predsim", in_chs, size, 10, width=width)
        assert isinstance(head, PredSimHead)
        pool = head.predict.get_submodule("pool")
        assert isinstance(pool, nn.AdaptiveAvgPool2d)
        return pool.output_size

    assert pooled_size(16, 32, 1.0) == 11
    assert pooled_size(16, 32, 0.25) == 5
    assert pooled_size(16, 4, 1.0) == 4
    assert pooled_size(4096, 4, 1.0) == 1


STATE_NAMES = {
    "linear": "fc.weight fc.bias",
    "predsim": "predict.fc.weight predict.fc.bias similarity.weight",
    "conv1c2f": """
    conv.conv.weight conv.bn.weight conv.bn.bias hidden.weight hidden.bias fc.weight fc.bias
    """,
    "infopro": """
    decoder.hidden.conv.weight decoder.hidden.bn.weight decoder.hidden.bn.bias decoder.conv.weight
    decoder.conv.bias classifier.conv.conv.weight classifier.conv.bn.weight classifier.conv.bn.bias
    classifier.hidden.weight classifier.hidden.bias classifier.fc.weight classifier.fc.bias
    """,
    "infopro_contrast": """
    decoder.hidden.conv.weight decoder.hidden.bn.weight decoder.hidden.bn.bias decoder.conv.weight
    decoder.conv.bias projection.conv.conv.weight projection.conv.bn.weight projection.conv.bn.bias
    projection.hidden.weight projection.hidden.bias projection.fc.weight projection.fc.bias
    probe.fc.weight probe.fc.bias
    """,
    "aux2": """
    reduce.conv.weight reduce.bn.weight reduce.bn.bias depthwise.conv.weight depthwise.bn.weight
    depthwise.bn.bias residual1.conv_pw.weight residual1.bn1.weight residual1.bn1.bias
    residual1.conv_dw.weight residual1.bn2.weight residual1.bn2.bias residual1.conv_pwl.weight
    residual1.bn3.weight residual1.bn3.bias expand.conv.weight expand.bn.weight expand.bn.bias
    fc.weight fc.bias
    """,
}


@pytest.mark.parametrize(("kind", "names"), STATE_NAMES.items())
def test_parameter_names_are_what_files_hold(kind: str, names: str) -> None:
    head = make_head(kind, 16, 8, 10)
    assert [name for name, _ in head.named_parameters()] == names.split()


def test_parameter_names_of_the_mlp_head() -> None:
    names = [name for name, _ in make_head("mlp_sr", 4, 8, 10).named_parameters()]
    convs = [f"conv{i}.{name}" for i in (1, 2, 3) for name in ("conv.weight", "bn.weight", "bn.bias")]
    ends = ("fc.weight", "fc.bias", "bn.weight", "bn.bias")
    fcs = [f"fc{i}.{name}" for i in (1, 2, 3) for name in ends]
    assert names == [*convs, *fcs, "fc.weight", "fc.bias"]


@pytest.mark.parametrize("kind", OF_A_MAP)
def test_initial_weights_follow_the_callers_seed(kind: str) -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(make_head(kind, 16, 8, 10).state_dict())
    same = [all(torch.equal(states[0][k], other[k]) for k in other) for other in states[1:]]
    assert same == [True, False]

    for module in make_head(kind, 64, 8, 100).modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            gain = module.weight.std() * module.weight[0].numel() ** 0.5
            assert gain.item() == pytest.approx(2**0.5, rel=0.2)
            assert module.bias is None or module.bias.count_nonzero() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("aux5", 16, 8, 10),
            "^head 'aux5' is unknown; did you mean 'aux4'\\? plugins ",
        ),
        (
            ("qqqq", 16, 8, 10),
            "^head 'qqqq' is unknown; known: aux1, .*, linear4, aug1, aug2, aug3; plugins ",
        ),
        (("linear", 0, 8, 10), "in_chs is 0; it must be at least 1"),
        (("linear", 16, 0, 10), "in_size is 0; it must be at least 1"),
        (("linear", 16, 8, 0), "num_classes is 0; it must be at least 1"),
    ],
)
def test_mistakes_are_named(arguments: tuple[str, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_head(*arguments)
