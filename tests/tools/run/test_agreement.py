"""Meetings are heard in the order of their calls, up to a step."""

import torch

from tools.run.agreement import Agreement


def test_what_was_asked_is_heard_up_to_a_step() -> None:
    agreement = Agreement(torch.device("cpu"), None)
    for step in (3, 5, 8):
        agreement.call(
            step, (0.0, torch.tensor(-7.0), step / 2), {"loss": torch.tensor(float(step))}, {"loss": 1}
        )
    assert [meeting.step for meeting in agreement.concluded(5)] == [3, 5]
    assert [meeting.step for meeting in agreement.concluded(7)] == []
    (last,) = agreement.concluded(8)
    assert (last.votes, last.means) == ((0.0, -7.0, 4.0), {"loss": 8.0})


def test_what_is_measured_elsewhere_counts_as_nothing_here() -> None:
    agreement = Agreement(torch.device("cpu"), None)
    agreement.call(1, (0.0,), {"loss/1": torch.tensor(3.0)}, {"loss/1": 2, "loss": 1})
    (meeting,) = agreement.concluded(1)
    assert meeting.means == {"loss/1": 1.5, "loss": 0.0}
