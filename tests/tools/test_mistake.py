import pickle

from tools.mistake import Mistake, quoted
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


def test_a_phrase_and_a_switch_are_spelled_too() -> None:
    one = Mistake("`strategy` fair", "goes with `data.flip=False`", "or leave `data.flip` on")
    assert str(one) == "strategy fair: goes with data.flip=False; or leave data.flip on"
    assert one.worded(flag) == "--strategy fair: goes with --data.no-flip; or leave --data.flip on"


def test_one_mistake_can_say_another() -> None:
    inner = Mistake("", "head 'x' is unknown; `plugins` may help", source="a.json")
    assert quoted(inner) == "a.json: head 'x' is unknown; `plugins` may help"
    assert quoted(ONE).startswith("`gluing.h_every`: over 1 it needs `gluing.cache`; ")
    assert quoted(OSError("full")) == "full"
    outer = Mistake("architecture", quoted(inner))
    assert outer.worded(flag) == "--architecture: a.json: head 'x' is unknown; --plugins may help"
    assert inner.about("decoupling").worded(flag) == "--decoupling: head 'x' is unknown; --plugins may help"
