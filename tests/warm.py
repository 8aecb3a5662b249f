"""What forks of `tests.forked` begin with: all that scripts import, and what they do first, done once."""

import contextlib
import gc

import pytest  # noqa: F401

import supernet.train.run  # noqa: F401
from tests.scripts import SCRIPTS, config_of
from tools.options.config import parse

for script in SCRIPTS:
    with contextlib.suppress(ValueError):
        parse(config_of(script), [], prog=script, description="")
gc.freeze()  # a fork that looked through all of this for garbage would copy it
