"""A script whose torch.compile has a given backend, and that says of how many calls all were compiled.

Inductor is made quick here: it neither tries out which vectors the processor has nor uses them, and does not
compile headers for later. The backend aot_eager traces and guards as inductor does, but runs no C++ compiler.
"""

import functools
import runpy
import sys

import torch
from torch._dynamo.utils import counters
from torch._inductor import config

if __name__ == "__main__":
    _, backend, *sys.argv = sys.argv
    config.cpp.vec_isa_ok = False
    config.cpp_cache_precompile_headers = False
    torch.compile = functools.partial(torch.compile, backend=backend)
    runpy.run_path(sys.argv[0], run_name="__main__")
    print(f"compiled {counters['frames']['ok']} of {counters['frames']['total']}")
