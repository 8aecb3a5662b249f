import pytest
import torch
from torch import Tensor

from local_learning.ensemble import last_two, layerwise


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def test_last_two_multiplies_the_last_two_heads_probabilities() -> None:
    heads = list(noise(3, 4, 5))
    expected = heads[1].softmax(1) * heads[2].softmax(1)
    torch.testing.assert_close(last_two(heads).exp(), expected, rtol=1e-12, atol=0)


def test_of_one_head_the_last_two_are_that_head() -> None:
    head = noise(4, 5)
    assert torch.equal(last_two([head]), head.log_softmax(1))


@pytest.mark.parametrize("on", ["softmax", "logits"])
def test_layerwise_is_the_loop_over_blocks_groups_and_images(on: str) -> None:
    # Three blocks of one, three and two groups, so weights of 1/7, 2/7 and 4/7.
    outputs = [list(noise(groups, 4, 5)) for groups in (1, 3, 2)]
    expected = torch.zeros(4, 5, dtype=torch.float64)
    for weight, groups in zip((1 / 7, 2 / 7, 4 / 7), outputs, strict=True):
        for logits in groups:
            for image in range(4):
                votes = logits[image].exp() / logits[image].exp().sum() if on == "softmax" else logits[image]
                expected[image] += weight * votes / len(groups)
    torch.testing.assert_close(layerwise(outputs, on), expected, rtol=1e-12, atol=1e-14)


def test_layerwise_gives_probabilities_by_default() -> None:
    found = layerwise([list(noise(2, 4, 5)), [noise(4, 5)]])
    torch.testing.assert_close(found.sum(1), torch.ones(4, dtype=torch.float64), rtol=1e-12, atol=0)


def test_a_block_per_layer_of_a_deep_network_can_vote() -> None:
    assert torch.isfinite(layerwise([[noise(2, 3)]] * 600)).all()


def test_layerwise_refuses_an_unknown_way() -> None:
    with pytest.raises(ValueError, match="on: unknown value 'logit'; did you mean 'logits'"):
        layerwise([[noise(2, 3)]], "logit")


def test_half_precision_is_averaged_in_full() -> None:
    heads = [each.bfloat16() for each in noise(2, 4, 5)]
    wide = [each.float() for each in heads]
    assert torch.equal(last_two(heads), last_two(wide))
    assert torch.equal(layerwise([heads, heads[:1]]), layerwise([wide, wide[:1]]))
