"""What is read while training: the meter's and the watch's numbers against their definitions, tripwires, and stops that keep
the last good state."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.flat_recipe import train_section
from test_recipes_training import V, logprobs, tiny

from hintdistill.config import RunSection, TripwireSection, WatchSection
from hintdistill.core.errors import InputError, TripwireError
from hintdistill.core.scores import Measurement, Target
from hintdistill.objectives import fkl, gather_with_tail
from hintdistill.training.checkpoints import broken
from hintdistill.training.passes import places
from hintdistill.training.provenance import require_same
from hintdistill.training.rows import build_rows, watch_rows
from hintdistill.training.stage import TrainData, TrainJob, make_trainer, train
from hintdistill.training.tripwires import WIRES, Tripwires
from hintdistill.training.watch import Watch, WatchSets, subsample

pytestmark = pytest.mark.usefixtures("one_thread")
RUN = RunSection(model="tiny", device="cpu", dtype="float32")
FAST = {
    "batch_size": 4,
    "warmup_ratio": 0,
    "epochs": 4,
    "save_steps": 2,
    "logging_steps": 1,
    "learning_rate": 1e-3,
    "anchor": {"weight": 1.0, "min_probability": 0.0},
}
T, K = 7, 12


def scored(model, rng, name: str, kind: str, split: str = "train") -> Target:
    """A step on a random context, scored as the rescore stage would."""
    context, step, block = (rng.integers(3, V, n) for n in (10, T, 5 if kind == "hint" else 0))
    plain = logprobs(model, np.concatenate([context, step]), T)
    hinted = logprobs(model, np.concatenate([context[:6], block, context[6:], step]), T)
    said = torch.as_tensor(step)[:, None]
    ids = torch.cat([plain.topk(K).indices, hinted.topk(K).indices, said], -1)
    support = torch.stack(
        [torch.nn.functional.pad(r.unique(), (0, 2 * K + 1 - len(r.unique())), value=-1) for r in ids]
    )

    def kept(x):
        own = x.gather(-1, support.clamp(min=0)).masked_fill(support < 0, -torch.inf)
        return own.numpy(), torch.log1p(-own.exp().sum(-1)).numpy()

    (teacher, teacher_tail), (before, plain_tail) = kept(hinted), kept(plain)
    m = Measurement(
        position=3,
        instead_id=5,
        effect=-1.0,
        plain_logprob=-1.0,
        max_raise=0.0,
        specificity=-1.0,
        legal_mass_gain=None,
        best_placebo=0.0,
    )
    return Target(
        key=name,
        trace_id=f"trace {name}",
        step=0,
        kind=kind,
        split=split,
        context_ids=context,
        step_ids=step,
        span=(2, 4),
        support_ids=support.numpy(),
        teacher_logprobs=teacher,
        plain_logprobs=before,
        teacher_tail=teacher_tail,
        plain_tail=plain_tail,
        teacher_sampled=hinted.gather(-1, said)[:, 0].numpy(),
        plain_sampled=plain.gather(-1, said)[:, 0].numpy(),
        insert_at=6,
        block_ids=block,
        accepted=True,
        error_class=None if kind == "anchor" else "odd" if int(name[-1]) % 2 else "even",
        measurement=m if kind == "hint" else None,
        versions={"weights": "w", "renderer": "r"},
        legal_ids=np.array([4, 9]) if kind == "hint" else np.zeros(0, np.int64),
    )


@pytest.fixture(scope="module")
def data() -> tuple[list[Target], WatchSets]:
    model, rng = tiny(), np.random.default_rng(0)
    trained = [scored(model, rng, f"hint {i}", "hint") for i in range(6)]
    trained += [scored(model, rng, f"anchor {i}", "anchor") for i in range(2)]
    off = [scored(model, rng, f"off {i}", "anchor") for i in range(5)]
    return trained, WatchSets(off, [scored(model, rng, f"held {i}", "anchor", "holdout") for i in range(3)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "model"
    tiny().save_pretrained(path)
    return path


def trainer_of(of, tmp_path, watch=None, **config):
    section = train_section(**{**FAST, **config})
    return make_trainer(tiny(), build_rows(of, section), RUN, section, tmp_path, watch=watch or WatchSets())


def metrics(work) -> list[dict]:
    return [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]


def moved(trainer, by: float = 0.3):
    """The trainer's model with other weights than those that made the targets."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in trainer.model.parameters():
            p.add_(by * p.abs().mean() * torch.randn_like(p))
    return trainer


# -- the meter -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [{}, {"targets": "in_step", "teacher": "live", "support": "full"}])
def test_every_number_of_the_meter_is_what_its_definition_says(config, data, tmp_path):
    trainer = moved(trainer_of(data[0], tmp_path, **config, loss_span="quote"))
    rows = trainer.train_dataset.rows
    trainer.compute_loss(trainer.model, {"rows": rows})
    got = trainer.meter.drain()
    live = bool(config)
    span: dict[str, list[float]] = {"student": [], "teacher": [], "initial": []}
    entropy, kl, decision, effect, legal = [], [], [], [], []
    for row, slot in places(rows, "hint"):
        ours = logprobs(trainer.owner, row.plain(slot).numpy(), T)
        theirs = logprobs(trainer.owner if live else tiny(), row.hinted(slot).numpy(), T)
        before = logprobs(tiny(), row.plain(slot).numpy(), T)
        said = slot.sampled[:, None]
        each = {"student": ours, "teacher": theirs, "initial": before}
        for who, x in each.items():
            span[who] += x.gather(-1, said)[2:4, 0].tolist()
        entropy += (-(ours.exp() * ours).sum(-1))[2:4].tolist()
        # a stored target's tail is one entry
        pair = (theirs, ours) if live else [gather_with_tail(x, slot.support_ids) for x in (theirs, ours)]
        kl += fkl(pair[1], pair[0])[2:4].tolist()
        decision.append((slot.error_class, float(ours[3, said[3, 0]].exp())))
        plain = ours if live else before
        effect.append(float((theirs - plain)[3, said[3, 0]]))
        legal.append(float(ours[3, [4, 9]].exp().sum()))
    mean = {f"span_logprob/{who}": np.mean(x) for who, x in span.items()}
    mean |= {
        "entropy/span": np.mean(entropy),
        "hint_effect": np.mean(effect),
        "legal_mass": np.mean(legal),
        "target_kl": np.mean(kl),
    }
    mean["decision_probability"] = np.mean([p for _, p in decision])
    for name in ("odd", "even"):
        mean[f"decision_probability/{name}"] = np.mean([p for c, p in decision if c == name])
    carried = sum(int((s.token_weights != 0).sum()) for _, s in places(rows))
    mean["loss_tokens"] = carried / sum(len(r.ids) for r in rows)
    for name, value in mean.items():
        assert got[name] == pytest.approx(value, rel=1e-4), name
    assert {"divergence", "anchor_kl", "distill/kept_fraction"} <= set(got)
    assert trainer.meter.drain() == {}


def test_the_meter_reads_on_logging_steps_only_and_nothing_else_is_lost(data, tmp_path):
    trainer = trainer_of(data[0], tmp_path, logging_steps=2)
    trainer.compute_loss(trainer.model, {"rows": trainer.train_dataset.rows})
    assert {"divergence", "anchor_kl"} <= set(got := trainer.meter.drain()) and not {
        "decision_probability",
        "loss_tokens",
    } & set(got)


def test_no_number_is_called_initial_where_others_made_the_targets(data, tmp_path):
    trainer = trainer_of(data[0], tmp_path, watch=replace(data[1], from_initial=False))
    trainer.compute_loss(trainer.model, {"rows": trainer.train_dataset.rows})
    got = trainer.meter.drain()
    assert "span_logprob/initial" not in got and "span_logprob/student" in got


def test_several_processes_add_up_before_they_divide(data, tmp_path, monkeypatch):
    trainer = trainer_of(data[0], tmp_path)
    rows = trainer.train_dataset.rows
    trainer.compute_loss(trainer.model, {"rows": rows})
    whole = trainer.meter.drain()
    processes = [trainer_of(data[0], tmp_path) for _ in range(2)]
    for process, part in zip(processes, (rows[:3], rows[3:]), strict=True):
        process.compute_loss(process.model, {"rows": part})
    halves = [dict(p.meter._sums) for p in processes]

    def gather(into, mine):
        into[:] = halves

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    both = processes[0].meter.drain()
    assert set(both) == set(whole)
    for name in ("span_logprob/student", "decision_probability", "legal_mass/odd", "loss_tokens", "divergence"):
        assert both[name] == pytest.approx(whole[name], rel=1e-5), name


# -- the watch -----------------------------------------------------------------------------------------------------------------


def test_the_watch_reads_the_distance_from_the_initial_policy(data, tmp_path):
    trainer = trainer_of(data[0], tmp_path, watch=data[1])
    still = trainer.watch.read(0, trainer.owner, trainer.passes, trainer.head)
    assert abs(still["off_target_kl"]) < 1e-6 and still["off_target_flips"] == 0
    assert still["entropy_ratio"] == pytest.approx(1, rel=1e-5) and abs(still["end_drop"]) < 1e-6
    got = moved(trainer).watch.read(1, trainer.owner, trainer.passes, trainer.head)
    for name, targets in (("off_target", data[1].off_target), ("heldout", data[1].heldout)):
        kl, flips, entropy, end = [], [], [], []
        for row, slot in places(watch_rows(targets)):
            ours, before = (logprobs(m, row.plain(slot).numpy(), T) for m in (trainer.owner, tiny()))
            kl += fkl(*(gather_with_tail(x, slot.support_ids) for x in (ours, before))).tolist()
            flips += (before.argmax(-1) != ours.argmax(-1)).float().tolist()
            entropy += (-(ours.exp() * ours).sum(-1)).tolist()
            end.append(float(ours[-1, slot.sampled[-1]].exp()))
        assert got[f"{name}_kl"] == pytest.approx(np.mean(kl), rel=1e-4)
        assert got[f"{name}_flips"] == pytest.approx(np.mean(flips)) and np.mean(flips) > 0
        if name == "off_target":
            assert got["entropy/off_target"] == pytest.approx(np.mean(entropy), rel=1e-5)
            assert got["end_probability"] == pytest.approx(np.mean(end), rel=1e-5)


def test_rows_beyond_the_budget_are_read_in_turns_to_the_same_numbers(data, tmp_path):
    readings = []
    for budget in (16_384, 20):
        trainer = moved(trainer_of(data[0], tmp_path, watch=data[1], branch_tokens=budget))
        readings.append(trainer.watch.read(1, trainer.owner, trainer.passes, trainer.head))
    assert readings[0] == pytest.approx(readings[1], rel=1e-4)


def test_which_steps_are_watched_is_the_seeds_affair(data):
    off = list(data[1].off_target)
    assert subsample(off, 3, 0) == subsample(off[::-1], 3, 0)
    assert {t.key for s in range(40) for t in subsample(off, 3, s)} == {t.key for t in off}
    few = {t.key for t in subsample(off, 3, 0)}
    gone = next(t for t in off if t.key not in few)
    assert {t.key for t in subsample([t for t in off if t is not gone], 3, 0)} == few, (
        "what was not drawn changes nothing"
    )


@pytest.mark.parametrize(
    ("every", "logging_steps", "steps"),
    [(None, 5, [5, 10, 15, 17]), (10, 5, [10, 17]), (4, 5, [5, 10, 15, 17]), (1, 5, [5, 10, 15, 17]), (0, 5, [])],
)
def test_readings_are_taken_when_they_are_due(every, logging_steps, steps, data):
    watch = Watch(data[1], WatchSection(every=every), logging_steps, 0)
    due = []
    for step in [*range(logging_steps, 17, logging_steps), 17, 17]:
        if watch.due(step, last=step == 17):
            due.append(step)
            watch.last = step
    assert due == steps


def test_a_watched_training_is_bit_equal_to_one_that_is_not_and_so_is_a_resumed_one(data, folder, tmp_path):
    """With adapters under dropout, where every random number counts."""
    from hintdistill.config import LoraSection

    config = train_section(**{**FAST, "lora": LoraSection(rank=2, dropout=0.3)})

    class Killed(Exception):
        pass

    def kill(step: int, total: int) -> None:
        if step == 5:
            raise Killed

    def run(name: str, watch: WatchSets, progress=None):
        train(
            TrainJob(
                folder, TrainData(data[0], watch=watch), RUN, config, tmp_path / name, tmp_path / f"{name} student", "k"
            ),
            progress=progress,
        )
        from safetensors.torch import load_file

        return load_file(tmp_path / f"{name} student" / "model.safetensors")

    bare, seen = run("bare", WatchSets()), run("seen", data[1])
    with pytest.raises(Killed):
        run("killed", data[1], kill)
    resumed = run("killed", data[1])
    assert all(torch.equal(bare[k], seen[k]) and torch.equal(bare[k], resumed[k]) for k in bare)
    rows = {r["step"]: r for r in metrics(tmp_path / "seen") if "off_target_kl" in r}
    again = {r["step"]: r for r in metrics(tmp_path / "killed") if "off_target_kl" in r}
    names = ("off_target_kl", "heldout_kl", "entropy_ratio", "end_drop", "off_target_flips")
    assert rows.keys() == again.keys() == set(range(1, 9))
    assert all(rows[s][n] == again[s][n] for s in rows for n in names)


def test_rows_after_a_resume_speak_of_the_steps_before_the_checkpoint_too(data, folder, tmp_path):
    """A row every three steps and a checkpoint every two; a flipped bit in the last checkpoint sends it back one more."""
    config = train_section(**{**FAST, "save_steps": 2, "logging_steps": 3, "micro_batch_size": 1})

    class Killed(Exception):
        pass

    def kill(step: int, total: int) -> None:
        if step == 5:
            raise Killed

    def run(name: str, progress=None) -> list[dict]:
        work, out = tmp_path / name, tmp_path / f"{name} student"
        train(TrainJob(folder, TrainData(data[0], watch=data[1]), RUN, config, work, out, "k"), progress=progress)
        clock = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
        return [{k: v for k, v in row.items() if k not in clock} for row in metrics(work)]

    wanted = run("straight")
    assert [row["step"] for row in wanted] == [3, 6, 8] and wanted[-1]["train_loss"] > 0
    for name in ("killed", "flipped"):
        with pytest.raises(Killed):
            run(name, kill)
    last = tmp_path / "flipped" / "checkpoint-4"
    weights = bytearray((last / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (last / "model.safetensors").write_bytes(weights)
    assert broken(last) is None
    assert broken(last, every_byte=True) == "model.safetensors has changed since it was written"
    assert run("killed") == wanted and run("flipped") == wanted


# -- tripwires -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "metric", "bound", "good", "bad"),
    [
        ("max_off_target_kl", "off_target_kl", 0.1, 0.1, 0.11),
        ("max_heldout_kl", "heldout_kl", 0.1, 0.0, 0.2),
        ("min_entropy_ratio", "entropy_ratio", 0.5, 0.5, 0.4),
        ("max_end_drop", "end_drop", 0.2, -0.3, 0.3),
        ("min_hint_effect", "hint_effect", 0.3, -0.4, -0.2),
    ],
)
def test_each_bound_stops_with_its_cause(name, metric, bound, good, bad, tmp_path):
    off = dict.fromkeys(w.name for w in WIRES)
    wires = Tripwires(TripwireSection(**{**off, "action": "stop", name: bound}), tmp_path)
    wires.check({metric: good}, 4)
    with pytest.raises(
        TripwireError, match=rf"^{metric} is .* at step 5, .* train.tripwires.{name}={bound:g}: "
    ) as stop:
        wires.check({metric: bad, "loss": 1.0}, 5)
    assert "no checkpoint was written" in stop.value.hint
    silent = Tripwires(TripwireSection(**off), tmp_path)
    silent.check({metric: bad}, 5)
    with pytest.raises(TripwireError, match=f"{metric} is .*nan at step 6"):
        silent.check({metric: math.nan}, 6)


def test_a_stop_keeps_the_last_checkpoint_and_a_wider_bound_goes_on_from_it(data, folder, tmp_path):
    work, out, fast = tmp_path / "work", tmp_path / "student", {**FAST, "learning_rate": 1e-2, "recipe": "targeted_jsd"}
    train(
        TrainJob(
            folder,
            TrainData(data[0], watch=data[1]),
            RUN,
            train_section(**fast),
            tmp_path / "free",
            tmp_path / "any",
            "k",
        )
    )
    free = [r["off_target_kl"] for r in metrics(tmp_path / "free") if "off_target_kl" in r]
    assert free[3] > 1.02 * max(free[:3])
    bound = (free[3] + max(free[:3])) / 2
    strict = train_section(**fast, tripwires={"action": "stop", "max_off_target_kl": bound})
    with pytest.raises(TripwireError, match=r"off_target_kl is .* nats per token at step 4, above") as stop:
        train(TrainJob(folder, TrainData(data[0], watch=data[1]), RUN, strict, work, out, "k"))
    assert not out.exists()
    assert f"the last checkpoint is {work / 'checkpoint-2'}" in stop.value.hint
    assert [p.name for p in work.glob("checkpoint-*")] == ["checkpoint-2"]
    # the same bound stops again, at the same place
    with pytest.raises(TripwireError) as again:
        train(TrainJob(folder, TrainData(data[0], watch=data[1]), RUN, strict, work, out, "k"))
    assert again.value.message == stop.value.message
    wide = train_section(**fast, tripwires={"action": "stop", "max_off_target_kl": 50})
    done: list[int] = []
    job = TrainJob(folder, TrainData(data[0], watch=data[1]), RUN, wide, work, out, "k")
    summary = train(job, progress=lambda step, of: done.append(step))
    assert summary.steps == 8 and out.is_dir()
    assert done == [3, 4, 5, 6, 7, 8], "it went on from the checkpoint"
    assert [r["step"] for r in metrics(work) if "off_target_kl" in r] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_warning_is_said_once_and_is_a_row(data, folder, tmp_path):
    said: list[str] = []
    config = train_section(**FAST, tripwires={"max_off_target_kl": 1e-6, "max_heldout_kl": None})
    train(
        TrainJob(folder, TrainData(data[0], watch=data[1]), RUN, config, tmp_path / "w", tmp_path / "s", "k"),
        warn=said.append,
    )
    rows = [r for r in metrics(tmp_path / "w") if "tripwire" in r]
    ours = [r for r in rows if r["tripwire"] == "max_off_target_kl"]
    assert len(ours) == 1 and ours[0]["step"] == 1 and ours[0]["value"] > ours[0]["bound"] == 1e-6
    assert sum("max_off_target_kl" in s for s in said) == 1 and (tmp_path / "s").is_dir()


def test_a_stop_that_nothing_can_trigger_is_said(data, folder, tmp_path):
    said: list[str] = []
    config = train_section(**{**FAST, "epochs": 0.5}, tripwires={"action": "stop"})
    train(
        TrainJob(
            folder,
            TrainData(data[0], watch=WatchSets(data[1].off_target)),
            RUN,
            config,
            tmp_path / "w",
            tmp_path / "s",
            "k",
        ),
        warn=said.append,
    )
    assert said == [
        "train.tripwires.max_heldout_kl has no effect: there is no step to measure it on (see train.watch, traces.holdout)"
    ]


# -- nothing that is not finite is applied or kept -------------------------------------------------------------------------------


class PoisonedBackward(torch.autograd.Function):
    """A finite loss whose gradient is not."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.nan


@pytest.mark.parametrize("what", ["loss", "gradient norm"])
def test_nan_stops_before_the_update_and_the_last_checkpoint_serves(what, data, folder, tmp_path, monkeypatch):
    from hintdistill.training.trainer import HintTrainer

    config = train_section(**{**FAST, "batch_size": 8, "micro_batch_size": 4, "epochs": 8})
    work, out = tmp_path / "work", tmp_path / "student"
    plain, straight = HintTrainer._part, tmp_path / "straight"
    train(TrainJob(folder, TrainData(data[0]), RUN, config, tmp_path / "other", straight, "k"))

    def poisoned(self, kind, placed, done):
        value = plain(self, kind, placed, done)
        if self.state.global_step == 5 and any(r.key == "trace hint 2" for r, _ in placed):
            return value * math.nan if what == "loss" else PoisonedBackward.apply(value)
        return value

    monkeypatch.setattr(HintTrainer, "_part", poisoned)
    with pytest.raises(TripwireError, match=f"the {what} is nan at step 5; rows trace hint 2\n") as stop:
        train(TrainJob(folder, TrainData(data[0]), RUN, config, work, out, "k"))
    assert f"the last checkpoint is {work / 'checkpoint-4'}" in stop.value.hint
    assert [p.name for p in work.glob("checkpoint-*")] == ["checkpoint-4"] and not out.exists()
    monkeypatch.setattr(HintTrainer, "_part", plain)
    train(TrainJob(folder, TrainData(data[0]), RUN, config, work, out, "k"))
    from safetensors.torch import load_file

    a, b = (load_file(f / "model.safetensors") for f in (straight, out))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_weights_that_are_not_finite_make_no_checkpoint_and_no_student(data, folder, tmp_path, monkeypatch):
    """An update can overflow though loss and gradient were finite."""
    from hintdistill.training import stage

    made = []
    trainer_of_stage = stage.make_trainer
    monkeypatch.setattr(stage, "make_trainer", lambda *a, **k: made.append(trainer_of_stage(*a, **k)) or made[-1])

    def overflow(step: int, total: int) -> None:
        if step == 4:
            with torch.no_grad():
                made[-1].model.model.norm.weight[0] = math.inf

    with pytest.raises(
        TripwireError, match=r"model.norm.weight is not finite after step 4; rows of the step: trace"
    ) as stop:
        train(
            TrainJob(folder, TrainData(data[0]), RUN, train_section(**FAST), tmp_path / "w", tmp_path / "s", "k"),
            progress=overflow,
        )
    assert "checkpoint-2" in stop.value.hint and not (tmp_path / "s").exists()
    assert [p.name for p in (tmp_path / "w").glob("checkpoint-*")] == ["checkpoint-2"]


# -- stored targets ------------------------------------------------------------------------------------------------------------


def test_targets_of_other_weights_or_another_tokenizer_are_refused_by_key(data):
    trained = data[0]
    require_same(trained, "w", "r")
    with pytest.raises(
        InputError, match=r"8 of 8 targets .* for example hint 0 .*: the teacher's weights changed: w → x\n"
    ):
        require_same(trained, "x", "r")
    some = [*trained[:3], replace(trained[3], versions={"weights": "w", "renderer": "old"})]
    with pytest.raises(
        InputError, match=r"1 of 4 .* for example hint 3 .*: the tokenizer or the chat template changed: old → r\n"
    ):
        require_same(some, "w", "r")
    with pytest.raises(InputError, match="it does not say which weights made it"):
        require_same([replace(trained[0], versions={})], "w", "r")
