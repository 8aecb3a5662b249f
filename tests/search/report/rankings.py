"""Rankings of a few networks by given scores."""

from collections.abc import Mapping

from search.report.statistics import Ranking, rank, with_baselines
from tests.search.spaces import macro
from tools.chance import Numbers


def ranked(subjects: Mapping[str, Numbers], truth: Numbers) -> Ranking:
    """How given scores order as many networks of NAS-Bench-Macro."""
    networks = list(macro().architectures())[1000 : 1000 + 7 * len(truth) : 7]
    return rank(with_baselines(macro(), networks, truth[None], subjects, seed=0), resamples=100, seed=0)
