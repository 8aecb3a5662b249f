"""Local losses are what blocks minimise, computed from what their heads make of the features.

Targets are class numbers (B,) or, unless stated otherwise, probabilities (B, n). Losses are means over the
batch. They are computed in float32 at least, whatever precision the network runs in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from local_learning.catalogue import HEADS, LOSSES
from local_learning.options import LocalLosses
from tools.options.catalogue import by_name
from tools.options.plugins import takes

register_loss = LOSSES.register


def cross_entropy(logits: Tensor, targets: Tensor, *, smoothing: float = 0.0, over: str = "all") -> Tensor:
    """Return the cross-entropy, with a share of the target spread evenly over classes.

    `over` says which classes: "all" is torch's label smoothing; "others" is SEDONA's, which leaves 1 -
    smoothing on the true class.
    """
    assert over in ("all", "others")
    if over == "others":
        num_classes = logits.shape[1]
        smoothing = smoothing * num_classes / (num_classes - 1)
    logits = upcast(logits)
    if _is_soft(targets):
        targets = targets.to(logits.dtype)
    return F.cross_entropy(logits, targets, label_smoothing=smoothing)


def similarity_matrix(features: Tensor) -> Tensor:
    """Return the correlations between the samples of a batch, (B, B).

    For a map (B, C, H, W) with more than 3 channels and more than one row, each channel's standard
    deviation over the pixels is compared instead of the pixels.
    """
    features = upcast(features)
    if features.ndim == 4 and features.shape[1] > 3 and features.shape[2] > 1:
        features = features.std(dim=(2, 3))
    features = features.flatten(1)
    centred = features - features.mean(dim=1, keepdim=True)
    unit = centred / (torch.linalg.vector_norm(centred, dim=1, keepdim=True) + 1e-8)
    return _products(unit).clamp(-1, 1)


def similarity_matching(features: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """Return the mean squared difference between the features' similarities and those of the labels."""
    of_features = similarity_matrix(features)
    of_labels = similarity_matrix(_probabilities(targets, num_classes, of_features.dtype))
    return F.mse_loss(of_features, of_labels)


def supervised_contrast(embeddings: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return the supervised contrast of embeddings (B, d) of length 1, one view per image.

    This is L_out of Khosla et al. (2020). It is a mean over the anchors that have a positive, another
    sample of their class. It is 0 where no anchor has one. Targets must be class numbers.
    """
    _insist_on_classes(targets, "supervised contrast")
    itself = torch.eye(len(targets), dtype=torch.bool, device=targets.device)
    positives = (targets[:, None] == targets[None, :]) & ~itself
    similarities = (_products(upcast(embeddings)) / temperature).masked_fill(itself, -torch.inf)
    log_shares = similarities.log_softmax(dim=1).masked_fill(~positives, 0)
    counts = positives.sum(dim=1)
    per_anchor = -log_shares.sum(dim=1) / counts.clamp(min=1)
    return per_anchor.sum() / (counts > 0).sum().clamp(min=1)


def diversity(
    logits: Sequence[Tensor], targets: Tensor, *, temperature: float = 3.0, stop_gradient: bool = True
) -> Tensor:
    """Return how alike neuron groups judge the wrong classes: Eq. 1 of GN-DGL.

    The groups' softmax outputs are compared without the true class, by their cosine. The result is the
    mean over all ordered pairs of groups. With `stop_gradient` the second of a pair is a constant, as in
    the paper; in the released code it is not. One group gives 0. Targets must be class numbers.
    """
    cosines_GB = _cosines(logits, targets, temperature, stop_gradient)
    return cosines_GB.mean() / max(1, len(logits) - 1)


def diversity_share(
    index: int, logits: Sequence[Tensor], targets: Tensor, *, temperature: float = 3.0
) -> Tensor:
    """Return the part of `diversity` whose gradient reaches one group, where the gradient is stopped.

    The shares of all groups add up to the diversity.
    """
    cosines_GB = _cosines(logits, targets, temperature, stop_gradient=True)
    return cosines_GB[index].mean() / (len(logits) * max(1, len(logits) - 1))


def _cosines(logits: Sequence[Tensor], targets: Tensor, temperature: float, stop_gradient: bool) -> Tensor:
    """Return, for each group and image, the sum of its cosines to all other groups."""
    _insist_on_classes(targets, "diversity")
    # G groups, B images, N classes
    z_GBN = torch.stack([upcast(group) for group in logits])
    true_BN = F.one_hot(targets, z_GBN.shape[2]).bool()
    # The softmax over the wrong classes is the renormalised one, and stays finite where they underflow.
    wrong_GBN = (z_GBN / temperature).masked_fill(true_BN, -torch.inf).softmax(dim=2)
    unit_GBN: Tensor = wrong_GBN / torch.linalg.vector_norm(wrong_GBN, dim=2, keepdim=True)
    second_GBN = unit_GBN.detach() if stop_gradient else unit_GBN
    others_GBN = second_GBN.sum(dim=0) - second_GBN
    cosines_GB: Tensor = (unit_GBN * others_GBN).sum(dim=2)
    return cosines_GB


class BlockLoss(Protocol):
    """A `BlockLoss` gives a block's loss, from its head's outputs, the targets, and the network's images."""

    def __call__(self, outputs: Any, targets: Tensor, images: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class CrossEntropy:
    """This is the loss of heads that return logits, whatever else they return."""

    smoothing: float = 0.0
    """The share of the target that is spread over classes."""
    over: str = "all"
    """Whether the share is spread over all classes, or over the others (all, others)."""

    def __call__(self, outputs: Any, targets: Tensor, images: Tensor) -> Tensor:
        return cross_entropy(logits_of(outputs), targets, smoothing=self.smoothing, over=self.over)


@dataclass(frozen=True, kw_only=True)
class LossPlace:
    """A place is the cut for which a loss is made."""

    options: LocalLosses
    """The options of the local losses."""
    index: int
    """The number of the cut, from 0."""
    count: int
    """The number of cuts in the network."""
    num_classes: int
    """The number of classes."""
    plain: CrossEntropy
    """The classifier's loss."""
    mean: tuple[float, ...]
    """The means by which the images were normalised."""
    std: tuple[float, ...]
    """The standard deviations by which the images were normalised."""

    def weight(self, ends: tuple[float, float]) -> float:
        """Return the weight at this cut, linear between those of the first and the last cut."""
        return interpolate(ends, self.index, self.count)


@dataclass(frozen=True)
class PredSim:
    """This loss is cross-entropy and a share of similarity matching (Nøkland and Eidnes, 2019)."""

    share: float
    """The weight of similarity matching; cross-entropy has the rest."""
    num_classes: int
    """The number of classes."""

    def __call__(self, outputs: Any, targets: Tensor, images: Tensor) -> Tensor:
        matching = similarity_matching(outputs.similarity, targets, self.num_classes)
        return (1 - self.share) * cross_entropy(outputs.logits, targets) + self.share * matching


@dataclass(frozen=True)
class InfoPro:
    """This loss is weighted reconstruction of the image and cross-entropy (Wang et al., 2021).

    `mean` and `std` are those by which the images were normalised, one per channel or one for all.
    """

    reconstruction: float
    """The weight of the reconstruction."""
    prediction: float
    """The weight of cross-entropy."""
    mean: tuple[float, ...]
    """The means by which the images were normalised."""
    std: tuple[float, ...]
    """The standard deviations by which the images were normalised."""
    smoothing: float = 0.0
    """The share of the target that is spread over classes."""
    over: str = "all"
    """Whether the share is spread over all classes, or over the others (all, others)."""

    def __call__(self, outputs: Any, targets: Tensor, images: Tensor) -> Tensor:
        error = _reconstruction_error(outputs.reconstruction, images, self.mean, self.std)
        loss = cross_entropy(outputs.logits, targets, smoothing=self.smoothing, over=self.over)
        return self.reconstruction * error + self.prediction * loss


@dataclass(frozen=True)
class InfoProContrast:
    """This loss is weighted reconstruction and supervised contrast. Cross-entropy trains the probe alone.

    `mean` and `std` are those by which the images were normalised, one per channel or one for all.
    """

    reconstruction: float
    """The weight of the reconstruction."""
    prediction: float
    """The weight of the contrast."""
    mean: tuple[float, ...]
    """The means by which the images were normalised."""
    std: tuple[float, ...]
    """The standard deviations by which the images were normalised."""
    temperature: float = 0.07
    """The temperature of the contrast."""

    def __call__(self, outputs: Any, targets: Tensor, images: Tensor) -> Tensor:
        error = _reconstruction_error(outputs.reconstruction, images, self.mean, self.std)
        contrast = supervised_contrast(outputs.embedding, targets, self.temperature)
        probe = cross_entropy(outputs.logits, targets)
        return self.reconstruction * error + self.prediction * contrast + probe


@by_name
def predsim_loss(place: LossPlace) -> PredSim:
    """Make PredSim's loss at a cut."""
    return PredSim(place.options.similarity, place.num_classes)


@by_name
def infopro_loss(place: LossPlace) -> InfoPro:
    """Make InfoPro's loss at a cut."""
    return InfoPro(
        reconstruction=place.weight(place.options.reconstruction),
        prediction=place.weight(place.options.prediction),
        mean=place.mean,
        std=place.std,
        smoothing=place.plain.smoothing,
        over=place.plain.over,
    )


@by_name
def infopro_contrast_loss(place: LossPlace) -> InfoProContrast:
    """Make InfoPro's loss with contrast at a cut."""
    return InfoProContrast(
        reconstruction=place.weight(place.options.reconstruction),
        prediction=place.weight(place.options.prediction),
        mean=place.mean,
        std=place.std,
        temperature=place.options.temperature,
    )


def loss_at(kind: str, place: LossPlace) -> BlockLoss:
    """Return the loss that goes with a kind of head at a cut."""
    row = HEADS.get(kind)
    if row is not None and row.loss_maker is not None:
        objective: BlockLoss = row.loss_maker(place)
        return objective
    name, plain = place.options.loss, place.plain
    if not LOSSES.is_own(name):
        return plain
    recipe = {"smoothing": plain.smoothing, "over": plain.over}
    own = LOSSES[name].maker
    return partial(own, **{option: value for option, value in recipe.items() if takes(own, option)})


@dataclass(frozen=True)
class Grouped:
    """This loss is the sum of the neuron groups' own losses and the diversity between them."""

    each: BlockLoss
    """The loss of each group."""
    weight: float
    """The weight of the diversity."""
    stop_gradient: bool = True
    """Whether the second group of a pair is a constant for the diversity."""

    def __call__(self, outputs: Sequence[Any], targets: Tensor, images: Tensor) -> Tensor:
        loss = torch.stack([self.each(own, targets, images) for own in outputs]).sum()
        if not self.weight:
            return loss
        logits = [logits_of(own) for own in outputs]
        return loss + self.weight * diversity(logits, targets, stop_gradient=self.stop_gradient)


def sees_images(objective: BlockLoss) -> bool:
    """Return whether a loss may look at the images; a loss that is not ours is assumed to."""
    if isinstance(objective, Grouped):
        return sees_images(objective.each)
    return not isinstance(objective, CrossEntropy | PredSim)


def logits_of(outputs: Any) -> Tensor:
    """Return the logits among what a head returned."""
    logits: Tensor = outputs if isinstance(outputs, Tensor) else outputs.logits
    return logits


def interpolate(ends: tuple[float, float], index: int, count: int) -> float:
    """Return the weight at the local head `index` of `count`, linear between those of the two ends."""
    share = index / (count - 1) if count > 1 else 0.0
    return (1 - share) * ends[0] + share * ends[1]


def upcast(values: Tensor) -> Tensor:
    """Return the values in float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _is_soft(targets: Tensor) -> bool:
    return targets.is_floating_point()


def _insist_on_classes(targets: Tensor, loss: str) -> None:
    if _is_soft(targets):
        raise ValueError(f"{loss}: needs one class for each image, not probabilities (mixup, CutMix)")


def _probabilities(targets: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    return (targets if _is_soft(targets) else F.one_hot(targets, num_classes)).to(dtype)


def _products(rows: Tensor) -> Tensor:
    """Return all inner products between rows."""
    with torch.autocast(rows.device.type, enabled=False):  # autocast would take them in half precision
        return rows @ rows.T


def _reconstruction_error(
    reconstruction: Tensor, images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]
) -> Tensor:
    """Return the binary cross-entropy between a reconstruction, after a sigmoid, and the image.

    The image's pixels are brought back to [0, 1].
    """
    reconstruction = upcast(reconstruction)
    if reconstruction.shape != images.shape:
        sizes = [" x ".join(map(str, batch.shape[1:])) for batch in (reconstruction, images)]
        raise ValueError(
            f"InfoPro's head was made to reconstruct images of {sizes[0]}, and these are {sizes[1]}; images "
            "are square, of the image_size that the heads were made for"
        )
    images = images.to(reconstruction.dtype)
    shift, scale = (images.new_tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    pixels = (images * scale + shift).clamp(0, 1)
    return F.binary_cross_entropy_with_logits(reconstruction, pixels)
