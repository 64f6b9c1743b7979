"""What a report says, and how far logits may be apart that another environment computed."""

from __future__ import annotations

import math

import pytest
import torch

from eidetic_hf.model.verification import (
    RouterVerification,
    TaskVerification,
    VerificationReport,
    compare_logits,
    rounding,
    told_of,
)

LOGITS = torch.tensor([[2.0, -0.5], [0.25, 1.0]])


def test_in_the_same_environment_one_bit_is_a_difference() -> None:
    other = LOGITS.clone()
    other[0, 1] = torch.nextafter(other[0, 1], torch.tensor(0.0))
    assert compare_logits(LOGITS, LOGITS, True, 12) == (True, 0.0)
    assert compare_logits(LOGITS, other, True, 12)[0] is False
    assert compare_logits(LOGITS, other, False, 12)[0] is True


@pytest.mark.parametrize(("dtype", "units"), [(torch.float32, 64), (torch.bfloat16, 8), (torch.float16, 8)])
def test_in_another_one_the_bound_follows_the_largest_logit_the_precision_and_the_depth(
    dtype: torch.dtype, units: float
) -> None:
    logits = LOGITS.to(dtype)
    bound = rounding(logits, 4)
    assert bound == units * torch.finfo(dtype).eps * 2 * 2.0
    assert rounding(logits * 8, 4) == 8 * bound and math.isclose(rounding(logits, 1), bound / 2)
    for share, passes in ((0.9, True), (1.2, False)):
        assert (
            compare_logits(logits.float(), logits.float() + share * rounding(logits.float(), 4), False, 4)[0] is passes
        )


def test_logits_of_another_shape_or_that_are_no_numbers_do_not_match() -> None:
    assert compare_logits(LOGITS, LOGITS[:1], False, 4) == (False, math.inf)
    assert compare_logits(LOGITS, LOGITS * torch.nan, False, 4)[0] is False
    assert compare_logits(torch.zeros(0, 2), torch.zeros(0, 2), False, 4) == (True, 0.0)


def test_padding_does_not_count_in_another_environment() -> None:
    logits, mask = torch.ones(2, 3, 5), torch.tensor([[1, 1, 1], [1, 1, 0]])
    other = logits.clone()
    other[1, 2] = 7
    assert compare_logits(logits, other, False, 4, mask) == (True, 0.0)
    assert compare_logits(logits, other, True, 4, mask) == (False, 6.0)
    other[1, 1] = 7
    assert compare_logits(logits, other, False, 4, mask) == (False, 6.0)


def test_a_report_says_what_was_found_and_is_true_if_all_is_as_it_was() -> None:
    fine = TaskVerification("a", True, True)
    assert str(VerificationReport([fine])).splitlines() == [
        "a: weights and logits equal bit for bit",
        "verified: no committed task has changed",
    ]
    assert str(VerificationReport([])) == "nothing to verify: no committed task"
    older = TaskVerification("a", True, None, settings_match=None, format=1)
    assert (
        older.ok and str(older) == "a: weights equal bit for bit, by their hashes; settings not certified (format 1)"
    )
    elsewhere = TaskVerification("a", True, True, environment_changes={"threads": (1, 2)})
    assert "logits equal to rounding (other environment: threads 1 -> 2)" in str(elsewhere)
    changed = TaskVerification("a", True, True, "settings.labels.0: 1, at commit 2", settings_match=False)
    assert not changed.ok and str(changed) == "a: CHANGED, first in settings.labels.0: 1, at commit 2"
    assert str(VerificationReport([changed])).endswith("FAILED: a committed task has changed")
    router = RouterVerification("router.reference.scale", ["a"])
    report = VerificationReport([fine], router)
    assert not report and str(report).endswith("FAILED: what the router knows of tasks has changed")
    edited = VerificationReport([fine], RouterVerification(None, ["a"], ["a"]), ["config.json: edited"])
    assert not edited and str(edited).splitlines()[1:] == [
        "router: not certified (an earlier format) is what it knows of a",
        "config.json: edited",
        "FAILED: a file was edited since the model was saved",
    ]


def test_what_was_told_is_counted() -> None:
    told = {"weights": torch.tensor([3, -1, 2]), "prior": torch.tensor(2.5), "threshold": torch.tensor(0.1)}
    assert told_of(told) == "2 examples, 1 forgotten, prior 2.5, threshold 0.1"
    assert told_of({}) == ""
