"""What a ranking's numbers say, in words."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tools.files import read_document
from tools.ranking import FEW

SURE = 0.05
"""Differences with a p value below this, adjusted for their number, are called real."""
COUNTS = {"MACs": "Counting MACs", "params": "Counting parameters", "depth": "Counting layers"}
"""Baselines that need neither training nor truth."""


def number(value: float | None, digits: int = 2) -> str:
    """As statistics are written: without the zero in front."""
    if value is None:
        return "-"
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        return f"{0:.{digits}f}"[1:]
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def interval(found: Mapping[str, float], digits: int = 2) -> str:
    """A value with its interval."""
    low, high = number(found["low"], digits), number(found["high"], digits)
    return f"{number(found['value'], digits)} [{low}, {high}]"


def chance(pair: Mapping[str, Any]) -> str:
    """The p value of a difference, adjusted for the number of differences."""
    return "p < .001" if pair["p_holm"] < 0.0005 else f"p = {number(pair['p_holm'], 3)}"


def difference(found: Mapping[str, Any], one: str, other: str) -> dict[str, Any]:
    """Of two scores, as one less the other."""
    for pair in found["differences"]:
        if (pair["one"], pair["other"]) == (one, other):
            return dict(pair)
        if (pair["one"], pair["other"]) == (other, one):
            turned = {"value": -pair["value"], "low": -pair["high"], "high": -pair["low"]}
            return {**pair, "one": one, "other": other, **turned}
    raise AssertionError(f"{one} and {other} were not compared")


def judged(pair: Mapping[str, Any]) -> str:
    """Whether one is above, below or not told from the other."""
    if pair["p_holm"] >= SURE:
        return "not told from"
    return "above" if pair["value"] > 0 else "below"


def verdict(found: Mapping[str, Any], strategies: Mapping[str, str], told: Sequence[str] = ()) -> list[str]:
    """The sentence to remember, then what belongs to it; `strategies` names that of each supernet.

    What else is `told` of other runs stands before what is to be known of all these numbers.
    """
    asked = [name for name in found["asked"] if name in found["scores"]]
    lines = [
        f"{name} gives all networks the same score: it orders nothing." for name in found["orders_nothing"]
    ]
    lines = [line for line in lines if line.split(" gives ")[0] in found["asked"]]
    if not asked:
        return [*lines, *told]
    asked.sort(key=lambda name: -found["scores"][name]["tau"]["value"])
    return [
        _first(found, asked),
        *_among(found, asked),
        *_beside(found, asked),
        *_claim(found, strategies),
        *lines,
        *told,
        *_context(found),
    ]


def _first(found: Mapping[str, Any], asked: list[str]) -> str:
    """The best of those asked for, and the strongest count that needs no training."""
    best, n = asked[0], found["networks"]
    tau = found["scores"][best]["tau"]
    said = f"tau {interval(tau)} over {n:,} networks"
    whom = best if len(asked) == 1 else f"the best of the {len(asked)} asked for, {best},"
    if tau["p_value"] < SURE and tau["high"] < 0:
        return f"{whom} ranks the wrong way round, {said}: is it a loss? Such scores are given as --losses."
    if tau["p_value"] >= SURE or tau["low"] <= 0:
        return f"No better than chance: {whom} has {said} (p = {number(tau['p_value'], 3)})."
    ranks = "ranks networks" if len(asked) == 1 else f"ranks best of the {len(asked)} asked for"
    simple = [name for name in COUNTS if name in found["scores"]]
    if not simple:
        return f"{best} {ranks} with {said}."
    strongest = max(simple, key=lambda name: found["scores"][name]["tau"]["value"])
    pair, count = difference(found, best, strongest), COUNTS[strongest]
    theirs = interval(found["scores"][strongest]["tau"])
    by = f"difference {interval(pair)}, {chance(pair)}"
    match judged(pair):
        case "above":
            return f"{best} {ranks}: {said}. {count} alone gives {theirs}, which is beaten ({by})."
        case "below":
            return f"{count} alone ranks networks better (tau {theirs}) than {whom} does: {said} ({by})."
    count = count[0].lower() + count[1:]
    return f"{best} {ranks}, {said}, but cannot be told from {count}, tau {theirs} ({by})."


def _among(found: Mapping[str, Any], asked: list[str]) -> list[str]:
    """Which of those asked for are behind the best, and which cannot be told from it."""
    best = asked[0]
    words: dict[str, list[str]] = {"below": [], "not told from": []}
    for name in asked[1:]:
        tau, pair = interval(found["scores"][name]["tau"]), difference(found, best, name)
        word = "below" if judged(pair) == "above" else "not told from"
        words[word].append(f"{name} (tau {tau}, {number(pair['value'])} less, {chance(pair)})")
    lines = []
    if words["below"]:
        lines.append(f"{best} ranks better than {', '.join(words['below'])}.")
    if words["not told from"]:
        lines.append(f"{best} cannot be told from {', '.join(words['not told from'])}.")
    return lines


def _beside(found: Mapping[str, Any], asked: list[str]) -> list[str]:
    """All that were asked for, beside what needs no supernet."""
    lines = []
    for name in asked:
        words: dict[str, list[str]] = {"above": [], "not told from": [], "below": []}
        for other in found["scores"]:
            if other not in asked and other != "chance":
                words[judged(difference(found, name, other))].append(other)
        said = [f"{word} {' and '.join(others)}" for word, others in words.items() if others]
        lines.append(f"{name} is {', '.join(said)}")
    return ["Beside what needs no supernet: " + "; ".join(lines) + "."] if lines else []


def _claim(found: Mapping[str, Any], strategies: Mapping[str, str]) -> list[str]:
    """Non-greedy against single paths, the claim of LWSL's Table II: each supernet against each."""
    ours, theirs = (
        [name for name in found["asked"] if strategies.get(name) == strategy and name in found["scores"]]
        for strategy in ("nongreedy", "spos")
    )
    pairs = [difference(found, one, other) for one in ours for other in theirs]
    if not pairs:
        return []
    words = [judged(pair) for pair in pairs]
    told = "; ".join(f"{pair['one']} less {pair['other']} {interval(pair)}, {chance(pair)}" for pair in pairs)
    counts = {"above": "better", "below": "worse", "not told from": "not told apart"}
    said = ", ".join(
        f"{words.count(word)} of {len(words)} {name}" if len(words) > 1 else f"here {name}"
        for word, name in counts.items()
        if word in words
    )
    return [
        "Does non-greedy layer-wise training rank better than single paths, as LWSL has it (.538 against "
        f".205)? {told}: {said}."
    ]


def _context(found: Mapping[str, Any]) -> list[str]:
    lines, edge = [], 1.96 * found["null_deviation"]
    if found["repeat_tau"] is not None and found["repeat_tau"] > edge:
        lines.append(
            "The truth itself is noisy: one training of each network orders them as the mean of its "
            "others does by "
            f"tau {number(found['repeat_tau'])}. By that a perfect score would reach about "
            f"{number(found['noise_ceiling'])} against the mean of all."
        )
    elif found["repeat_tau"] is not None:
        lines.append(
            f"The truth does not agree with itself: its repeats by tau {number(found['repeat_tau'])}. It "
            "needs longer trainings, or more of them."
        )
    if found["networks"] >= FEW:
        lines.append(
            f"Chance alone stays within ±{number(edge)} in 95 of 100 rankings of as many networks. Intervals "
            "are of 95 % over resampled networks; p values are adjusted for their number (Holm). They say "
            "nothing of what another seed of a supernet would give."
        )
    else:
        lines.append(f"With {found['networks']} networks hardly anything can be told; take 30 or more.")
    return lines


def percent(value: float | None) -> str:
    """An accuracy, whether it is a fraction or in percent already."""
    if value is None:
        return "-"
    return f"{100 * value if 0 <= value <= 1 else value:.2f} %"


@contextmanager
def reading(option: str, path: Path) -> Iterator[None]:
    """Where a run that an option names is read: what is wrong there is told of the option and the run."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"--{option}: cannot read '{error.filename}': {error.strerror}") from error
    except ValueError as error:
        said = str(error)
        where = "" if str(path) in said else f"'{path}' is not whole, or was changed: "
        raise ValueError(said if said.startswith("--") else f"--{option}: {where}{said}") from error
    except (LookupError, TypeError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"--{option}: '{path}' is not whole, or was changed: {what}") from error


def percent_points(value: float, accuracy: float) -> str:
    """A difference between accuracies like this one, whether they are fractions or in percent already."""
    return f"{100 * value if 0 <= accuracy <= 1 else value:.2f} points"


def finished(path: Path, option: str, script: str, key: str) -> Mapping[str, Any]:
    """What a finished run found."""
    file = path / "results.json"
    if not file.exists():
        raise ValueError(f"--{option}: '{path}' is no finished run of {script}: it has no results.json")
    results = read_document(file, "results", 1)
    if key not in results:
        raise ValueError(f"--{option}: '{path}' is not a run of {script}")
    return results
