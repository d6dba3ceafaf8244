"""The plan against what is really read and really held: tokens exactly, memory within a stated share, no duration."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, STUDENT, TOOLWORLD
from typer.testing import CliRunner

from hintdistill.cli.main import app
from hintdistill.config.file import validate
from hintdistill.core.errors import DoesNotFitError, ModelError
from hintdistill.core.lines import Histogram, TimeLine, fit
from hintdistill.core.machine import Growth, Peak, Room, grow_by
from hintdistill.core.model_shape import ModelShape
from hintdistill.engines.token_counts import ScoringUse, count_tokens, operations, pairs, scoring_peak
from hintdistill.engines.transformers import TransformersEngine
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.run import run
from hintdistill.pipeline.store import RunDir
from hintdistill.planning.estimate import _Planner, forecast
from hintdistill.planning.measure import Measured
from hintdistill.planning.workload import gather
from hintdistill.training.fits import by_length, largest, load_of, longest_trace, options, require_fits, setup_of
from hintdistill.training.memory import Load, TrainSetup, saved_bytes, train_peak
from hintdistill.training.row_lengths import RowLength, StepIds, micro_batches, row_lengths

pytestmark = pytest.mark.usefixtures("one_thread")
GB = 1_000_000_000


def config(**sections):
    """Twelve traces of the example, critics that cost nothing, every hint accepted."""
    base = {
        "run": {"model": str(STUDENT), "dtype": "float32", "device": "cpu"},
        "traces": {"path": [str(TOOLWORLD / "traces.jsonl")], "limit": 12},
        "critic": {"use": ["rules"], "prompts": str(TOOLWORLD / "prompts")},
        "rescore": {"gate": {"enabled": False, "min_student_probability": 0.0}, "batch_tokens": 2048},
        "train": {"batch_size": 4, "micro_batch_size": 2},
    }
    for name, values in sections.items():
        base[name] = base.get(name, {}) | values
    return validate(base)


@pytest.fixture(scope="module")
def shape():
    return ModelShape.of(STUDENT)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A run up to rescore, and its configuration."""
    folder = tmp_path_factory.mktemp("plan") / "run"
    settings = config(run={"dir": str(folder)})
    run(settings, folder, until="rescore", console=Console(quiet=True))
    return settings


# -- tokens -----------------------------------------------------------------------------------------------------------


def test_tokens_are_what_the_engine_reads(shape):
    settings = config()
    ahead = gather(settings, shape)
    engine = TransformersEngine.load(STUDENT, "float32", "cpu", settings.rescore.batch_tokens)
    for call in ahead.calls:
        engine.score(call, 4)
    counted = count_tokens(ahead.calls, shape, settings.rescore.batch_tokens)
    assert (counted.asked, counted.computed) == (engine.saved.asked, engine.saved.computed)
    assert counted.computed < counted.asked
    assert counted.scored == sum(r.end - r.start for call in ahead.calls for r in call)


def test_rows_are_those_of_the_trainer(scored, shape):
    from hintdistill.pipeline.train import selected
    from hintdistill.training.rows import build_rows

    ahead = gather(scored, shape)
    assert ahead.source.startswith("targets of")
    ctx = RunContext(scored, RunDir(scored.run.dir), Console(quiet=True))
    real = build_rows(sorted(selected(ctx), key=lambda t: t.key), scored.train)
    assert sorted((r.tokens, r.scored) for r in ahead.rows) == sorted(
        (len(r.ids) - 1, sum(s.length for s in r.slots)) for r in real
    )
    # the branches that an in-step teacher would read are those of the trainer's own forest
    from hintdistill.training.passes import forest

    tree = forest(real, [(i, s) for i, r in enumerate(real) for s in r.slots if len(s.block)])
    assert sum(r.branch_tokens for r in ahead.rows) == tree.computed


def test_without_targets_every_injection_counts(scored, shape):
    before = gather(config(), shape)
    assert "every hint is assumed to be accepted" in before.source
    assert before.calls and len(before.rows) >= len(gather(scored, shape).rows)
    assert before.lengths["hint"].count == gather(scored, shape).lengths["hint"].count


def test_an_llm_critic_is_estimated_and_never_asked(shape):
    llm = {
        "use": ["llm"],
        "llm": {"backend": "local", "model": str(TOOLWORLD / "critic"), "prompt": "critic/toolworld.jinja"},
    }
    ahead = gather(config(critic=llm), shape)
    assert ahead.source.startswith("estimated, because the plan does not ask llm: findings of rules")
    assert ahead.asked["llm"]["requests"] >= 12
    assert ahead.asked["llm"]["prompt_tokens"] > 0


def test_a_run_folder_is_left_as_it_is(scored, shape):
    def state():
        return {str(p): p.stat().st_mtime_ns for p in sorted(os.scandir(scored.run.dir), key=lambda e: e.name)}

    before = state()
    gather(scored, shape)
    assert state() == before


def test_slots_of_one_trace_share_a_row_where_they_can():
    a = StepIds("x", [1, 2, 3], [4, 5], insert_at=2, block=[9, 9])
    b = StepIds("x", [1, 2, 3, 4, 5, 6], [7])
    c = StepIds("x", [1, 8], [8])
    found = row_lengths([a, b, c])
    # [1 2 3 4 5 6 7], the last one unread; the hint's branch: two tokens of it, one of context, one of the step
    assert found == [RowLength("x", 6, 3, 2, ((2, 4),)), RowLength("x", 2, 1)]


def test_pairs_are_the_keys_that_tokens_attend_to():
    assert pairs(0, 4) == 8
    assert pairs(10, 4) == 40 + 8


def test_micro_batches_follow_the_trainers_order():
    settings = config(train={"batch_size": 4, "micro_batch_size": 2, "epochs": 2})
    found = micro_batches([5, 1, 9, 3, 7, 2], settings.train, settings.run.seed)
    assert len(found) == 6
    assert sorted(i for batch in found[:3] for i in batch) == list(range(6))


def test_rows_are_packed_by_length_up_to_a_budget():
    assert by_length([3, 9, 4, 1], 8) == [[9], [4, 3, 1]]
    assert Histogram.of([]) == Histogram(0, 0, 0, 0, 0, 0, 0)
    assert Histogram.of([1, 2, 3, 10]).median in (2, 3)


# -- the model's shape ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["llama", "qwen3"])
def test_parameters_are_counted_from_a_config_alone(tiny_model, arch):
    model = tiny_model(arch)
    found = ModelShape.from_config(model.config)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.body == sum(p.numel() for n, p in model.named_parameters() if "layers" in n and p.ndim == 2)


def test_parameters_are_counted_from_the_stored_weights(shape, student_engine):
    assert shape.parameters == sum(p.numel() for p in student_engine.model.parameters())
    assert shape.tied


def test_adapters_are_counted_as_peft_makes_them(shape):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(STUDENT), LoraConfig(r=4, target_modules="all-linear"))
    made = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert shape.adapter(4, "all-linear") == made
    assert shape.adapter(4, ("q_proj",)) < made


def test_a_config_without_widths_is_refused():
    from transformers import GPT2Config, PretrainedConfig

    with pytest.raises(ModelError, match="has no hidden_size"):
        ModelShape.from_config(PretrainedConfig())
    assert ModelShape.from_config(GPT2Config()).layers == 12


# -- memory -----------------------------------------------------------------------------------------------------------


class Kept:
    """Bytes that autograd keeps, weights aside; a storage counts once."""

    def __init__(self, model):
        self.weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.found, self.held = {}, []

    def __enter__(self):
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda x: x)
        self.hooks.__enter__()
        return self

    def pack(self, x):
        store = x.untyped_storage()
        if store.data_ptr() not in self.weights:
            self.found[store.data_ptr()] = store.nbytes()
            self.held.append(x)
        return x

    def __exit__(self, *args):
        self.hooks.__exit__(*args)

    @property
    def bytes(self):
        return sum(self.found.values())


@pytest.mark.parametrize(("arch", "narrow"), [("llama", True), ("qwen3", True), ("qwen3", False)])
def test_activations_are_what_autograd_keeps(arch, narrow):
    """Within 5 %: ids, facts and the like are not counted. Wide enough that they are small."""
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

    from hintdistill.engines.shared_prefix import shared_attention
    from hintdistill.training.passes import Passes

    kind = {"llama": LlamaConfig, "qwen3": Qwen3Config}[arch]
    model = AutoModelForCausalLM.from_config(
        kind(
            vocab_size=512,
            hidden_size=128,
            intermediate_size=320,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=1024,
        )
    )
    made = [training_row(n, 20) for n in (200, 300)]
    with shared_attention(model), Kept(model) as kept:
        done = Passes(model, "shared_prefix", 4096, narrow=narrow).student(model, made, ride=False)
    assert done.hidden
    load = Load(498, 40 if narrow else 498)
    counted = saved_bytes(ModelShape.from_config(model.config), TrainSetup(trained=1), load)
    assert counted == pytest.approx(kept.bytes, rel=0.05)


def training_row(tokens, step):
    """A row with one slot at its end."""
    from hintdistill.training.rows import TraceRow
    from hintdistill.training.slots import Slot as TrainingSlot

    ids = torch.randint(0, 512, (tokens,), generator=torch.Generator().manual_seed(tokens))
    none = torch.zeros(0)
    slot = TrainingSlot(
        f"s{tokens}",
        "hint",
        tokens - step,
        step,
        tokens - step,
        torch.zeros(0, dtype=torch.int64),
        ids[-step:],
        {},
        (0, step),
        none,
        none,
        none,
        -1,
    )
    return TraceRow(f"r{tokens}", ids, (slot,))


def test_a_pass_without_gradient_holds_what_is_counted(shape, student_engine):
    """Live bytes at the worst moment, within 15 %: what the allocator keeps beyond that is not a property of the model."""
    from torch.profiler import ProfilerActivity, profile

    settings = config()
    call = gather(settings, shape).calls[0]
    read = count_tokens([call], shape, student_engine.batch_tokens)
    student_engine.score(call[:2], 4)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen, torch.inference_mode():
        student_engine._hidden(call, None)
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    peak = scoring_peak(shape, read, ScoringUse(weight_bytes=4, step=1, top_k=4))
    counted = sum(peak.parts.get(n, 0) for n in ("keys and values", "activations", "masks", "hidden states"))
    assert counted == pytest.approx(int(live.max()), rel=0.15)


CHILD = """
import ctypes, gc, json, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from transformers import AutoModelForCausalLM, Qwen3Config
from hintdistill.engines.shared_prefix import shared_attention
from hintdistill.objectives.chunked import HeadSpec
from hintdistill.objectives.chunked_support import linear_kept
from hintdistill.training.passes import Passes
sys.path[:0] = ["tests", "tests/planning"]
from test_plan import training_row
checkpointing = sys.argv[1] == "1"
model = AutoModelForCausalLM.from_config(Qwen3Config(vocab_size=512, hidden_size=256, intermediate_size=768, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=4096, tie_word_embeddings=True))
model.train()
if checkpointing:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
passes = Passes(model, "shared_prefix", 4096, narrow=not checkpointing)
optimizer = torch.optim.AdamW(model.parameters())
def step(tokens):
    with shared_attention(model):
        done = passes.student(model, [training_row(n, 20) for n in tokens], ride=False)
        hidden = torch.cat(list(done.hidden.values()))
        linear_kept(hidden, HeadSpec(model.lm_head.weight), torch.zeros(len(hidden), 1, dtype=torch.long)).sum().backward()
def figure(key):
    return 1024 * int(next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key)).split()[1])
step([64])
model.zero_grad(set_to_none=True)
gc.collect(); ctypes.CDLL(None).malloc_trim(0)
before = figure("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
for _ in range(2):
    step([1501, 1501])
    optimizer.step(); optimizer.zero_grad(set_to_none=True)
print(json.dumps({"peak": figure("VmHWM") - before}))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is read from /proc")
@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_takes_the_memory_that_is_counted(checkpointing):
    """Resident memory of two real steps, within 15 %, under an allocator that gives freed blocks back at once."""
    shape = ModelShape.from_config(_qwen(256, 768, 4))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(int(checkpointing))],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    setup = TrainSetup(trained=shape.parameters, checkpointing=checkpointing, kinds=1)
    parts = train_peak(shape, setup, Load(3000, 40)).parts
    counted = sum(v for k, v in parts.items() if k not in ("program", "weights"))
    assert counted == pytest.approx(json.loads(done.stdout.splitlines()[-1])["peak"], rel=0.15)


def _qwen(hidden, intermediate, layers):
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=512,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )


@pytest.mark.parametrize(
    ("train", "part", "times"),
    [
        ({"targets": "in_step"}, "frozen copies", 1),
        # a running average of what is trained; the ratio divides by what the sampler recorded, not by a second model
        ({"recipe": "hint_sd"}, "frozen copies", 1),
        ({"recipe": "sdpo"}, "frozen copies", 1),
        ({}, "optimizer moments", 2),
    ],
)
def test_what_is_kept_twice_is_counted(shape, train, part, times):
    settings = config(train=train)
    peak = train_peak(shape, setup_of(shape, settings.run, settings.train, True), Load(1000, 50, 200))
    assert peak.parts[part] == times * 4 * shape.parameters


def test_adapters_and_checkpointing_take_less(shape):
    setup = TrainSetup(trained=shape.parameters, accumulates=True)
    load = Load(3000, 100)
    totals = [train_peak(shape, setup, load).total] + [
        train_peak(shape, o, load).total for _, o in options(shape, setup)
    ]
    assert totals == sorted(totals, reverse=True)
    assert totals[-1] < totals[0]


# -- what fits --------------------------------------------------------------------------------------------------------


def test_the_longest_trace_is_the_longest(shape):
    setup = TrainSetup(trained=shape.parameters)
    longest = longest_trace(shape, setup, Load(0, 30), Room(GB, "given", beside_program=False))
    assert (
        train_peak(shape, setup, Load(longest, 30)).total <= GB < train_peak(shape, setup, Load(longest + 1, 30)).total
    )
    assert largest(lambda n: n <= 12345) == 12345
    assert largest(lambda n: n <= -1) == 0


def test_a_trace_that_does_not_fit_stops_before_the_first_step(shape):
    some = [RowLength("short", 200, 30), RowLength("huge", 60_000, 30)]
    settings = config(train={"micro_batch_size": 1})
    with pytest.raises(
        DoesNotFitError, match=r"1 traces are too long .*huge \(60,000 tokens\); the longest that fits has"
    ) as caught:
        require_fits(some, shape, settings, Room(2 * GB, "free in a test"))
    assert caught.value.exit_code == 3
    assert "gradient_checkpointing=true" in caught.value.hint
    require_fits(some, shape, settings, Room(100 * GB, "free in a test"))
    require_fits([], shape, settings, Room(1, "free in a test"))


def test_too_many_rows_at_once_are_named(shape):
    some = [RowLength(f"t{n}", 9_000, 30) for n in range(8)]
    with pytest.raises(DoesNotFitError, match="training on 8 rows at once needs about") as caught:
        require_fits(
            some, shape, config(train={"batch_size": 8, "micro_batch_size": 8}), Room(2 * GB, "free in a test")
        )
    assert "train.micro_batch_size=1" in caught.value.hint


def test_what_fits_by_the_plan_is_never_refused(shape):
    settings = config(train={"micro_batch_size": 1})
    setup = setup_of(shape, settings.run, settings.train, True)
    for tokens in (100, 1000, 10_000, 50_000):
        row = RowLength("t", tokens, 40)
        need = train_peak(shape, setup, load_of([row])).total
        require_fits([row], shape, settings, Room(need, "just enough", beside_program=False))


def test_training_asks_before_it_loads_the_model(scored, monkeypatch):
    from hintdistill.pipeline import train
    from hintdistill.training import fits

    monkeypatch.setattr(fits, "room", lambda device: Room(1000, "free in a test"))
    ctx = RunContext(scored, RunDir(scored.run.dir), Console(quiet=True))
    with pytest.raises(DoesNotFitError, match="no trace fits"):
        train.run(ctx)


# -- time and the command ---------------------------------------------------------------------------------------------


def test_a_line_goes_through_its_points():
    points = [(x, p, 0.5 + 2e-9 * x + 1e-3 * p) for x, p in ((1e9, 10.0), (4e9, 5.0), (9e9, 80.0), (2e9, 400.0))]
    line = fit(points)
    assert [line.seconds(1, x, p) for x, p, _ in points] == pytest.approx([s for *_, s in points])
    falling = fit([(1e9, 0.0, 2.0), (2e9, 0.0, 1.0)])
    assert min(falling.fixed, falling.per_operation, falling.per_position) >= 0


@pytest.mark.slow
def test_the_command_measures_and_says_all(tmp_path):
    import yaml

    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config(traces={"limit": 6}).model_dump(mode="json", exclude={"ablate"})))
    done = CliRunner().invoke(app, ["plan", str(path), "--json", "--memory", "8"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    stages = {s["stage"]: s for s in found["stages"]}
    assert set(stages) == {"rescore", "train", "report"}
    for stage in stages.values():
        assert stage["tokens"] > 0 and stage["seconds"] > 0 and stage["fits"]
        assert stage["peak_bytes"] == sum(stage["parts"].values())
    assert found["sharing"] == "shared_prefix"
    assert found["recommended"]["settings"]["train.micro_batch_size"] == 4
    assert not list(tmp_path.glob("run*"))


def test_the_table_names_what_is_too_long(tmp_path):
    import yaml

    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config(traces={"limit": 6}).model_dump(mode="json", exclude={"ablate"})))
    done = CliRunner().invoke(app, ["plan", str(path), "--no-measure", "--memory", "0.428"])
    assert done.exit_code == 0, done.output
    assert "traces are too long to train on with these settings" in done.output
    assert "(!)" in done.output and "longest trace that fits, train: " in done.output
    assert "nothing was measured" in done.output


def test_gradient_checkpointing_adds_one_forward_pass_of_what_is_trained_on(shape):
    """What is read without gradient, before and while training, costs what it costs without checkpointing."""

    def seconds(**train) -> float:
        settings = config(train={"epochs": 2, "targets": "stored", **train})
        planner = _Planner(settings, shape, Room(8 * GB, "given"), gather(settings, shape), measured=True)
        line = TimeLine(0.0, 1e-9)
        planner.measured = Measured({"rescore": 0.0, "train": 0.0}, line, line, 0.0, {}, "shared_prefix")
        return planner._train_seconds(6, 1)

    rows = gather(config(), shape).rows
    forward = sum(operations(shape, r.tokens, pairs(0, r.tokens), 0) for r in rows)
    assert seconds(gradient_checkpointing=True) - seconds() == pytest.approx(2 * 1e-9 * forward)


def test_a_plan_without_measuring_has_no_times():
    found = forecast(config(traces={"limit": 6}), measured=False, gigabytes=8)
    assert all(s.seconds is None for s in found.stages)
    assert found.memory_source == "--memory"


def rounds(**run):
    """Two rounds of six episodes in the example's world."""
    return config(
        run={"rounds": 2, **run},
        traces={"path": []},
        rollout={
            "environment": f"{TOOLWORLD}/world.py:Toolworld",
            "max_steps": 4,
            "max_new_tokens": 32,
            "limit": 2,
            "sample": {"episodes": 6},
        },
    )


def test_rounds_are_planned_from_the_environments_opening_messages(shape):
    found = forecast(rounds(), measured=False, gigabytes=8)
    opening, trace = found.lengths["opening"], found.lengths["trace"]
    assert (opening.count, trace.count, found.rounds) == (6, 6, 2)
    assert trace.total == opening.total + 6 * 4 * 32
    assert "opening messages" in found.source and "4 steps of 32 tokens" in found.source
    stages = {s.stage: s for s in found.stages}
    # a test split of two tasks, greedily and at the sampling temperature, beside the round's own six episodes
    assert stages["episodes"].note.startswith("10 episodes")
    assert stages["rescore"].tokens > 0 and stages["train"].note.startswith("6 rows of at most")
    # the opening is what the student reads first: exactly its rendered ids
    from hintdistill.rollouts.evaluate import load_suite

    work = gather(rounds(), shape)
    suite, ctx = (
        load_suite(f"{TOOLWORLD}/world.py:Toolworld"),
        RunContext(rounds(), RunDir(Path()), Console(quiet=True)),
    )
    texts = {
        tuple(ctx.renderer.encode(ctx.renderer.render(start.messages, start.tools, header=True)))
        for task in suite.splits()["train"]
        if (start := suite.make().reset(task))
    }
    assert all(any(i.context_ids[: len(t)] == t for t in texts) for _, i, _ in work.hints)


def test_a_round_that_was_played_stands_for_the_next_one(tmp_path, shape):
    folder = tmp_path / "loop" / "rounds" / "01"
    folder.mkdir(parents=True)
    lines = (TOOLWORLD / "traces.jsonl").read_text().splitlines()[:12]
    (folder / "rollouts.jsonl").write_text("\n".join(lines) + "\n")
    found = gather(rounds(dir=str(tmp_path / "loop")), shape)
    assert found.source.startswith(f"episodes of {folder / 'rollouts.jsonl'}; findings of rules")
    assert found.lengths["trace"] == gather(config(), shape).lengths["trace"]


def test_measured_memory_is_a_line_of_the_counted_one():
    counted = Peak({"program": 400, "weights": 50, "stored targets": 7, "activations": 1000, "loss": 200})
    assert counted.added == 1200
    growth = grow_by(300, [(300, 390), (600, 720)])
    assert growth == Growth(300, pytest.approx(60.0), pytest.approx(1.1))
    peak = growth(counted)
    assert dict(peak.parts) == {"program": 300, "weights": 50, "stored targets": 7, "measured and extrapolated": 1380}
    # points that are near each other say nothing about the slope
    assert grow_by(0, [(1000, 1500), (1010, 1900)]) == Growth(0, 695.0, 1.0)
    # one point that is off turns the line little: the last two alone would say 4
    five = grow_by(0, [(90, 760), (108, 887), (183, 1054), (313, 1124), (340, 1239)])
    assert five.slope == pytest.approx(1.57, abs=0.01) and five.base + five.slope * 382 == pytest.approx(1288, abs=2)


def test_what_is_foretold_not_to_fit_is_never_tried(scored, tmp_path):
    """Enough for the model and a sixteenth of the call, too little to train on any of the rows."""
    found = forecast(scored, gigabytes=0.42)
    assert any("was not tried, because it would not fit" in n for n in found.notes)
    stages = {s.stage: s for s in found.stages}
    assert stages["train"].seconds is None and not stages["train"].fits
    assert "measured and extrapolated" not in stages["train"].parts
