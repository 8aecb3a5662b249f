"""Train a supernet, a space of networks with shared weights, in one of several ways.

Examples:
  accelerate launch train_supernet.py --strategy nongreedy --data.name cifar10 --data.root DIR
  accelerate launch train_supernet.py --space tiny --recipe.epochs 1 --run runs/tiny
  accelerate launch train_supernet.py --config configs/supernet-cifar10-nas_bench_macro.toml --data.root DIR
"""

from supernet.train.config import SupernetConfig
from tools.options.command import main


def run(config: SupernetConfig) -> None:
    from supernet.train.run import train_supernet  # imports torch: only when there is work to do

    train_supernet(config)


if __name__ == "__main__":
    main(SupernetConfig, run, __doc__)
