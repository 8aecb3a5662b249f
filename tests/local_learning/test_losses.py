import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from local_learning.losses import (
    CrossEntropy,
    Grouped,
    InfoPro,
    InfoProContrast,
    PredSim,
    cross_entropy,
    diversity,
    interpolate,
    logits_of,
    similarity_matching,
    similarity_matrix,
    supervised_contrast,
)

ROWS, CLASSES = 6, 5
TARGETS = torch.tensor([0, 3, 3, 1, 0, 3])  # class 1 once: an anchor without positives
NO_IMAGES = torch.empty(0)


class Outputs(NamedTuple):
    """What any of the heads may return."""

    logits: Tensor
    similarity: Tensor = NO_IMAGES
    reconstruction: Tensor = NO_IMAGES
    embedding: Tensor = NO_IMAGES


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def leaves(count: int, *shape: int) -> list[Tensor]:
    return [noise(*shape, seed=seed).requires_grad_() for seed in range(count)]


def soft_targets() -> Tensor:
    return noise(ROWS, CLASSES, seed=9).softmax(1)


def close(found: Tensor, expected: Tensor | float) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12)


def gradient(loss: Tensor, *leaves: Tensor) -> Tensor:
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss, leaves, retain_graph=True)])


# Cross-entropy


@pytest.mark.parametrize("over", ["all", "others"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothing_is_cross_entropy_with_the_written_out_target(over: str, smoothing: float) -> None:
    logits = noise(ROWS, CLASSES)
    wrong = smoothing / CLASSES if over == "all" else smoothing / (CLASSES - 1)
    true = 1 - smoothing + wrong if over == "all" else 1 - smoothing
    expected = 0.0
    for row, label in zip(logits.tolist(), TARGETS.tolist(), strict=True):
        total = math.log(sum(math.exp(z) for z in row))
        for index, z in enumerate(row):
            expected -= (true if index == label else wrong) * (z - total) / ROWS
    close(cross_entropy(logits, TARGETS, smoothing=smoothing, over=over), expected)


@pytest.mark.parametrize("over", ["all", "others"])
def test_smoothing_of_a_mixture_is_the_mixture_of_the_smoothed(over: str) -> None:
    logits, soft = noise(ROWS, CLASSES), soft_targets()
    expected = 0.0
    for row in range(ROWS):
        for label in range(CLASSES):
            one = cross_entropy(logits[row : row + 1], torch.tensor([label]), smoothing=0.1, over=over)
            expected += float(soft[row, label] * one) / ROWS
    close(cross_entropy(logits, soft, smoothing=0.1, over=over), expected)


def test_the_objective_takes_its_smoothing_along() -> None:
    logits = noise(ROWS, CLASSES)
    expected = cross_entropy(logits, TARGETS, smoothing=0.2, over="others")
    assert torch.equal(CrossEntropy(0.2, "others")(logits, TARGETS, NO_IMAGES), expected)
    assert torch.equal(CrossEntropy()(logits, TARGETS, NO_IMAGES), F.cross_entropy(logits, TARGETS))


# Similarity matching


def similarity_by_loop(rows: list[list[float]]) -> list[list[float]]:
    unit = []
    for row in rows:
        mean = sum(row) / len(row)
        norm = math.sqrt(sum((x - mean) ** 2 for x in row)) + 1e-8
        unit.append([(x - mean) / norm for x in row])
    return [[max(-1.0, min(1.0, sum(x * y for x, y in zip(a, b, strict=True)))) for b in unit] for a in unit]


def spread_by_loop(pixels: list[float]) -> float:
    mean = sum(pixels) / len(pixels)
    return math.sqrt(sum((x - mean) ** 2 for x in pixels) / (len(pixels) - 1))


def test_a_maps_similarities_are_those_of_its_channels_spreads() -> None:
    maps = noise(ROWS, 4, 3, 2)
    spreads = [[spread_by_loop(channel.flatten().tolist()) for channel in sample] for sample in maps]
    close(similarity_matrix(maps), torch.tensor(similarity_by_loop(spreads), dtype=torch.float64))


@pytest.mark.parametrize("shape", [(3, 4, 4), (8, 1, 1), (8, 1, 3), (7,)], ids=str)
def test_few_channels_one_row_and_vectors_are_compared_as_they_are(shape: tuple[int, ...]) -> None:
    features = noise(ROWS, *shape)
    expected = similarity_by_loop(features.flatten(1).tolist())
    close(similarity_matrix(features), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("soft", [False, True])
def test_similarity_matching_is_the_mean_over_all_pairs(soft: bool) -> None:
    features, targets = noise(ROWS, 7), soft_targets() if soft else TARGETS
    labels = targets.tolist() if soft else [[float(c == t) for c in range(CLASSES)] for t in TARGETS.tolist()]
    found, wanted = similarity_by_loop(features.tolist()), similarity_by_loop(labels)
    pairs = [(i, j) for i in range(ROWS) for j in range(ROWS)]
    expected = sum((found[i][j] - wanted[i][j]) ** 2 for i, j in pairs) / len(pairs)
    close(similarity_matching(features, targets, CLASSES), expected)


@pytest.mark.parametrize("shape", [(6, 3, 3), (6,)], ids=str)
def test_constant_features_have_a_finite_gradient(shape: tuple[int, ...]) -> None:
    features = noise(ROWS, *shape)
    features[1] = 0.0
    features[2] = 0.1
    features.requires_grad_()
    loss = similarity_matching(features, TARGETS, CLASSES)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient(loss, features)).all()


def test_similarity_matchings_gradient_is_that_of_finite_differences() -> None:
    (features,) = leaves(1, 3, 5, 2, 2)
    assert torch.autograd.gradcheck(lambda x: similarity_matching(x, TARGETS[:3], CLASSES), (features,))


@pytest.mark.parametrize("soft", [False, True])
def test_predsim_divides_itself_between_its_two_losses(soft: bool) -> None:
    outputs = Outputs(noise(ROWS, CLASSES), similarity=noise(ROWS, 4, 3, 3, seed=1))
    targets = soft_targets() if soft else TARGETS
    matching = similarity_matching(outputs.similarity, targets, CLASSES)
    expected = 0.25 * F.cross_entropy(outputs.logits, targets) + 0.75 * matching
    close(PredSim(0.75, CLASSES)(outputs, targets, NO_IMAGES), expected)


# Supervised contrast


def contrast_by_loop(embeddings: Tensor, targets: Tensor, temperature: float) -> Tensor:
    terms = []
    for anchor, own in enumerate(embeddings):
        others = [index for index in range(len(embeddings)) if index != anchor]
        total = sum((own @ embeddings[index] / temperature).exp() for index in others)
        positives = [index for index in others if targets[index] == targets[anchor]]
        if positives:
            logs = [((own @ embeddings[p] / temperature).exp() / total).log() for p in positives]
            terms.append(-torch.stack(logs).mean())
    return torch.stack(terms).mean()


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_supervised_contrast_is_the_loop_over_anchors_and_positives(temperature: float) -> None:
    (raw,) = leaves(1, ROWS, 4)
    embeddings = F.normalize(raw)
    found = supervised_contrast(embeddings, TARGETS, temperature)
    expected = contrast_by_loop(embeddings, TARGETS, temperature)
    close(found, expected)
    close(gradient(found, raw), gradient(expected, raw))


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_batch_without_positives_gives_zero_and_a_zero_gradient(rows: int) -> None:
    (raw,) = leaves(1, rows, 4)
    loss = supervised_contrast(F.normalize(raw), torch.arange(rows), 0.07)
    assert loss == 0
    assert torch.equal(gradient(loss, raw), torch.zeros(4 * rows, dtype=torch.float64))


def test_supervised_contrast_stays_finite_at_a_tiny_temperature() -> None:
    raw = noise(ROWS, 4).float().requires_grad_()
    loss = supervised_contrast(F.normalize(raw), TARGETS, 1e-4)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient(loss, raw)).all()


# Diversity


def diversity_by_loop(logits: list[Tensor], *, stop_gradient: bool) -> Tensor:
    """Eq. 1 of GN-DGL as it is written, over all ordered pairs of groups."""
    keep = torch.ones(ROWS, CLASSES, dtype=torch.float64)
    for row, label in enumerate(TARGETS.tolist()):
        keep[row, label] = 0
    masked = [(z / 3).softmax(1) * keep for z in logits]
    p = [each / each.abs().sum(1, keepdim=True) for each in masked]
    terms = []
    for a in range(len(p)):
        for b in range(len(p)):
            if a != b:
                other = p[b].detach() if stop_gradient else p[b]
                terms += [F.cosine_similarity(p[a][row], other[row], dim=0) for row in range(ROWS)]
    return torch.stack(terms).mean()


@pytest.mark.parametrize("groups", [2, 3, 6])
@pytest.mark.parametrize("stop_gradient", [True, False])
def test_diversity_and_its_gradient_are_the_loop_over_pairs(groups: int, stop_gradient: bool) -> None:
    logits = leaves(groups, ROWS, CLASSES)
    found = diversity(logits, TARGETS, stop_gradient=stop_gradient)
    expected = diversity_by_loop(logits, stop_gradient=stop_gradient)
    close(found, expected)
    close(gradient(found, *logits), gradient(expected, *logits))


def test_the_released_gradient_is_twice_the_papers() -> None:
    logits = leaves(3, ROWS, CLASSES)
    stopped, released = (diversity(logits, TARGETS, stop_gradient=stop) for stop in (True, False))
    assert stopped == released
    twice = 2 * gradient(stopped, *logits)
    torch.testing.assert_close(gradient(released, *logits), twice, rtol=1e-12, atol=1e-15)
    assert twice.abs().max() > 1e-4


def test_a_temperature_is_a_factor_on_the_logits() -> None:
    logits = leaves(2, ROWS, CLASSES)
    close(diversity(logits, TARGETS, temperature=1.5), diversity([2 * z for z in logits], TARGETS))


def test_one_group_has_no_diversity_but_a_graph() -> None:
    logits = leaves(1, ROWS, CLASSES)
    for stop_gradient in (True, False):
        loss = diversity(logits, TARGETS, stop_gradient=stop_gradient)
        assert loss == 0
        assert not gradient(loss, *logits).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_saturated_logits_have_a_finite_diversity(dtype: torch.dtype, size: float) -> None:
    one = noise(ROWS, CLASSES).to(dtype)
    one[torch.arange(ROWS), TARGETS] = size
    two = 1e4 * noise(ROWS, CLASSES, seed=1).to(dtype)
    logits = [one.requires_grad_(), two.requires_grad_()]
    loss = diversity(logits, TARGETS)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient(loss, *logits)).all()
    # The true class has no say, however sure a group is of it.
    unsure = one.detach().clone()
    unsure[torch.arange(ROWS), TARGETS] = 0
    assert loss == diversity([unsure, two], TARGETS)


def test_groups_add_up_their_losses_and_the_weighted_diversity() -> None:
    logits = leaves(3, ROWS, CLASSES)
    own = [F.cross_entropy(z, TARGETS, label_smoothing=0.1) for z in logits]
    expected = own[0] + own[1] + own[2] + 0.5 * diversity_by_loop(logits, stop_gradient=True)
    found = Grouped(CrossEntropy(0.1), 0.5)(tuple(logits), TARGETS, NO_IMAGES)
    close(found, expected)
    close(gradient(found, *logits), gradient(expected, *logits))
    released = own[0] + own[1] + own[2] + 0.5 * diversity_by_loop(logits, stop_gradient=False)
    found = Grouped(CrossEntropy(0.1), 0.5, False)(tuple(logits), TARGETS, NO_IMAGES)
    close(gradient(found, *logits), gradient(released, *logits))


def test_groups_of_richer_heads_are_told_apart_by_their_logits() -> None:
    outputs = [Outputs(noise(ROWS, CLASSES, seed=seed), noise(ROWS, 4, 3, 3, seed=seed)) for seed in range(2)]
    each = PredSim(0.9, CLASSES)
    own = sum(each(one, TARGETS, NO_IMAGES) for one in outputs)
    expected = own + 0.5 * diversity([one.logits for one in outputs], TARGETS)
    close(Grouped(each, 0.5)(outputs, TARGETS, NO_IMAGES), expected)
    assert logits_of(outputs[0]) is outputs[0].logits


def test_groups_without_diversity_take_probabilities() -> None:
    logits, soft = leaves(2, ROWS, CLASSES), soft_targets()
    expected = F.cross_entropy(logits[0], soft) + F.cross_entropy(logits[1], soft)
    close(Grouped(CrossEntropy(), 0.0)(logits, soft, NO_IMAGES), expected)


@pytest.mark.parametrize(
    "loss",
    [
        lambda soft: diversity(leaves(2, ROWS, CLASSES), soft),
        lambda soft: supervised_contrast(F.normalize(noise(ROWS, 4)), soft, 0.07),
        lambda soft: Grouped(CrossEntropy(), 0.5)(leaves(2, ROWS, CLASSES), soft, NO_IMAGES),
    ],
)
def test_losses_between_images_or_groups_refuse_probabilities(loss: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match="needs one class for each image"):
        loss(soft_targets())


# InfoPro

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def infopro_case() -> tuple[Outputs, Tensor, Tensor]:
    """Outputs, normalised images, and the images with pixels in [0, 1], some of them at the ends."""
    source = torch.Generator().manual_seed(2)
    pixels = (1.5 * torch.rand(ROWS, 3, 4, 4, dtype=torch.float64, generator=source) - 0.25).clamp(0, 1)
    images = torch.stack([(pixels[:, c] - MEAN[c]) / STD[c] for c in range(3)], dim=1)
    outputs = Outputs(
        noise(ROWS, CLASSES).requires_grad_(),
        reconstruction=noise(ROWS, 3, 4, 4, seed=3).requires_grad_(),
        embedding=F.normalize(noise(ROWS, 4, seed=4)).requires_grad_(),
    )
    return outputs, images, pixels


@pytest.mark.parametrize("soft", [False, True])
def test_infopro_weighs_the_reconstruction_and_the_prediction(soft: bool) -> None:
    outputs, images, pixels = infopro_case()
    targets = soft_targets() if soft else TARGETS
    error = F.binary_cross_entropy(outputs.reconstruction.sigmoid(), pixels)
    expected = 5 * error + 0.75 * F.cross_entropy(outputs.logits, targets, label_smoothing=0.1)
    found = InfoPro(5, 0.75, MEAN, STD, 0.1)(outputs, targets, images)
    close(found, expected)
    reached = (outputs.logits, outputs.reconstruction)
    close(gradient(found, *reached), gradient(expected, *reached))


def test_infopro_reconstructs_nothing_outside_the_image() -> None:
    outputs, images, pixels = infopro_case()
    shown = InfoPro(1, 1, MEAN, STD)(outputs, TARGETS, images)
    beyond = torch.where((pixels == 0) | (pixels == 1), 3 * images, images)
    assert (beyond != images).any()
    close(InfoPro(1, 1, MEAN, STD)(outputs, TARGETS, beyond), shown)


def test_one_mean_serves_all_channels() -> None:
    outputs, images, _ = infopro_case()
    expected = InfoPro(1, 1, (0.4,) * 3, (0.2,) * 3)(outputs, TARGETS, images)
    assert torch.equal(InfoPro(1, 1, (0.4,), (0.2,))(outputs, TARGETS, images), expected)


def test_infopro_contrast_adds_the_probe_unweighted() -> None:
    outputs, images, pixels = infopro_case()
    error = F.binary_cross_entropy(outputs.reconstruction.sigmoid(), pixels)
    contrast = contrast_by_loop(outputs.embedding, TARGETS, 0.1)
    expected = 5 * error + 0.75 * contrast + F.cross_entropy(outputs.logits, TARGETS)
    found = InfoProContrast(5, 0.75, MEAN, STD, 0.1)(outputs, TARGETS, images)
    close(found, expected)
    reached = (outputs.logits, outputs.reconstruction, outputs.embedding)
    close(gradient(found, *reached), gradient(expected, *reached))


def test_a_saturated_decoder_has_a_finite_error() -> None:
    outputs, images, _ = infopro_case()
    sure = (1e4 * outputs.reconstruction.detach()).requires_grad_()
    loss = InfoPro(5, 1, MEAN, STD)(outputs._replace(reconstruction=sure), TARGETS, images)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient(loss, sure)).all()


def test_weights_are_linear_in_depth_and_exact_at_the_ends() -> None:
    assert [interpolate((5.0, 0.7), index, 3) for index in range(3)] == pytest.approx([5.0, 2.85, 0.7])
    assert interpolate((5.0, 0.7), 0, 3) == 5.0
    assert interpolate((5.0, 0.7), 2, 3) == 0.7
    assert interpolate((5.0, 0.7), 0, 1) == 5.0


# Precision


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize(
    "objective",
    [
        CrossEntropy(0.1),
        PredSim(0.9, CLASSES),
        InfoPro(5, 0.75, MEAN, STD, 0.1, "others"),
        InfoProContrast(5, 0.75, MEAN, STD),
        Grouped(CrossEntropy(), 0.5),
        Grouped(PredSim(0.9, CLASSES), 0.5, False),
    ],
    ids=repr,
)
def test_halves_give_the_loss_of_the_same_numbers_in_full(
    objective: Callable[[object, Tensor, Tensor], Tensor], autocast: bool
) -> None:
    outputs, images, _ = infopro_case()
    outputs = outputs._replace(similarity=noise(ROWS, 4, 3, 3, seed=5))
    losses, slopes = [], []
    for wide in (False, True):
        half = [each.detach().bfloat16() for each in outputs]
        given = [each.double() if wide else each for each in half]
        rich = Outputs(*(each.requires_grad_() for each in given))
        plain: object = rich.logits if isinstance(objective, CrossEntropy) else rich
        if isinstance(objective, Grouped):
            own = [rich.logits, rich.logits.flip(1)]
            simple = isinstance(objective.each, CrossEntropy)
            plain = own if simple else [rich._replace(logits=z) for z in own]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast and not wide):
            loss = objective(plain, TARGETS, images if wide else images.float())
        losses.append(loss)
        slopes.append(gradient(loss, rich.logits).double())
    assert losses[0].dtype == torch.float32
    torch.testing.assert_close(losses[0].double(), losses[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=2e-2, atol=1e-3)
