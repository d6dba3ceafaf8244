"""The outcome reward beside the targeted loss, in the trainer: the same as separate forwards, static weights, refusals, a whole round."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, TOOLWORLD
from support.exact_rows import (
    as_it_is,
    change_of_one_step,
    error,
    flat,
    logprobs,
    loss_and_gradient,
    reference,
    targets_of,
    trainer_of,
)
from support.flat_recipe import train_section
from support.model_kinds import VOCAB, model_of

from hintdistill.config import OutcomeSection, RunConfig, TrainSection
from hintdistill.config.file import load_config
from hintdistill.core.errors import ConfigError, EmptyFunnelError, InputError
from hintdistill.core.model_shape import ModelShape
from hintdistill.objectives.outcome import outcome_loss
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.outcome import outcome_data
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.run import run
from hintdistill.pipeline.store import RunDir
from hintdistill.pipeline.train import selected
from hintdistill.planning.workload import gather
from hintdistill.recipes import load_recipe, require_met
from hintdistill.training.capabilities import available, several_rollouts
from hintdistill.training.passes import places
from hintdistill.training.reward import NO_OUTCOME, OutcomeData, OutcomeRow, TraceOutcome
from hintdistill.training.rows import build_rows
from hintdistill.training.slots import REWARD
from hintdistill.training.stage import read_summary

pytestmark = pytest.mark.usefixtures("one_thread")

ANCHORED = {"anchor": {"weight": 1.0, "min_probability": 0.0}}
LIVE = {"targets": "in_step", "teacher": "live", "support": "full", "divergence": "jsd"}
OUTCOMES = {"long": (0.0, -0.5, 0.5), "short": (1.0, 0.5, 0.5), "middle": (0.0, 0.0, 0.0), "alone": (1.0, 0.8, 0.2)}
"""Trace → reward, advantage and accuracy of its group."""
STEPS = {"long": [(22, 31), (40, 41), (42, 49), (64, 74)], "short": [(25, 37)], "alone": [(4, 9), (30, 36)]}
"""Steps with an outcome: some are those of hints, one is a single token, one lies after a row's last hint, one trace has no hint."""


def additive(weight: float, **more) -> dict:
    return {"recipe": {"preset": "targeted", "coupling": {"kind": "additive", "weight": weight}, **more}}


def outcome_of(model, stored, steps=STEPS) -> OutcomeData:
    """Rows on the plan's traces, whose sampler was not quite the student: some ratios are clipped, on either side."""
    rng, rows = np.random.default_rng(4), []
    ids = {
        t.trace_id: np.concatenate([t.context_ids, t.step_ids])
        for t in sorted(stored, key=lambda t: len(t.context_ids))
    }
    ids["alone"] = rng.integers(3, VOCAB, 40)
    total = sum(end - start for some in steps.values() for start, end in some) + 50  # tokens of rollouts at the mean
    count = sum(map(len, steps.values()))
    for trace, some in steps.items():
        for k, (start, end) in enumerate(some):
            with torch.no_grad():
                now = logprobs(model, ids[trace][:end], end - start)
            sampled = torch.as_tensor(ids[trace][start:end])
            then = now.gather(-1, sampled[:, None])[:, 0].float()
            then = then + 0.3 * torch.from_numpy(rng.normal(size=len(then)).astype(np.float32))
            row = torch.as_tensor(ids[trace][:end], dtype=torch.int64)
            rows.append(
                OutcomeRow(f"outcome:{trace}:{k}", trace, k, row, end - start, then, OUTCOMES[trace][1], count / total)
            )
    return OutcomeData({t: TraceOutcome(*o, 4) for t, o in OUTCOMES.items()}, rows, "key")


def reward_alone(model, outcome: OutcomeData) -> tuple[torch.Tensor, torch.Tensor]:
    """The reward's loss and gradient by a forward pass of each row."""
    model.train()
    model.zero_grad()
    now = [logprobs(model, r.ids, r.length).gather(-1, r.ids[-r.length :, None])[:, 0] for r in outcome.rows]
    value, _ = outcome_loss(
        torch.cat(now),
        torch.cat([r.behaviour for r in outcome.rows]),
        torch.tensor([r.advantage for r in outcome.rows]),
        [r.length for r in outcome.rows],
        weights=torch.tensor([r.weight for r in outcome.rows]),
    )
    value.backward()
    return value.item(), flat(model)


def fresh(kind: str):
    model = copy.deepcopy(model_of(kind))
    if kind.endswith("lora"):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora" in name)
    return model


# -- the loss ----------------------------------------------------------------------------------------------------------------------


CASES = {
    "stored": ("qwen3", {}),
    "live": ("llama", LIVE),
    "checkpointing": ("qwen3", {**LIVE, "gradient_checkpointing": True}),
    "lora": ("qwen3_tied_lora", LIVE),
    "sliding": ("gemma3", {}),
    "padded": ("qwen3_next", {}),
}


@pytest.mark.filterwarnings("ignore::hintdistill.engines.sharing.SharingWarning")
@pytest.mark.parametrize("case", CASES)
def test_a_step_is_what_separate_forwards_say(case, tmp_path):
    kind, config = CASES[case]
    model, w = fresh(kind), 0.3
    stored = targets_of(model)
    outcome = outcome_of(model, stored)
    terms = trainer_of(model, stored, tmp_path, **config, **ANCHORED)
    distilled, g = reference(terms, model, lambda: as_it_is(model), lambda: as_it_is(model))
    rewarded, h = reward_alone(model, outcome)
    trainer = trainer_of(model, stored, tmp_path, outcome, **config, **ANCHORED, **additive(w))
    loss, found = loss_and_gradient(trainer)
    wanted = (1 - w) * h + w * g
    assert float(h.norm()) > 1e-2
    assert loss == pytest.approx((1 - w) * rewarded + w * distilled, abs=2e-6)
    assert error(found, wanted) <= (5e-6 if case in ("padded", "lora") else 2e-6)
    # one pass covers all: a trace with hints has no second row, and the one without has one of its own
    assert [r.key for r in trainer.train_dataset.rows] == [*(r.key for r in terms.train_dataset.rows), "alone"]
    logged = trainer.meter.drain()
    assert logged["reward_loss"] == pytest.approx(rewarded, abs=2e-6)
    assert logged["distill_loss"] == pytest.approx(distilled, abs=2e-6)
    assert 0 < logged["reward/ratio_clipped"] < 1 and logged["reward/behaviour_gap"] > 0.1
    assert logged["reward/advantage_abs"] == pytest.approx(np.mean([abs(r.advantage) for r in outcome.rows]))


def test_weight_one_is_the_terms_alone_and_weight_nought_the_reward_alone(tmp_path):
    model = fresh("llama")
    stored = targets_of(model)
    outcome = outcome_of(model, stored)
    alone, g = loss_and_gradient(trainer_of(model, stored, tmp_path, **ANCHORED))
    one, found = loss_and_gradient(trainer_of(model, stored, tmp_path, outcome, **ANCHORED, **additive(1.0)))
    assert one == pytest.approx(alone, rel=2e-6) and error(found, g) <= 2e-6
    rewarded, h = reward_alone(model, outcome)
    nought, found = loss_and_gradient(trainer_of(model, stored, tmp_path, outcome, **ANCHORED, **additive(0.0)))
    assert nought == pytest.approx(rewarded, rel=1e-5) and error(found, h) <= 2e-6


def test_clipping_is_the_sections(tmp_path):
    model = fresh("llama")
    stored = targets_of(model)
    outcome, open_ = outcome_of(model, stored), {"outcome": {"clip": [None, None]}}
    clipped = loss_and_gradient(trainer_of(model, stored, tmp_path, outcome, **additive(0.0)))
    free = loss_and_gradient(trainer_of(model, stored, tmp_path, outcome, **additive(0.0), **open_))
    assert clipped[0] != free[0] and error(clipped[1], free[1]) > 1e-2


def test_a_window_over_the_whole_trace_is_exact(tmp_path):
    model = fresh("llama")
    stored = targets_of(model)
    outcome = outcome_of(model, stored)
    exact, g = loss_and_gradient(trainer_of(model, stored, tmp_path / "a", outcome, **LIVE, **additive(0.5)))
    for width in (0, 1000):
        windowed = trainer_of(model, stored, tmp_path / str(width), outcome, **LIVE, **additive(0.5), grad_window=width)
        loss, found = loss_and_gradient(windowed)
        assert loss == pytest.approx(exact, abs=2e-6)
        assert (error(found, g) <= 2e-6) == (width == 1000)


def one_step(tmp_path, micro: int, config: dict) -> torch.Tensor:
    """What one optimiser step of plain SGD over eight rows does to the weights; some have no outcome and some no hint."""
    model, stored, rows = fresh("llama"), [], []
    for seed in (0, 1):
        some = targets_of(model, seed)
        ended = outcome_of(model, some)
        stored += [_renamed(t, f"{t.trace_id}{seed}") for t in some]
        rows += [_renamed(r, f"{r.trace_id}{seed}") for r in ended.rows]
    outcomes = {f"{t}{seed}": TraceOutcome(*o, 4) for t, o in OUTCOMES.items() for seed in (0, 1)}
    config = {**config, "schedule": "constant", "batch_size": 8, "micro_batch_size": micro, "max_grad_norm": 1e9}
    trainer = trainer_of(model, stored, tmp_path, OutcomeData(outcomes, rows), **config, **additive(0.4))
    return change_of_one_step(trainer, rows=8)


def _renamed(of, trace_id: str):
    return replace(of, trace_id=trace_id, key=f"{trace_id}/{of.key}")


@pytest.mark.parametrize("normalize", ["per_row", "kept"])
def test_a_batch_of_eight_is_eight_batches_of_one(normalize, tmp_path):
    config = {**LIVE, **ANCHORED, "normalize": normalize}
    whole, parts = (one_step(tmp_path / str(m), m, config) for m in (8, 1))
    assert float(whole.norm()) > 100 and error(parts, whole) <= 2e-6


# -- rows --------------------------------------------------------------------------------------------------------------------------


def test_without_an_outcome_rows_are_what_they_were(tmp_path):
    """Bit for bit, and so is what keys are made of."""
    model = fresh("llama")
    stored = targets_of(model)
    outcome = outcome_of(model, stored)
    off = build_rows(stored, train_section(**ANCHORED))
    on = build_rows(stored, train_section(**ANCHORED, **additive(0.5)), outcome)
    told = build_rows(stored, train_section(**ANCHORED), OutcomeData(outcome.outcomes))
    weights = {s.key: s.weights for _, s in places(on)}
    factor = (len(places(off)) + len(outcome.rows)) / len(places(off))
    for before, now, row in zip(off, told, on, strict=False):
        assert torch.equal(before.ids, now.ids) and torch.equal(row.ids[: len(before.ids)], before.ids)
        for a, b in zip(before.slots, now.slots, strict=True):
            more = {"reward", "advantage", "group_acc", "key_span", "rollout_ppl_S", "rollout_ppl_T"}
            assert a.outcome is None and set(b.facts()) - set(a.facts()) == more
            for name, values in a.weights.items():
                assert torch.equal(values, b.weights[name])
                torch.testing.assert_close(weights[a.key][name], values * factor)
    slots = [s for _, s in places(on)]
    mean = sum(float(s.weights[REWARD].sum()) for s in slots if s.kind == "outcome") / len(slots)
    tokens = sum(r.length for r in outcome.rows)
    assert mean == pytest.approx(tokens / (tokens + 50))
    assert (
        "outcome" not in TrainSection().model_dump()
        and "outcome" in TrainSection(outcome={"baseline": "round"}).model_dump()
    )
    assert TrainSection.model_validate(TrainSection(outcome={"clip": [0.1, None]}).model_dump()).outcome.clip == (
        0.1,
        None,
    )


def test_anchors_may_come_from_traces_without_an_outcome(tmp_path):
    """As those of held tasks do in the ablation; hints whose weights read what is not known are a named error."""
    model = fresh("llama")
    stored = targets_of(model)
    anchor = next(t for t in stored if t.kind == "anchor")
    stored.append(replace(anchor, key="held", trace_id="held"))
    outcome = outcome_of(model, stored)
    loss, g = loss_and_gradient(trainer_of(model, stored, tmp_path, outcome, **ANCHORED, **additive(0.5)))
    assert np.isfinite(loss) and float(g.norm()) > 0
    del outcome.outcomes["middle"]
    with pytest.raises(KeyError, match="reward"):
        loss_and_gradient(trainer_of(model, stored, tmp_path, OutcomeData(outcome.outcomes), recipe="scope"))


def test_rows_must_hold_a_number_for_each_token():
    model = fresh("llama")
    stored = targets_of(model)
    outcome = outcome_of(model, stored)
    short = OutcomeRow(**{**vars(outcome.rows[0]), "behaviour": outcome.rows[0].behaviour[:-1]})
    with pytest.raises(InputError, match="8 log-probabilities for 9 sampled tokens"):
        build_rows(stored, TrainSection(**additive(0.5)), OutcomeData(outcome.outcomes, [short]))


@pytest.mark.parametrize("name", ["rlsd", "dasd", "scope"])
def test_other_couplings_read_the_same_facts(name, tmp_path):
    """The advantage changes what they train on; `rlsd` multiplies it, `dasd` adds to it, `scope` routes rows by the reward."""
    model = fresh("llama")
    stored = targets_of(model)
    recipe = {"recipe": {"preset": name, "data": {"hint": {"kind": "feedback"}}}}
    require_met(TrainSection(**recipe).effective_recipe, available(TrainSection(**recipe)))
    right = OutcomeData({t: TraceOutcome(*o, 4) for t, o in OUTCOMES.items()})
    wrong = OutcomeData({t: TraceOutcome(1 - r, -a, 1 - g, 4) for t, (r, a, g) in OUTCOMES.items()})
    _, g = loss_and_gradient(trainer_of(model, stored, tmp_path, right, **recipe))
    _, h = loss_and_gradient(trainer_of(model, stored, tmp_path, wrong, **recipe))
    assert torch.isfinite(g).all() and float(g.norm()) > 0 and error(g, h) > 0.1


# -- what is refused ---------------------------------------------------------------------------------------------------------------


def from_files(folder, traces: list[dict], *overrides: str):
    """A run over these traces, up to the training."""
    folder.mkdir(exist_ok=True)
    path = folder / "traces.jsonl"
    path.write_text("".join(json.dumps(t) + "\n" for t in traces))
    settings = [
        f"traces.path={path}",
        "traces.holdout=0",
        "critic.use=[rules]",
        "rollout.environment=null",
        "report.off_target={}",
        "train.epochs=1",
        "train.recipe.coupling={kind: additive, weight: .5}",
        "run.device=cpu",
        *overrides,
    ]
    config = load_config(ROOT / "configs" / "quickstart.yaml", settings)
    run(config, folder / "run", until="train", console=Console(quiet=True))


def some_traces(n: int) -> list[dict]:
    return [json.loads(line) for line in (TOOLWORLD / "traces.jsonl").read_text().splitlines()[:n]]


def test_a_missing_reward_is_said_before_anything_is_asked(tmp_path):
    traces = some_traces(3)
    del traces[1]["reward"]
    with pytest.raises(InputError, match=f"trace {traces[1]['id']} has the reward None, and 0 others of 3") as caught:
        from_files(tmp_path, traces)
    assert "train.recipe.coupling.kind=none" in caught.value.hint
    assert (
        not (tmp_path / "run" / "critiques.jsonl").exists()
        and not (tmp_path / "run" / "index" / "critique.json").exists()
    )


def test_rollouts_that_say_nothing_are_refused_early(tmp_path):
    traces = some_traces(3)
    for n, trace in enumerate(traces):
        trace |= {"task_id": f"task{n}"}
    with pytest.raises(EmptyFunnelError, match="each task was played only once") as caught:
        from_files(tmp_path / "a", traces)
    assert "per_task" in caught.value.hint
    for n, trace in enumerate(traces):
        trace |= {"task_id": "one", "reward": float(n)}
        for message in trace["messages"]:
            message.pop("logprobs", None)
    with pytest.raises(EmptyFunnelError, match="unrecorded"):
        from_files(tmp_path / "b", traces)


def test_what_a_run_cannot_have_is_refused_by_its_config(tmp_path):
    for recipe in ("train.recipe=ptd_po", "train.recipe.coupling={kind: additive, weight: .5}"):
        loop = load_config(ROOT / "configs" / "rounds.yaml", [recipe])
        with pytest.raises(ConfigError, match=r"several_rollouts .*per_task=4; or train.outcome.baseline=round"):
            run(loop, tmp_path / "run")
        assert not (tmp_path / "run").exists()
        for change in ("rollout.sample.per_task=4", "train.outcome.baseline=round"):
            config = load_config(ROOT / "configs" / "rounds.yaml", [recipe, change])
            require_met(config.train.effective_recipe, available(config.train, several=several_rollouts(config)))
    with pytest.raises(ConfigError, match=r"between 0 and 1, not 1\.5"):
        load_recipe({"preset": "targeted", "coupling": {"kind": "additive", "weight": 1.5}})
    require_met(load_recipe("sdpo"), available(TrainSection(recipe="sdpo")))
    assert NO_OUTCOME.key is None and not NO_OUTCOME.rows


# -- a whole run -------------------------------------------------------------------------------------------------------------------


SMALL = [
    "run.rounds=1",
    "rollout.sample.episodes=32",
    "rollout.sample.per_task=4",
    "rollout.batch_size=32",
    "rollout.splits=[validation]",
    "rollout.limit=4",
    "train.epochs=1",
    "train.batch_size=8",
    "train.logging_steps=1",
    "train.watch.steps=4",
    "report.off_target_steps=4",
    "report.html=false",
    "train.recipe.coupling={kind: additive, weight: .5}",
]


def metrics_of(run) -> list[dict]:
    (file,) = run.glob("train/*/metrics.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_round_trains_on_both(tmp_path):
    """Four rollouts a task, with the targeted loss and the outcome reward on the same ones."""
    config = load_config(ROOT / "configs" / "rounds.yaml", SMALL)
    run(config, tmp_path / "run", console=Console(quiet=True))
    folder = tmp_path / "run" / "rounds" / "01" / "run"
    logged = [r for r in metrics_of(folder) if "loss" in r]
    names = {
        "reward_loss",
        "distill_loss",
        "reward/ratio_mean",
        "reward/ratio_clipped",
        "reward/advantage_abs",
        "reward/behaviour_gap",
    }
    assert logged and all(names <= set(r) for r in logged)
    for r in logged:
        assert r["loss"] == pytest.approx(0.5 * (r["reward_loss"] + r["distill_loss"]), abs=2e-4)
    # before the first update the student is who sampled
    assert logged[0]["reward/ratio_mean"] == pytest.approx(1.0, abs=1e-3) and logged[0]["reward/behaviour_gap"] < 1e-3
    summary = read_summary(folder / "student")
    assert summary.outcome_rows > summary.hint_rows > 0
    assert (
        f"a policy gradient on {summary.outcome_rows} sampled steps" in (folder / "student" / "README.md").read_text()
    )
    # the same once more is trained already, and what it was trained on is in its key
    run(config, tmp_path / "run", resume=True, console=Console(quiet=True))
    assert len([r for r in metrics_of(folder) if "loss" in r]) == len(logged)
    ctx = RunContext(RunConfig.model_validate(RunDir(folder).manifest()["config"]), RunDir(folder), Console(quiet=True))
    data = outcome_data(ctx)
    assert len(data.rows) == summary.outcome_rows and data.key == outcome_data(ctx).key
    assert all(r.ids.untyped_storage().size() <= 8 * max(len(o.ids) for o in data.rows) for r in data.rows)
    # and the plan of this folder has the trainer's rows
    planned = gather(ctx.config, ModelShape.of(ctx.model_folder)).rows
    real = build_rows(sorted(selected(ctx), key=lambda t: t.key), ctx.config.train, data)
    counted = sorted((len(r.ids) - 1, sum(s.length for s in r.slots)) for r in real)
    assert sorted((r.tokens, r.scored) for r in planned) == counted
    keys = {data.key}
    for change in ({"baseline": "round"}, {"clip": [0.1, None]}, {"normalise": True}):
        train = ctx.config.train.model_copy(update={"outcome": OutcomeSection(**change)})
        ctx.config = ctx.config.model_copy(update={"train": train})
        keys.add(outcome_data(ctx).key)
    assert len(keys) == 4
    ctx.config = ctx.config.model_copy(update={"train": TrainSection()})
    assert outcome_data(ctx) is NO_OUTCOME
