import pytest

from tests.forked import run


@pytest.mark.slow
def test_two_ranks_give_one_ranks_gradients_and_statistics() -> None:
    done = run("tests/programs/shared_batchnorm.py", ranks=2)
    assert "rank 0 agrees" in done.stdout, done.stderr
    assert "rank 1 agrees" in done.stdout
