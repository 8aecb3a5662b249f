import subprocess
import sys

import pytest


@pytest.mark.slow
def test_two_ranks_give_one_ranks_gradients_and_statistics() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "tests/programs/shared_batchnorm.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert "rank 0 agrees" in done.stdout, done.stderr
    assert "rank 1 agrees" in done.stdout
