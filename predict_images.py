"""Classify images with a trained network: the names of the classes, with their probabilities.

python predict_images.py --run-of runs/photos --images new_photos photo.jpg
"""

from retrain.predict_config import PredictConfig
from tools.command import main


def run(config: PredictConfig) -> None:
    config.check_source()
    from retrain.predict import predict  # imports torch: only when there is work to do

    predict(config)


if __name__ == "__main__":
    main(PredictConfig, run, __doc__)
