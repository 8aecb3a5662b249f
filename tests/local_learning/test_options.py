import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest

from local_learning.options import GluingOptions, LocalLosses
from tools.options.config import from_toml, parse, to_toml


@dataclass(frozen=True, kw_only=True)
class Both:
    local: LocalLosses = field(default_factory=LocalLosses)
    gluing: GluingOptions = field(default_factory=GluingOptions)


def parsed(*arguments: str) -> Both:
    return parse(Both, arguments, prog="x", description="")


def test_flags_reach_the_fields() -> None:
    config = parsed(
        *("--local.reconstruction", "5", "0.75", "--local.no-shared-heads", "--gluing.penalty", "1", "2"),
        *("--local.diversity-gradient", "released", "--gluing.cache", "--gluing.h-every", "3"),
    )
    local = LocalLosses(reconstruction=(5.0, 0.75), shared_heads=False, diversity_gradient="released")
    assert config == Both(local=local, gluing=GluingOptions(penalty=(1.0, 2.0), cache=True, h_every=3))


def test_toml_gives_back_the_same_options() -> None:
    config = Both(
        local=LocalLosses(prediction=(0.5, 2.0)), gluing=GluingOptions(step=(0.1, 0.2), cache=True, refresh=4)
    )
    assert from_toml(Both, to_toml(config), source="x") == config


@pytest.mark.parametrize(
    ("cls", "values", "option"),
    [
        (LocalLosses, {"similarity": 1.01}, "local.similarity"),
        (LocalLosses, {"similarity": -0.01}, "local.similarity"),
        (LocalLosses, {"reconstruction": (1.0, -1.0)}, "local.reconstruction"),
        (LocalLosses, {"reconstruction": (1.0,)}, "local.reconstruction"),
        (LocalLosses, {"prediction": (float("nan"), 1.0)}, "local.prediction"),
        (LocalLosses, {"prediction": (1.0, 1.0, 1.0)}, "local.prediction"),
        (LocalLosses, {"temperature": 0.0}, "local.temperature"),
        (LocalLosses, {"diversity": -0.5}, "local.diversity"),
        (LocalLosses, {"diversity_gradient": "stoped"}, "local.diversity_gradient"),
        (GluingOptions, {"penalty": (1.0, 0.0)}, "gluing.penalty"),
        (GluingOptions, {"penalty": ()}, "gluing.penalty"),
        (GluingOptions, {"step": (0.0,)}, "gluing.step"),
        (GluingOptions, {"step": ()}, "gluing.step"),
        (GluingOptions, {"h_steps": -1}, "gluing.h_steps"),
        (GluingOptions, {"h_every": 0, "cache": True}, "gluing.h_every"),
        (GluingOptions, {"h_every": 2}, "gluing.h_every"),
        (GluingOptions, {"refresh": -1, "cache": True}, "gluing.refresh"),
        (GluingOptions, {"refresh": 1}, "gluing.refresh"),
    ],
)
def test_a_mistake_is_refused_by_name(cls: type[Any], values: dict[str, Any], option: str) -> None:
    with pytest.raises(ValueError, match=f"^{option}: "):
        cls(**values)


def test_ends_of_the_ranges_are_allowed() -> None:
    LocalLosses(similarity=0.0, diversity=0.0, reconstruction=(0.0, 0.0))
    LocalLosses(similarity=1.0)
    GluingOptions(h_steps=0, h_every=1, refresh=0)
    GluingOptions(cache=True, h_every=5, refresh=1)


def test_a_file_with_three_ends_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"local.prediction: takes two numbers.*not 3"):
        from_toml(Both, "[local]\nprediction = [1, 1, 1]\n", source="x")


def test_options_are_free_of_torch() -> None:
    code = "import sys, local_learning.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
