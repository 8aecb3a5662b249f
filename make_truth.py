"""Train many networks from scratch by one recipe, to get the truth that rankings are compared with.

Examples:
  accelerate launch make_truth.py --space nas_bench_macro --networks 32 --data.name cifar10 --data.root DIR
  accelerate launch make_truth.py --network vgg19 --decouplings uniform:2:aux1 uniform:4:aux1 --repeats 2
  accelerate launch make_truth.py --architectures runs/evolution/top/01.json --jobs 2 --run runs/truth
"""

from retrain.truth.config import TruthConfig
from tools.options.command import main


def run(config: TruthConfig) -> None:
    config.check_source()
    from retrain.truth.run import make_truth  # imports torch: only when there is work to do

    make_truth(config)


if __name__ == "__main__":
    main(TruthConfig, run, __doc__)
