"""The pull of a hint before training: gone under a bounded divergence where the student never says what the teacher does."""

from __future__ import annotations

import numpy as np
import pytest
from support.stored_targets import make_target

from hintdistill.core.scores import Measurement, Target
from hintdistill.recipes import Term
from hintdistill.training.pull import WEAK, pull_of


def logs(*probabilities: float) -> np.ndarray:
    return np.log(np.array([probabilities], np.float32))


def hint(instead: float) -> Target:
    """A student that says the error and `instead` with the rest, under a hint that turns it round."""
    return make_target(
        "h",
        step_ids=np.array([5]),
        support_ids=np.array([[5, 6]]),
        plain_logprobs=logs(1 - instead - 1e-6, instead),
        plain_tail=logs(1e-6)[0],
        teacher_logprobs=logs(0.02, 0.97),
        teacher_tail=logs(0.01)[0],
        plain_sampled=logs(1 - instead - 1e-6)[0],
        teacher_sampled=logs(0.02)[0],
        tokens=("a",),
        instead=("b",),
        measurement=Measurement(
            position=0,
            instead_id=6,
            effect=-3.9,
            plain_logprob=0.0,
            max_raise=0.0,
            specificity=0.0,
            legal_mass_gain=None,
            best_placebo=0.0,
        ),
    )


def term(kind: str) -> Term:
    return Term.model_validate({"divergence": {"kind": kind}})


@pytest.mark.parametrize("kind", ["jsd", "rkl", "skew_rkl"])
def test_bounded_divergences_do_not_pull_where_the_student_is_sure(kind):
    sure, unsure = pull_of(hint(3e-5), term(kind)), pull_of(hint(0.2), term(kind))
    assert sure < WEAK < unsure and unsure > 50 * sure


def test_the_forward_kl_pulls_by_the_difference_of_the_probabilities():
    for instead in (3e-5, 0.2):
        difference = np.array([1 - instead - 1e-6 - 0.02, instead - 0.97, 1e-6 - 0.01])
        assert pull_of(hint(instead), term("fkl")) == pytest.approx(float(np.linalg.norm(difference)), rel=1e-4)


def test_what_has_no_pull_to_measure():
    nowhere = make_target("h", measurement=None)
    assert pull_of(nowhere, term("fkl")) is None
    assert (
        pull_of(hint(0.2), Term.model_validate({"divergence": {"kind": "nll"}, "support": {"kind": "sampled"}})) is None
    )
