"""Supernets of single paths drawn by strings and by networks, side by side: which ranks better.

python -m benchmarks.draws runs/ranking-0 runs/ranking-1 runs/ranking-2

Each folder is a report of rank_report.py on two supernets of one seed, called strings-SEED and networks-SEED.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import permutation_test, t

from tools.files.atomic import read_document


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("reports", nargs="+", type=Path)
    pairs = [pair_of(path) for path in options.parse_args().reports]
    for pair in pairs:
        print(json.dumps(pair), flush=True)
    if len(pairs) > 1:
        print(json.dumps(together([pair["difference"]["value"] for pair in pairs])), flush=True)


def pair_of(report: Path) -> dict[str, Any]:
    """The two taus of a seed, and by how much networks are above strings, over the same networks."""
    found = read_document(report / "report.json", "report", 1)["ranking"]
    strings, networks = sorted(found["asked"], reverse=True)
    taus = {name: rounded(found["scores"][name]["tau"]) for name in (strings, networks)}
    baselines = {name: rounded(found["scores"][name]["tau"]) for name in ("MACs", "depth")}
    (between,) = (
        each for each in found["differences"] if {each["one"], each["other"]} == {strings, networks}
    )
    sign = 1 if between["one"] == networks else -1
    low, high = sorted((sign * between["low"], sign * between["high"]))
    difference = {"value": sign * between["value"], "low": low, "high": high, "p_value": between["p_value"]}
    return {"networks": found["networks"], "taus": taus, "difference": rounded(difference)} | baselines


def together(differences: list[float]) -> dict[str, Any]:
    """What several seeds say: here the seeds are what was drawn by chance, not the networks."""
    values = np.array(differences)
    spread = float(values.std(ddof=1))
    reach = float(t.ppf(0.975, len(values) - 1)) * spread / len(values) ** 0.5
    mean = float(values.mean())
    # Under the null hypothesis each seed's difference is as likely with the other sign.
    signs = permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
    told = {"mean": mean, "deviation": spread, "low": mean - reach, "high": mean + reach}
    return rounded({"seeds": len(values), **told, "p_value": float(signs.pvalue)})


def rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in values.items()}


if __name__ == "__main__":
    main()
