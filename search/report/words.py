"""What a ranking's numbers say, in words."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tools.chance import FEW, fewest
from tools.files.atomic import read_document
from tools.mistake import Mistake

SURE = 0.05
"""What has a p value below this, adjusted for the number of comparisons, is told apart."""
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
    return f"{p_value(pair['p_holm'])}, {comparisons(pair['comparisons'])}"


def p_value(value: float) -> str:
    """A p value as it is written."""
    return "p < .001" if value < 0.0005 else f"p = {number(value, 3)}"


def comparisons(count: int) -> str:
    """How many there are."""
    return f"{count} comparison{'s' * (count > 1)}"


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


def needed(found: Mapping[str, Any]) -> int:
    """How many networks there must be before any difference can be told from 0 in as many comparisons."""
    return fewest(SURE / max(1, len(found["differences"])), paired=True)


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
    if found["networks"] < needed(found):
        compared = _no_comparison(found)
    else:
        compared = [*_among(found, asked), *_beside(found, asked), *_claim(found, strategies)]
    return [
        _first(found, asked),
        *compared,
        *lines,
        *told,
        *_context(found),
    ]


def _first(found: Mapping[str, Any], asked: list[str]) -> str:
    """The one of highest tau of those asked for, and the strongest count that needs no training."""
    best, n, many = asked[0], found["networks"], len(asked) > 1
    tau, p_holm = found["scores"][best]["tau"], found["scores"][best]["tau_p_holm"]
    whom = f"{best}, of the {len(asked)} asked for the one with the highest tau," if many else best
    said = f"tau {interval(tau)} over {n:,} networks"
    by = f"{p_value(p_holm)}{f', {comparisons(len(asked))}' * many}"
    if n < (least := fewest(SURE / len(asked))):
        few = "networks are too few to tell a ranking from chance"
        return f"{n} {few}: {whom} has {said}. Take {least} at least."
    if p_holm >= SURE:
        return f"Not told from chance: {whom} has {said} ({by})."
    if tau["value"] < 0:
        loss = "is it a loss? Such scores are given as --losses."
        return f"{whom} ranks the wrong way round, {said} ({by}): {loss}"
    ranks = f"has the highest tau of the {len(asked)} asked for" if many else "ranks networks"
    simple = [name for name in COUNTS if name in found["scores"]]
    if not simple or n < needed(found):
        return f"{best} {ranks}: {said} ({by})."
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
    return f"{best} {ranks}, {said}, but is not told from {count}, tau {theirs} ({by})."


def _no_comparison(found: Mapping[str, Any]) -> list[str]:
    """That nothing is compared, and what would be needed for it."""
    if not found["differences"]:
        return []
    return [
        f"{found['networks']} networks are too few to tell two scores apart in "
        f"{comparisons(len(found['differences']))}: whatever they were, no p value could be below "
        f"{number(SURE)}. Take {needed(found)} at least, better more than {FEW}."
    ]


def _among(found: Mapping[str, Any], asked: list[str]) -> list[str]:
    """Which of those asked for are below the one with the highest tau, and which are not told from it."""
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
        lines.append(f"{best} is not told from {', '.join(words['not told from'])}.")
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
    told = f"Beside what needs no supernet, in {comparisons(len(found['differences']))}: "
    return [told + "; ".join(lines) + "."] if lines else []


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
    lines, edge = list[str](), found["edge_of_chance"]
    if found["repeat_tau"] is not None and found["repeat_tau"] > edge:
        lines.append(
            "The truth itself is noisy: one training of each network orders them as the mean of its "
            "others does by "
            f"tau {number(found['repeat_tau'])}. By that a perfect score would reach about "
            f"{number(found['noise_ceiling'])} against the mean of all."
        )
    elif found["repeat_tau"] is not None and found["networks"] >= fewest(SURE):
        lines.append(
            f"That the truth agrees with itself is not told from chance: its repeats do by tau "
            f"{number(found['repeat_tau'])}. It needs longer trainings, or more of them."
        )
    if found["networks"] >= needed(found):
        lines.append(
            f"Chance alone stays within ±{number(found['edge_of_chance'])} in 95 of 100 rankings of as many "
            "networks. Intervals are of 95 %, each of its number alone; p values are adjusted for the number "
            "of comparisons (Holm). Both say nothing of what another seed of a supernet would give."
        )
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
    except Mistake:
        raise
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
