"""Statistics against known answers, predictions, and critics made worse on purpose."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from conftest import TOOLWORLD
from world import label_steps

from benchmarks.ablation import critic_noise
from benchmarks.ablation.__main__ import main
from benchmarks.ablation.ablate import plan_jobs
from benchmarks.ablation.scale import FULL_NOISE, scaled
from benchmarks.ablation.settings import load_ablation, parse_noise
from benchmarks.ablation.table import clean, table_of
from hintdistill.core.errors import ConfigError
from hintdistill.core.scores import Measurement, Target
from hintdistill.core.statistics import (
    Interval,
    bootstrap_ratio,
    crossed_bootstrap,
    difference,
    fit_line,
    gap_closed,
    mean_of,
    over_groups,
    ratio,
    resampled_means,
)
from hintdistill.core.types import Critique, Finding, Trace
from hintdistill.pipeline import variants
from hintdistill.pipeline.preflight import error_probabilities, predict
from hintdistill.prompts import PromptLibrary
from hintdistill.traces.reading import read_traces

RNG = np.random.default_rng(0)
CONFIG = "benchmarks/ablation/ablate.yaml"


def test_the_crossed_interval_is_wider_than_the_one_over_tasks_where_seeds_differ():
    seeds = np.array([0.2, 0.4, 0.6, 0.8])
    table = (RNG.random((4, 400)) < seeds[:, None]).astype(float)
    got = crossed_bootstrap(mean_of, table, n=2000)
    over_tasks = 1.96 * np.sqrt(table.mean() * (1 - table.mean()) / table.size)
    assert got.low < got.mean < got.high and got.high - got.low > 4 * over_tasks
    assert got == crossed_bootstrap(mean_of, table, n=2000), "seeded"


@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(spread):
    rng, covered = np.random.default_rng(5), 0
    for _ in range(60):
        levels = np.clip(0.5 + spread * rng.standard_normal(8), 0, 1)
        table = (rng.random((8, 100)) < levels[:, None]).astype(float)
        got = crossed_bootstrap(mean_of, table, n=300, seed=int(rng.integers(1 << 30)))
        covered += got.low <= 0.5 <= got.high
    assert covered >= 50


def test_paired_differences_are_narrower_than_unpaired_ones():
    hard = RNG.random(300)
    a = (hard[None] < 0.6).repeat(3, 0).astype(float)
    b = (hard[None] < 0.5).repeat(3, 0).astype(float)
    paired = crossed_bootstrap(difference, a, b, n=1000)
    unpaired = crossed_bootstrap(difference, a, RNG.permuted(b, axis=1), n=1000)
    assert paired.low > 0.04 and unpaired.high - unpaired.low > 1.4 * (paired.high - paired.low)


def test_gap_closed_and_ratios():
    zero, half, one = (np.full((2, 4), v) for v in (0.0, 0.5, 1.0))
    assert gap_closed(0.5, 0.0, 1.0) == 0.5 and np.isnan(gap_closed(0.5, 1.0, 1.0)) and np.isnan(ratio(1.0, 0.0))
    assert ratio(np.array([1.0, 2.0]), np.array([4.0, 0.0])).tolist()[0] == 0.25
    assert crossed_bootstrap(gap_closed, half, zero, one, n=100) == Interval(0.5, 0.5, 0.5)
    assert np.isnan(crossed_bootstrap(gap_closed, half, one, one, n=100).low)
    got = bootstrap_ratio([0.1, 0.1], [0.5, 0.5])
    assert got.mean == got.low == got.high == pytest.approx(0.8)
    with pytest.raises(ValueError, match="0 numerators"):
        bootstrap_ratio([], [])
    with pytest.raises(ValueError, match="one shape"):
        crossed_bootstrap(difference, one, np.ones((2, 5)))


def test_resampling_by_counts_is_resampling():
    """The mean of a table whose rows and columns are drawn one by one has the same spread."""
    table = RNG.random((4, 30)) + np.linspace(0, 1, 4)[:, None]
    (fast,) = resampled_means(table, n=4000)
    rng = np.random.default_rng(1)
    slow = [table[np.ix_(rng.integers(4, size=4), rng.integers(30, size=30))].mean() for _ in range(4000)]
    assert fast.mean() == pytest.approx(np.mean(slow), abs=0.02) and fast.std() == pytest.approx(np.std(slow), rel=0.06)


def test_medians_over_seeds_and_findings():
    got = over_groups([[1.0, 2.0, 3.0], [], [10.0, 11.0, 12.0]], n=500)
    assert got.mean == 6.5 and got.low < 3 and got.high > 10, "between seeds is most of what varies"
    assert over_groups([[1.0, 3.0]], "mean", n=10).mean == 2.0
    with pytest.raises(ValueError, match="no values"):
        over_groups([[]])


def test_lines():
    line = fit_line([0, 1, 2, 3], [1, 3, 5, 7])
    assert (line.slope, line.intercept, line.r2, line.points) == pytest.approx((2, 1, 1, 4))
    assert (
        line.r2_identity == pytest.approx(1 - (1 + 4 + 9 + 16) / 20) and fit_line([0, 1, 2], [0, 1, 2]).r2_identity == 1
    )
    assert fit_line([0, 1], [0, 1]) is None and fit_line([1, 1, 1], [0, 1, 2]) is None
    assert clean({"x": float("nan"), "y": (np.float32(1.0),)}) == {"x": None, "y": [1.0]}


def target(plain, teacher, span, position, error_class="x") -> Target:
    t = len(plain)
    z = np.zeros((t, 1), np.float32)
    m = Measurement(position, 1, -1.0, -1.0, 0.0, -1.0, None, 0.0)
    return Target(
        key="k",
        trace_id="t",
        step=0,
        kind="hint",
        split="train",
        context_ids=np.arange(3),
        step_ids=np.arange(t),
        span=span,
        support_ids=z.astype(int),
        teacher_logprobs=z,
        plain_logprobs=z,
        teacher_tail=z[:, 0],
        plain_tail=z[:, 0],
        teacher_sampled=np.log(np.array(teacher, np.float32)),
        plain_sampled=np.log(np.array(plain, np.float32)),
        error_class=error_class,
        measurement=m,
    )


def test_predicted_repair_is_read_up_to_the_decision_token():
    t = target([0.9, 0.5, 0.8, 0.1], [0.9, 0.5, 0.08, 0.9], span=(1, 4), position=2)
    assert error_probabilities(t) == pytest.approx((0.4, 0.04))
    (got,) = predict([t, t])
    assert got.repair.mean == pytest.approx(0.9) and got.findings == 2 and got.error_probability == pytest.approx(0.4)
    unmoved = dataclasses.replace(t, measurement=dataclasses.replace(t.measurement, position=None))
    assert error_probabilities(unmoved) == pytest.approx((0.04, 0.036))
    primed = target([0.2], [0.4], span=(0, 1), position=0, error_class="y")
    assert [(p.error_class, round(p.repair.mean, 3)) for p in predict([t, primed])] == [("x", 0.9), ("y", -1.0)]


# -- critics made worse ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data():
    traces = list(read_traces([TOOLWORLD / "traces.jsonl"]))[:120]
    critiques = {}
    for trace in traces:
        found = tuple(label_steps(trace))
        critiques[trace.id] = Critique(trace_id=trace.id, verdict="findings" if found else "none", findings=found)
    # arguments' right names are a fact of the general rules, not of the world's checker
    found = [(t, f) for t, f in critic_noise.roots(traces, critiques) if f.error_class != "wrong_argument"]
    return traces, variants.erring_steps(critiques), found, PromptLibrary(str(TOOLWORLD / "prompts"))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_wrong_steps_in_that_share_of_findings(data, share):
    traces, wrong, found, library = data
    got = variants.other_steps(found, traces, wrong, library, share, "s")
    moved = [(t, f) for (t, f), (t0, f0) in zip(got, found, strict=True) if (t.id, f.step) != (t0.id, f0.step)]
    assert len(moved) / len(found) == pytest.approx(share, abs=0.12)
    assert all(f.step not in wrong[t.id] and f.quote is None and f.hint for t, f in moved)
    assert got == variants.other_steps(found, traces, wrong, library, share, "s")


def test_a_hint_moves_to_no_trace_that_was_not_critiqued(data):
    traces, wrong, found, library = data
    known = {id_: steps for id_, steps in wrong.items() if id_ in {t.id for t, _ in found}}
    got = variants.other_steps(found, traces, known, library, 1.0, "s")
    assert len(got) == len(found) and {t.id for t, _ in got} <= set(known) < set(wrong)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_wrong_hints_speak_of_another_error(data, share):
    _, _, found, library = data
    got = variants.wrong_hints(found, library, share, "s")
    changed = [(t, f, f0) for (t, f), (_, f0) in zip(got, found, strict=True) if f != f0]
    assert len(changed) / len(found) == pytest.approx(share, abs=0.12)
    for _, f, f0 in changed:
        assert (f.step, f.error_class) == (f0.step, f0.error_class) and f.hint


def test_where_no_wrong_hint_can_be_made_there_is_no_row_with_a_right_one(data, monkeypatch):
    _, _, found, library = data
    monkeypatch.setattr(variants, "other_hint", lambda *_: None)
    assert (
        variants.wrong_hints(found, library, 1.0, "s") == [] and variants.wrong_hints(found, library, 0.0, "s") == found
    )


def test_false_alarms_fall_on_clean_traces_only(data):
    traces, wrong, found, library = data
    got = critic_noise.false_alarms(found, traces, wrong, library, 0.3, "s")
    assert got[: len(found)] == found
    alarms = got[len(found) :]
    clean_traces = [t for t in traces if not wrong[t.id]]
    assert len(alarms) / len(clean_traces) == pytest.approx(0.3, abs=0.15) and alarms
    assert all(not wrong[t.id] and f.hint for t, f in alarms)


@pytest.fixture(scope="module")
def judged(data):
    traces, _, found, library = data
    critiques = {t.id: Critique(trace_id=t.id, verdict="none") for t in traces}
    for trace in traces:
        if findings := tuple(label_steps(trace)):
            critiques[trace.id] = Critique(trace_id=trace.id, verdict="findings", findings=findings)
    return found, critiques, library


@pytest.mark.parametrize("kind", ["near", "later", "tool", "mixed"])
def test_plausible_mistakes_are_made_in_that_share_and_counted(judged, kind):
    found, critiques, library = judged
    assert critic_noise.plausible(found, critiques, library, kind, 0.0, "s") == found
    some, every = (critic_noise.plausible(found, critiques, library, kind, p, "s") for p in (0.5, 1.0))
    assert every == critic_noise.plausible(found, critiques, library, kind, 1.0, "s") and len(every) == len(found)
    n, right = len(found), critic_noise.counted(every, found)["right"]
    assert critic_noise.counted(every, found) == {"named": n, "right": right, "to_find": n}
    assert right == 0 if kind in ("tool", "mixed") else right < n / 2, "what is last has no consequence"
    half = critic_noise.counted(some, found)["right"]
    assert (half - right) / (n - right) == pytest.approx(0.5, abs=0.15)


def test_a_step_too_early_or_too_late(judged):
    found, critiques, library = judged
    got = critic_noise.plausible(found, critiques, library, "near", 1.0, "s")
    wrong = variants.erring_steps(critiques)
    moved = [(t, f, f0) for (t, f), (_, f0) in zip(got, found, strict=True) if f != f0]
    assert {f.step - f0.step for _, f, f0 in moved} == {-1, 1} and len(moved) > len(found) / 2
    assert all(f.step not in wrong[t.id] and f.hint and f.quote is None for t, f, _ in moved)


def test_a_consequence_in_place_of_the_root(judged):
    found, critiques, library = judged
    got = critic_noise.plausible(found, critiques, library, "later", 1.0, "s")
    for (trace, f), (_, f0) in zip(got, found, strict=True):
        assert f == f0 or (f.step > f0.step and f.step == max(trace.own_steps) and f.hint)
    trace, root = next((t, f) for t, f in found if f.step + 2 < len(t.own_steps))
    caused = Finding(step=root.step + 1, error_class="ignored_error", caused_by=root.step, facts={"tool": "x"})
    both = {trace.id: Critique(trace_id=trace.id, verdict="findings", findings=(root, caused))}
    ((_, told),) = critic_noise.plausible([(trace, root)], both, library, "later", 1.0, "s")
    assert told == caused.model_copy(update={"caused_by": None}), (
        "what is recorded as a consequence comes before the last step"
    )


def test_the_right_step_and_another_legal_tool(judged):
    found, critiques, library = judged
    for trace, f in critic_noise.plausible(found, critiques, library, "tool", 1.0, "s"):
        f0 = next(g for t, g in found if t.id == trace.id and g.step == f.step)
        named = [name for name in trace.tool_schemas if name in f.hint.replace(".", " ").replace(",", " ").split()]
        assert len(named) == 1 and named[0] != f0.facts.get("tool"), f.hint
        assert (f.step, f.error_class, f.quote) == (f0.step, f0.error_class, f0.quote)
    trace, finding = found[0]
    finding = finding.model_copy(update={"hint": "Think about the request again."})
    ((_, told),) = critic_noise.plausible([(trace, finding)], critiques, library, "tool", 1.0, "s")
    assert told.hint.startswith("Call ") and told.hint.split()[1] in trace.tool_schemas


def test_a_mistake_that_cannot_be_made_leaves_the_finding_right(judged):
    found, _, library = judged
    trace, finding = next((t, f) for t, f in found if f.step == max(t.own_steps) > 0)
    alone = {trace.id: Critique(trace_id=trace.id, verdict="findings", findings=(finding,))}
    assert critic_noise.plausible([(trace, finding)], alone, library, "later", 1.0, "s") == [(trace, finding)]
    bare = Trace.model_validate(trace.model_dump() | {"tools": []})
    assert critic_noise.plausible([(bare, finding)], alone, library, "tool", 1.0, "s") == [(bare, finding)]
    ((_, mixed),) = critic_noise.plausible([(bare, finding)], alone, library, "mixed", 1.0, "s")
    assert mixed.step == finding.step - 1, "one that can be made is"


def test_one_class_is_missed(judged):
    found, _, _ = judged
    got = critic_noise.missed(found, "unknown_tool", 1.0, "s")
    assert got == [(t, f) for t, f in found if f.error_class != "unknown_tool"] and 0 < len(got) < len(found)
    assert critic_noise.counted(got, found) == {"named": len(got), "right": len(got), "to_find": len(found)}
    assert len(got) < len(critic_noise.missed(found, "unknown_tool", 0.5, "s")) < len(found)


def test_the_kinds_of_noise_are_read():
    assert parse_noise("near:50+gate") == ("near", 0.5, True)
    assert parse_noise("miss-unknown_tool:100") == ("miss-unknown_tool", 1.0, False)
    for spec in ("miss:100", "near:101", "far:10", "tool:5+gates", "tool:-5"):
        with pytest.raises(ValueError, match="is not of the form"):
            parse_noise(spec)


def test_another_wording_of_the_same_hint(data):
    from hintdistill.injection.hints import hint_text

    _, _, found, library = data
    for (trace, finding), (_, other) in zip(found, critic_noise.other_wording(found, library), strict=True):
        assert other.hint != hint_text(trace, finding, library) and other.step == finding.step


# -- what is planned ---------------------------------------------------------------------------------------------------------------


def test_quick_and_full_plans():
    config = load_ablation(CONFIG)
    shared, arms = plan_jobs(config)
    assert len(shared) == 5 and len(arms) == 35 and len({j.name for j in (*shared, *arms)}) == 40
    shared, arms = plan_jobs(scaled(config, quick=True, full=False))
    assert len(shared) == 2 and {j.arm for j in arms} == {"hint", "placebo", "random_step", "sft_success"}
    full = scaled(config, quick=False, full=True)
    _, arms = plan_jobs(full)
    assert {j.arm for j in arms} >= {*FULL_NOISE, "stale"} and {j.regime for j in arms} == {"common", "rare", "absent"}
    assert {j.regime for j in arms if j.arm == "llm_critic"} == {"common", "rare", "absent"}
    assert {j.regime for j in arms if j.arm in ("stale", "foreign", "hint_outcome")} == {"common"}
    assert not any(":" in j.arm for j in arms if j.regime != "common")
    with pytest.raises(ConfigError, match="exclude each other"):
        scaled(config, quick=True, full=True)
    with pytest.raises(ConfigError, match="--quick and --sweep exclude each other"):
        scaled(config, quick=True, full=False, sweep=True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ablate.noise=step:200"], "is not of the form"),
        (["ablate.noise=steps:20"], "is not of the form"),
        (["ablate.arms=[foreign]", "ablate.foreign_traces=[]"], "needs ablate.foreign_traces"),
        (["ablate.arms=[llm_critic]", "ablate.llm_critic={}"], "needs ablate.llm_critic"),
        (["run.rounds=", "traces.path=x"], "set run.rounds"),
        (["ablate.train={placebo: {learning_rat: 1}}"], r"ablate\.train\.placebo: .*learning_rat"),
        (["ablate.sweep.settings=[{epochs: -1}]", "ablate.sweep.own={}"], r"ablate\.sweep, setting 0 of hint: "),
        (["ablate.llm_critic={use: [llm], lmm: {}}"], r"ablate\.llm_critic: .*lmm"),
        (["rescore.engine.backend=vllm"], "scored by transformers"),
        (["train.recipe.teacher.update=live", "train.targets=in_step"], "stored targets of the initial teacher"),
    ],
)
def test_what_cannot_be_ablated_is_said(overrides, message):
    with pytest.raises(ConfigError, match=message):
        plan_jobs(load_ablation(CONFIG, overrides))


def test_preflight_lists_what_is_owed_and_runs_nothing(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main([CONFIG, "--quick", "--preflight", f"run.dir={folder}", "ablate.seeds=[3,4]"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == f"10 jobs are owed in {folder}" and not folder.exists()
    assert said[0] == "common/shared/seed-3" and "common/random_step/seed-4" in said
    assert main([CONFIG, "--summary", f"run.dir={folder}"]) == 2
    assert "no ablation at" in capsys.readouterr().err


def test_tables_refuse_seeds_on_different_tasks():
    row = lambda task, ok: {"task": task, "success": ok, "errors": ["e"] if not ok else []}  # noqa: E731
    assert table_of([[row("a", True), row("b", False)]]).tolist() == [[1.0, 0.0]]
    assert table_of([[row("a", True), row("b", False)]], ("e", "f")).tolist() == [[0.0, 1.0]]
    with pytest.raises(ValueError, match="different tasks"):
        table_of([[row("a", True)], [row("b", True)]])
