import pickle

from tools.mistake import Mistake
from tools.options.config import flag

ONE = Mistake("gluing.h_every", "over 1 it needs `gluing.cache`", "leave 'a_b' out")


def test_the_library_speaks_of_arguments_and_a_script_of_options() -> None:
    assert str(ONE) == "gluing.h_every: over 1 it needs gluing.cache; leave 'a_b' out"
    assert ONE.worded(flag) == "--gluing.h-every: over 1 it needs --gluing.cache; leave 'a_b' out"
    assert str(Mistake("", "no such thing")) == "no such thing"
    assert str(ONE.about("penalty")) == "penalty: over 1 it needs gluing.cache; leave 'a_b' out"


def test_it_comes_whole_to_other_processes() -> None:
    one = Mistake("seed", "is odd", source="config.toml")
    assert str(pickle.loads(pickle.dumps(one))) == str(one) == "config.toml: seed: is odd"
