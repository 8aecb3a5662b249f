"""Classify images with a trained network, and print the likely classes with their probabilities.

Examples:
  python predict_images.py --run-of runs/photos --images new_photos photo.jpg
  python predict_images.py --export exported --images new_photos --out predictions.jsonl
  python predict_images.py --weights model.safetensors --images photo.jpg --top 1
"""

from retrain.predict.config import PredictConfig
from tools.options.command import main


def run(config: PredictConfig) -> None:
    config.check_source()
    from retrain.predict.run import predict  # imports torch: only when there is work to do

    predict(config)


if __name__ == "__main__":
    main(PredictConfig, run, __doc__)
