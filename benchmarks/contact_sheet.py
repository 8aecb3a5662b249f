"""A picture of the generated data set: some training images of each class.

python benchmarks/contact_sheet.py docs/images/shapes.png
"""

import sys

import numpy as np
from PIL import Image

from tools.images.shapes import generate


def main() -> None:
    rows, columns, size = 4, 10, 64
    images, labels = generate(400, num_classes=columns, image_size=size, seed=0, split="train")
    by_class = [images[labels == label][:rows] for label in range(columns)]
    sheet = np.concatenate([np.concatenate(list(of_class), axis=0) for of_class in by_class], axis=1)
    Image.fromarray(sheet).quantize(96).save(sys.argv[1], optimize=True)


if __name__ == "__main__":
    main()
