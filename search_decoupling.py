"""Search for where to cut a network, and which head to put at each cut (SEDONA's search).

Examples:
  accelerate launch search_decoupling.py --network resnet50 --width 0.25 --data.name cifar10 --data.root DIR
  accelerate launch search_decoupling.py --architecture best.json --data.name cifar10 --data.root DIR
  accelerate launch search_decoupling.py --network vgg19 --heads aux1 aux2 --search.steps 500 --run runs/vgg19
"""

from search.cuts.config import DecouplingSearchConfig
from tools.options.command import main


def run(config: DecouplingSearchConfig) -> None:
    from search.cuts.run import search_decoupling  # imports torch: only when there is work to do

    search_decoupling(config)


if __name__ == "__main__":
    main(DecouplingSearchConfig, run, __doc__)
