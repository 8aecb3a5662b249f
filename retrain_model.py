"""Train a network on any data, as a whole or in blocks, on one or several processes.

Examples:
  accelerate launch retrain_model.py --network resnet50 --width 0.25 --data.name cifar10 --data.root DIR
  accelerate launch retrain_model.py --network resnet18 --data.name folder --data.root DIR --run runs/photos
  accelerate launch retrain_model.py --network resnet18 --decoupling uniform:4:aux2 --recipe.epochs 1
"""

from retrain.config import RetrainConfig
from tools.options.command import main


def run(config: RetrainConfig) -> None:
    from retrain.run import retrain  # imports torch: only when there is work to do

    retrain(config)


if __name__ == "__main__":
    main(RetrainConfig, run, __doc__)
