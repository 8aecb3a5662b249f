"""Report how well supernets, or other scores, rank networks, compared with training each of them alone.

Examples:
  accelerate launch rank_report.py --supernet runs/spos runs/greedy --truth table.json --run runs/ranking
  accelerate launch rank_report.py --search runs/evolution --trained runs/best --run runs/report
  accelerate launch rank_report.py --supernet runs/supernet --truth runs/truth --networks 32 --run runs/small
"""

from search.report.config import RankReportConfig
from tools.options.command import main


def run(config: RankReportConfig) -> None:
    from search.report.run import rank_report  # imports torch: only when there is work to do

    rank_report(config)


if __name__ == "__main__":
    main(RankReportConfig, run, __doc__)
