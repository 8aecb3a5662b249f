import pytest

from tests.scripts import SCRIPTS, config_of, options
from tools.options.config import parse
from tools.options.hints import ELSEWHERE


@pytest.mark.parametrize(
    ("script", "words", "meant"),
    [
        ("retrain_model.py", "--lr --recipe.learning-rate --learning_rate", "'--recipe.lr'"),
        ("retrain_model.py", "--epochs --num-epochs", "'--recipe.epochs'"),
        ("retrain_model.py", "--batch-size --bs --data.batch-size", "'--recipe.batch-size'"),
        ("retrain_model.py", "--dataset --data", "'--data.name'"),
        ("retrain_model.py", "--model --data.network", "'--network'"),
        ("search_decoupling.py", "--lr", "'--search.lr' or '--recipe.lr'"),
        ("search_decoupling.py", "--search.learning-rate", "'--search.lr'"),
        ("train_supernet.py", "--recipe.epoch --recipe.epochz", "'--recipe.epochs'"),
    ],
)
def test_a_wrong_name_leads_to_the_right_one(script: str, words: str, meant: str) -> None:
    for word in words.split():
        with pytest.raises(ValueError, match="unknown option") as caught:
            parse(config_of(script), [word, "1"], prog=script, description="")
        assert str(caught.value).endswith(f"; did you mean {meant}?")


def test_what_it_is_called_here_is_what_options_are_called() -> None:
    ours = {
        f".{option.name.replace('_', '-')}" for script in SCRIPTS for option in options(config_of(script))
    }
    for elsewhere, here in ELSEWHERE.items():
        assert any(name.endswith(f".{here}") for name in ours), here
        # A word that is an option itself, for which this would not be asked, is none of these.
        assert f".recipe.{elsewhere}" not in ours
