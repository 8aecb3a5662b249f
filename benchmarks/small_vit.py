"""A vision transformer that two cores train in minutes: six layers of 128 channels on 16 patches.

python retrain_model.py --plugins benchmarks/small_vit.py --network small_vit --data.name cifar10 ...
"""

from timm.models.vision_transformer import VisionTransformer

from local_learning.build import register_network


@register_network("small_vit")
def small_vit(num_classes: int, image_size: int, in_chs: int) -> VisionTransformer:
    """Return timm's transformer at this size."""
    return VisionTransformer(
        image_size, 8, in_chs, num_classes=num_classes, embed_dim=128, depth=6, num_heads=4
    )
