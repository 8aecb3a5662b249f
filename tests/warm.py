"""What forks of `tests.forked` begin with: all that scripts import, and what they do first, done once."""

import contextlib
import gc
import importlib
import pkgutil

import accelerate.commands.launch  # noqa: F401
import onnx.reference  # noqa: F401
import onnxscript  # noqa: F401
import pytest  # noqa: F401
import torch.distributed.run
import torch.onnx._internal.exporter._core  # noqa: F401

from tests.scripts import SCRIPTS, config_of
from tools.options.config import parse

for package in ("tools", "local_learning", "supernet", "search", "retrain"):
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        importlib.import_module(module.name)
for script in SCRIPTS:
    with contextlib.suppress(ValueError):
        parse(config_of(script), [], prog=script, description="")
gc.freeze()  # a fork that looked through all of this for garbage would copy it
