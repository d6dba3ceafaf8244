"""Tinker's own data types hold what the formula says."""

from __future__ import annotations

import numpy as np
import pytest
from support.exported import step_logprobs
from support.peers import need, the_model, the_run

pytestmark = need("tinker")

import tinker

from hintdistill.bridges.export import export
from hintdistill.bridges.flat import flat_rows
from hintdistill.bridges.formulas import at, bound, forward_kl
from hintdistill.bridges.runs import open_rows
from hintdistill.bridges.tinker import entropy, to_datums


def rows(k, tail):
    found = open_rows(the_run(), k, tail)
    return list(flat_rows(found.rows, found.section.effective_recipe))


@pytest.mark.parametrize("k", [5, 20])
def test_the_cross_entropy_of_a_datum_is_the_forward_kl_and_a_constant(k):
    narrowed, whole, data = rows(k, "renormalise"), rows(None, "keep"), to_datums(the_run(), k)
    assert len(data) == len(narrowed) == len(whole)
    for datum, few, full in list(zip(data, narrowed, whole, strict=True))[::4]:
        assert isinstance(datum, tinker.Datum) and datum.model_input.to_ints() == few.ids[:-1].tolist()
        tokens = datum.loss_fn_inputs["target_tokens"].to_torch().numpy()
        weights = datum.loss_fn_inputs["weights"].to_torch().numpy().astype(np.float64)
        assert tokens.shape == weights.shape == (len(few.ids) - 1, few.support_ids.shape[1])
        # a step's weights are its own, and nothing else carries any
        step = slice(few.start - 1, len(few.ids) - 1)
        assert np.allclose(weights[step].sum(1), few.weights, rtol=1e-5) and weights.sum() == pytest.approx(
            few.weights.sum()
        )
        # the sampled token of every weighed position is among its ids
        assert all(few.sampled[t] in tokens[step][t][weights[step][t] > 0] for t in few.carried)
        student = step_logprobs(the_model(), few.ids, few.start)
        by_service = -(weights[step] * at(student, tokens[step])).sum() - entropy(few)
        assert by_service == pytest.approx(forward_kl(few, student), rel=1e-5, abs=3e-7 * few.weights.sum())
        assert abs(by_service - forward_kl(full, student)) <= bound(full, few, student, "renormalise") + 1e-6


def test_an_export_gives_the_same_data(tmp_path):
    folder, _ = export(the_run(), "tinker", out=tmp_path / "out", checked=True)
    written, direct = to_datums(folder, None), to_datums(the_run(), None)
    for one, other in zip(written, direct, strict=True):
        assert one.model_input.to_ints() == other.model_input.to_ints()
        for name in ("target_tokens", "weights"):
            assert np.array_equal(one.loss_fn_inputs[name].to_torch(), other.loss_fn_inputs[name].to_torch())
