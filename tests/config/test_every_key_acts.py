"""Every key acts: set to a second value, a row, a request, a file, a weight or a refusal differs. A content key does not count."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from conftest import ROOT, STUDENT, TOOLWORLD
from support import observers as see
from support import train_observers as learn

from hintdistill.config.surface import leaves

pytestmark = pytest.mark.usefixtures("one_thread")
BOUND = 216
"""Keys at most, each counted by its path; a key needs a reason to be the next one (tests/support/surface.py)."""


@dataclass(frozen=True)
class Acts:
    """How a key is seen to act."""

    second: str
    """Its second value, as YAML."""
    observer: Callable[[Sequence[str]], Any]
    base: tuple[str, ...] = ()
    """What both sides set; `first` is among it where the default does not do."""
    refusal: bool = False
    """Whether one of the two is refused; otherwise both must be seen."""


@dataclass(frozen=True)
class Told:
    """A test elsewhere shows it, because it takes a run of its own."""

    file: str
    test: str


DATA = TOOLWORLD / "traces.jsonl"
FILES = see.files()
TRACES = (f"traces.path={FILES / 'traces.jsonl'}",)
RULED = (f"traces.path={DATA}", "traces.limit=6", "critic.use=[rules]")
RENDERED = (*RULED, "traces.token_ids=ignore")
RECORDED = (
    f"traces.path={DATA}",
    "traces.limit=3",
    "critic.use=[recorded]",
    f"critic.recorded.path={FILES / 'findings.jsonl'}",
)
TWINNED = (
    f"traces.path={DATA}",
    "traces.limit=20",
    "critic.use=[recorded]",
    f"critic.recorded.path={TOOLWORLD / 'findings.jsonl'}",
    "train.twins.per_finding=3",
)
SCORED = (*RULED, "rescore.top_k=4", "rescore.part_rows=50", "train.watch.steps=1", "train.anchor.candidates=1")
HELD = f"train.hold.path={TOOLWORLD / 'near_misses.jsonl'}"
SAMPLED = (
    f"rollout.environment={see.WORLD}",
    "rollout.sample.episodes=2",
    "rollout.max_steps=3",
    "rollout.max_new_tokens=48",
    "rollout.batch_size=2",
)
MEASURED = (*SAMPLED, "rollout.splits=[validation]", "rollout.limit=2", "rollout.sample.temperature=0")
OVERLAPS = "test_a_loop_that_overlaps_plays_each_round_with_the_student_before_the_last_training"
LOOPED = (
    *SAMPLED,
    "run.rounds=2",
    "rollout.sample.episodes=16",
    "rollout.batch_size=16",
    "rollout.splits=[validation]",
    "rollout.limit=2",
    "rollout.max_steps=6",
    "critic.use=[rules]",
    "train.epochs=0.2",
    "rescore.top_k=4",
    "report.off_target_steps=2",
    "report.html=false",
)
ENGINE = ("rescore.engine={backend: server, base_url: URL1, model: m, max_length: 100, retries: 0}",)
SERVER = ("rollout.sample.server={base_url: URL1, model: m, retries: 0}",)
CRITIC = ("critic.X.base_url=URL1", "critic.X.model=m", "critic.X.retries=0", "critic.X.repair_rounds=0")
ADDITIVE = ("train.recipe.coupling={kind: additive, weight: 0.5}",)
LORA = ("train.lora={rank: 4, alpha: 8}",)
LIVE = ("train.recipe.teacher.update=live", "train.targets=in_step")
GATED = ("traces.path=none",)


def llm(name: str) -> dict[str, Acts | Told]:
    """The keys of an LLM critic, `llm` or `strong`."""
    plain, votes = see.asked(name), see.asked(name, "votes")
    seven = (*CRITIC, "critic.X.votes=3", "critic.X.temperature=0.7", "critic.X.concurrency=1")
    small = (*CRITIC, "critic.X.context_tokens=2300", "critic.X.max_tokens=64")
    return {
        "backend": Acts("local", learn.loaded, ("traces.path=none", f"critic.use=[{name}]"), refusal=True),
        "base_url": Acts("URL2", plain, CRITIC),
        "more_urls": Acts("[URL2]", plain, CRITIC),
        "model": Acts("other", plain, (*CRITIC, "critic.X.context_tokens=16000")),
        "api_key_env": Acts("HINTDISTILL_TEST_KEY", plain, CRITIC),
        "strategy": Acts("step_by_step", plain, CRITIC),
        "prompt": Acts("critic/toolworld.jinja", plain, CRITIC),
        "votes": Acts("2", plain, (*CRITIC, "critic.X.temperature=0.7")),
        "min_agreement": Acts("0.3", votes, seven),
        "temperature": Acts("0.7", plain, CRITIC),
        "max_tokens": Acts("99", plain, CRITIC),
        "context_tokens": Acts("1600", plain, (*CRITIC, "critic.X.max_tokens=64")),
        "overlap": Acts("0", plain, small),
        "tokenizer": Acts(str(STUDENT), plain, small),
        "timeout_s": Acts("0.15", see.asked(name, "slow"), CRITIC),
        "retries": Acts("1", see.asked(name, "down"), (*CRITIC, "critic.X.concurrency=1")),
        "concurrency": Acts("1", plain, CRITIC),
        "structured": Acts("none", plain, CRITIC),
        "fields": Acts("[]", plain, CRITIC),
        "max_findings": Acts("3", plain, CRITIC),
        "repair_rounds": Acts("2", see.asked(name, "broken"), CRITIC),
        "drop_unfound_quotes": Acts("true", see.asked(name, "invented"), CRITIC),
        "seed": Acts("5", plain, CRITIC),
        "price": Acts("[2, 10]", plain, CRITIC),
    }


RUN: dict[str, Acts | Told] = {
    "model": Acts("nowhere", learn.ready("rescore"), refusal=True),
    "dir": Acts("elsewhere", see.place, TRACES),
    "seed": Acts("3", see.read, TRACES),
    "device": Acts("cuda:7", see.forward_calls, GATED, refusal=True),
    "dtype": Acts("bfloat16", see.forward_calls, GATED),
    "threads": Acts("2", see.read, TRACES),
    "trust_remote_code": Told("tests/core/test_trust.py", "test_code_of_a_model_folder_runs_only_where_it_is_set"),
    "template.options": Acts("{stamp: A}", see.injected, (*RENDERED, f"run.template.file={FILES / 'template.jinja'}")),
    "template.file": Acts(str(FILES / "plain.jinja"), see.injected, RENDERED),
    "rounds": Acts("2", learn.loaded, TRACES, refusal=True),
    "initial": Acts("nowhere", see.rescored, SCORED, refusal=True),
}
READ: dict[str, Acts | Told] = {
    "path": Acts(str(FILES / "other.jsonl"), see.read, TRACES),
    "tools": Acts(str(FILES / "tools.json"), see.read, TRACES),
    "format": Acts("atif", see.read, TRACES, refusal=True),
    "student_role": Acts("user", see.read, TRACES),
    "allow_empty_files": Acts(
        "true", see.read, (f"traces.path=[{FILES / 'traces.jsonl'}, {FILES / 'empty.jsonl'}]",), refusal=True
    ),
    "max_record_mb": Acts("1", see.read, (f"traces.path={FILES / 'long.jsonl'}",)),
    "token_ids": Acts("ignore", see.read, (f"traces.path={DATA}", "traces.limit=2")),
    "holdout": Acts("0.9", see.read, (f"traces.path={DATA}", "traces.limit=5")),
    "limit": Acts("1", see.read, TRACES),
}
CRITICS: dict[str, Acts | Told] = {
    "use": Acts("[checker]", see.injected, (*RULED[:2], f"critic.checker={TOOLWORLD / 'world.py'}:label_steps")),
    "escalate": Acts("[failed]", see.escalated, GATED),
    "pass_reward": Acts("0.4", see.escalated, GATED),
    "select": Acts("roots", see.injected, (*RECORDED[:-1], f"critic.recorded.path={FILES / 'findings_marked.jsonl'}")),
    "max_per_trace": Acts("1", see.injected, RECORDED),
    "min_confidence": Acts("0.95", see.injected, RECORDED),
    "prompts": Acts(str(ROOT / "prompts"), see.injected, RULED),
    "allow_hosts": Acts(
        "[example.com]",
        learn.ready("critique"),
        ("critic.use=[llm]", "critic.llm={base_url: http://example.com/v1, model: m}", "critic.secret_scan=off"),
        refusal=True,
    ),
    "secret_scan": Told("tests/critics/test_critic_commands.py", "test_a_recording_server_never_sees_a_planted_secret"),
    "revise": Told("tests/critics/test_critic_revise.py", "test_a_rejected_hint_goes_back_once"),
    "allow_owed": Told(
        "tests/pipeline/test_owed.py", "test_owed_critiques_stop_training_and_a_share_that_is_allowed_does_not"
    ),
    "budget_tokens": Told("tests/critics/test_critic_commands.py", "test_a_budget_stops_the_command_cleanly"),
    "cache": Acts("FOLDER/answers.jsonl", see.cached, CRITIC),
    "rules.checks": Acts("[ignored_error]", see.injected, RULED),
    "recorded.path": Acts(str(FILES / "findings_other.jsonl"), see.injected, RECORDED),
    "recorded.error_classes": Acts("[nothing]", see.injected, RECORDED),
    "checker": Acts(
        f"{FILES / 'suite.py'}:nothing",
        see.injected,
        (*RULED[:2], "critic.use=[checker]", f"critic.checker={TOOLWORLD / 'world.py'}:label_steps"),
    ),
}
INJECT: dict[str, Acts | Told] = {
    "placements": Acts("[observation, system_prompt]", see.injected, RULED),
    "roles": Acts("[system]", see.injected, RULED),
    "formats": Acts('{message: "({hint})"}', see.injected, RULED),
    "hint": Acts("placebo", see.injected, RULED),
    "steps": Acts("every", see.injected, RULED),
    "contexts.solutions": Told("tests/pipeline/test_contexts_run.py", "test_render_says_what_is_missing"),
    "contexts.demonstrations": Told("tests/pipeline/test_contexts_run.py", "test_texts_by_task_in_both_forms"),
    "contexts.file": Told("tests/injection/test_contexts.py", "test_texts_of_a_task_come_from_the_trace_first"),
    "contexts.shown": Told(
        "tests/injection/test_contexts.py", "test_rollouts_of_the_task_are_shown_and_never_ones_own"
    ),
    "contexts.max_tokens": Told("tests/injection/test_contexts.py", "test_a_document_has_a_bound_of_its_own"),
    "whole_step_without_quote": Acts("true", see.injected, RECORDED),
    "candidates": Acts("2", see.injected, RULED),
    "max_hint_tokens": Acts("3", see.injected, RULED),
    "max_hint_share": Told("tests/injection/test_control_tokens.py", "test_a_hint_as_long_as_a_document_is_refused"),
    "max_level": Acts("0", see.injected, RULED),
    "min_quote_match": Acts("0.6", see.injected, RECORDED),
}
RESCORE: dict[str, Acts | Told] = {
    "top_k": Acts("6", see.rescored, SCORED),
    "batch_tokens": Acts("80", see.forward_calls, GATED),
    "offload": Acts("true", see.offloaded, GATED),
    "placebos": Acts("{generic: 2, other_class: 1}", see.rescored, SCORED),
    "part_rows": Acts("2", see.rescored, SCORED),
    "engine.backend": Acts("server", see.served(), ("rescore.engine={base_url: URL1, model: m, max_length: 100}",)),
    "engine.base_url": Acts("URL2", see.served(), ENGINE),
    "engine.more_urls": Acts("[URL2]", see.served(), ENGINE),
    "engine.model": Acts("other", see.served(), ENGINE),
    "engine.dialect": Acts("echo", see.served(), ENGINE),
    "engine.allow_hosts": Acts(
        "[example.com]",
        see.allowed,
        ("traces.path=none", "rescore.engine={backend: server, base_url: http://example.com/v1, model: m}"),
        refusal=True,
    ),
    "engine.api_key_env": Acts("HINTDISTILL_TEST_KEY", see.served(), ENGINE),
    "engine.timeout_s": Acts("0.15", see.served("slow"), ENGINE, refusal=True),
    "engine.retries": Acts("1", see.served("down"), (*ENGINE, "rescore.engine.concurrency=1"), refusal=True),
    "engine.concurrency": Acts("1", see.served(), ENGINE),
    "engine.max_length": Acts("8", see.served(), ENGINE, refusal=True),
    "gate.enabled": Acts("false", see.rescored, (*SCORED, "rescore.gate.min_odds_nats=99")),
    "gate.min_drop_nats": Acts("1.0", see.judged, GATED),
    "gate.min_odds_nats": Acts("4.0", see.judged, GATED),
    "gate.min_odds_margin_nats": Acts("50.0", see.judged, GATED),
    "gate.min_legal_gain": Acts("0.6", see.judged, GATED),
    "gate.max_raise_nats": Acts("0.9", see.judged, GATED),
    "gate.min_student_probability": Acts("0.001", see.judged, GATED),
    "gate.checks": Acts("[leak]", see.judged, GATED),
}
TRAIN: dict[str, Acts | Told] = {
    "recipe": Acts("hint_sd", learn.trained),
    "targets": Acts("in_step", learn.trained),
    "anchor.weight": Acts("0.5", learn.trained),
    "anchor.per_trace": Acts("2", learn.chosen),
    "anchor.candidates": Acts("3", see.rescored, SCORED),
    "anchor.choose": Acts("random", learn.chosen, ("run.seed=4",)),
    "hold.path": Told(
        "tests/pipeline/test_hold.py", "test_each_record_is_a_row_and_nothing_of_it_is_critiqued_or_injected"
    ),
    "hold.split": Told(
        "tests/pipeline/test_rounds_held.py",
        "test_a_rounds_hold_traces_are_played_once_by_the_initial_policy_and_held_in_each",
    ),
    "hold.per_trace": Acts("2", see.rescored, (*SCORED, HELD)),
    "hold.limit": Acts("1", see.rescored, (*SCORED, HELD)),
    "hold.weight": Acts("0", see.rescored, (*SCORED, HELD)),
    "twins.weight": Told("tests/rescoring/test_twin_scores.py", "test_a_twin_is_a_row_of_its_own_and_weighs_as_a_slot"),
    "twins.per_finding": Acts("1", see.injected, RULED),
    "twins.state_changing": Acts("true", see.injected, TWINNED),
    "outcome.baseline": Acts("round", learn.compared),
    "outcome.normalise": Acts("true", learn.compared),
    "outcome.clip": Told("tests/training/test_outcome_training.py", "test_clipping_is_the_sections"),
    "fidelity": Acts("[reserialised]", learn.gone_on("train"), refusal=True),
    "lora.rank": Acts("2", learn.trained, LORA),
    "lora.alpha": Acts("32", learn.trained, LORA),
    "lora.dropout": Acts("0.4", learn.trained, LORA),
    "lora.target_modules": Acts("[q_proj]", learn.trained, LORA),
    "learning_rate": Acts("1e-2", learn.trained),
    "epochs": Acts("1", learn.trained),
    "batch_size": Acts("4", learn.trained),
    "micro_batch_size": Acts("1", learn.trained),
    "branch_tokens": Acts("20", learn.trained, LIVE),
    "gradient_checkpointing": Acts("true", learn.trained),
    "grad_window": Acts("2", learn.trained),
    "grad_window_every": Acts("2", learn.trained, ("train.grad_window=2",)),
    "warmup_ratio": Acts("0.5", learn.trained),
    "schedule": Acts("constant", learn.trained),
    "max_grad_norm": Acts("0.01", learn.trained),
    "weight_decay": Acts("0.5", learn.trained),
    "arguments": Acts("{optim: sgd}", learn.trained),
    "save_steps": Acts("3", learn.trained, ("train.keep_checkpoints=9",)),
    "logging_steps": Acts("2", learn.trained),
    "keep_checkpoints": Acts("2", learn.trained),
    "arriving_adapter": Acts("beside", learn.loaded, ("traces.path=none",), refusal=True),
    "save_dtype": Acts("bfloat16", learn.trained),
    "save": Acts("adapter", learn.trained, LORA),
    "push": Acts("me/student", learn.ready("report"), refusal=True),
    "trackers": Acts("[tensorboard]", learn.trained),
    "watch.steps": Acts("3", see.rescored, SCORED),
    "watch.every": Acts("0", learn.trained),
    "tripwires.action": Acts("stop", learn.trained, ("train.tripwires.max_off_target_kl=1e-12",), refusal=True),
    "tripwires.max_off_target_kl": Acts("1e-12", learn.trained),
    "tripwires.max_heldout_kl": Acts("1e-12", learn.trained),
    "tripwires.min_entropy_ratio": Told("tests/training/test_watch.py", "test_each_bound_stops_with_its_cause"),
    "tripwires.max_end_drop": Told("tests/training/test_watch.py", "test_each_bound_stops_with_its_cause"),
    "tripwires.min_hint_effect": Told("tests/training/test_watch.py", "test_each_bound_stops_with_its_cause"),
}
ROLLOUT: dict[str, Acts | Told] = {
    "environment": Acts(see.WORLD, learn.reported),
    "splits": Acts("[test]", see.measured, MEASURED),
    "limit": Acts("1", see.measured, MEASURED),
    "temperature": Acts("1.0", see.measured, MEASURED),
    "top_p": Acts("0.3", see.measured, (*MEASURED, "rollout.temperature=2")),
    "top_k": Acts("1", see.measured, (*MEASURED, "rollout.temperature=2")),
    "min_p": Acts("0.9", see.measured, (*MEASURED, "rollout.temperature=2")),
    "max_new_tokens": Acts("5", see.measured, MEASURED),
    "max_steps": Acts("1", see.measured, MEASURED),
    "batch_size": Acts("1", see.played, SAMPLED),
    "timeout_s": Acts(
        "0.1", see.measured, (*MEASURED, f"rollout.environment={FILES / 'suite.py'}:Slow", "rollout.limit=1")
    ),
    "sample.split": Acts("test", see.played, SAMPLED),
    "sample.tasks": Acts('["*.noun.*"]', see.played, SAMPLED),
    "sample.episodes": Acts("4", see.played, SAMPLED),
    "sample.per_task": Acts("2", see.played, SAMPLED),
    "sample.temperature": Acts("0", see.played, SAMPLED),
    "sample.top_p": Acts("0.3", see.played, (*SAMPLED, "rollout.sample.temperature=2")),
    "sample.top_k": Acts("1", see.played, (*SAMPLED, "rollout.sample.temperature=2")),
    "sample.min_p": Acts("0.9", see.played, (*SAMPLED, "rollout.sample.temperature=2")),
    "sample.server.base_url": Acts(
        "URL1", see.played, (*SAMPLED, "rollout.sample.server={model: m, max_gap_nats: 99}")
    ),
    "sample.server.allow_hosts": Told("tests/rollouts/test_rollouts_server.py", "test_a_rollout_server_needs_consent"),
    "sample.server.model": Acts("other", see.generated(), SERVER),
    "sample.server.api_key_env": Acts("HINTDISTILL_TEST_KEY", see.generated(), SERVER),
    "sample.server.timeout_s": Acts("0.15", see.generated("slow"), SERVER, refusal=True),
    "sample.server.retries": Acts(
        "1", see.generated("down"), (*SERVER, "rollout.sample.server.concurrency=1"), refusal=True
    ),
    "sample.server.concurrency": Acts("1", see.generated(), SERVER),
    "sample.server.hand_over": Told("tests/rollouts/test_rollouts_adapters.py", OVERLAPS),
    "sample.server.sleep": Told(
        "tests/rollouts/test_rollouts_adapters.py", "test_a_server_sleeps_where_it_can_and_is_named_where_it_cannot"
    ),
    "overlap": Told("tests/rollouts/test_rollouts_adapters.py", OVERLAPS),
    "source": Told(
        "tests/rollouts/test_rollouts_replay.py", "test_what_was_sampled_is_kept_and_another_student_is_asked_anew"
    ),
    "sample.server.max_gap_nats": Acts("99", see.generated("hand_over"), SERVER, refusal=True),
    "stop.min_findings": Told("tests/pipeline/test_rounds.py", "test_no_findings_left_ends_the_loop_in_peace"),
    "stop.min_effect_nats": Acts("1000", see.looped, LOOPED),
    "stop.max_off_target_kl": Told(
        "tests/pipeline/test_rounds.py", "test_a_bound_that_is_crossed_stops_with_the_last_good_weights"
    ),
    "stop.max_changes_drop": Told(
        "tests/rollouts/test_rollouts_effects.py", "test_a_loss_of_state_changing_calls_is_found_and_bounded"
    ),
    "stop.max_failed_share": Acts("0.3", see.collapse, SAMPLED),
}
REPORT: dict[str, Acts | Told] = {
    "html": Acts("false", learn.reported),
    "max_findings": Acts("0", learn.reported),
    "off_target": Acts("{}", learn.reported),
    "off_target_steps": Acts("2", learn.reported),
}
TABLE: dict[str, Acts | Told] = {
    f"{section}.{key}": acts
    for section, table in {
        "run": RUN,
        "traces": READ,
        "critic": CRITICS,
        "critic.llm": llm("llm"),
        "critic.strong": llm("strong"),
        "inject": INJECT,
        "rescore": RESCORE,
        "train": TRAIN,
        "rollout": ROLLOUT,
        "report": REPORT,
    }.items()
    for key, acts in table.items()
}


@cache
def first(observer: Callable[[Sequence[str]], Any], base: tuple[str, ...]) -> tuple[str, Any]:
    """What is seen without the key; many keys share it."""
    return learn.attempt(observer, base)


@pytest.fixture(autouse=True)
def _a_key_in_the_environment(monkeypatch):
    monkeypatch.setenv("HINTDISTILL_TEST_KEY", "another-key")
    for name in ("OPENAI_API_KEY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)


LONG = {"rollout.stop.min_effect_nats"}
"""Keys whose test plays several rounds; it is in `make test-full`."""


@pytest.mark.parametrize("key", [pytest.param(k, marks=pytest.mark.slow) if k in LONG else k for k in TABLE])
def test_a_second_value_is_seen(key):
    acts = TABLE[key]
    if isinstance(acts, Told):
        text = (ROOT / acts.file).read_text()
        tests = [n.name for n in ast.parse(text).body if isinstance(n, ast.FunctionDef)]
        assert acts.test in tests and key.rpartition(".")[2] in text
        return
    before, after = (
        first(acts.observer, acts.base),
        learn.attempt(acts.observer, (*acts.base, f"{written(key)}={acts.second}")),
    )
    assert before != after, f"{key}={acts.second} changes nothing of {str(before)[:500]}"
    refusals = [said for kind, said in (before, after) if kind == "refused"]
    assert bool(refusals) == acts.refusal, refusals


def written(key: str) -> str:
    """The key as its observer takes it."""
    return key.replace("critic.llm.", "critic.X.").replace("critic.strong.", "critic.X.")


def test_every_key_is_in_the_table():
    keys = [leaf.key for leaf in leaves()]
    assert [k for k in keys if k not in TABLE] == [], "say how a new key acts"
    assert [k for k in TABLE if k not in keys] == []


def test_keys_are_few():
    """Counted by path, `critic.strong` (the keys of `critic.llm` again) included."""
    assert len(list(leaves())) <= BOUND
