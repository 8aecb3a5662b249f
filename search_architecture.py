"""Search a trained supernet for the best networks under limits.

Examples:
  accelerate launch search_architecture.py --supernet runs/supernet --max-macs 60e6 --run runs/evolution
  accelerate launch search_architecture.py --supernet runs/supernet --method random --run runs/random
  accelerate launch search_architecture.py --supernet runs/supernet --method nsga2 --run runs/front
"""

from search.architectures.config import ArchitectureSearchConfig
from tools.options.command import main


def run(config: ArchitectureSearchConfig) -> None:
    from search.architectures.run import search_architecture  # imports torch: only when there is work to do

    search_architecture(config)


if __name__ == "__main__":
    main(ArchitectureSearchConfig, run, __doc__)
