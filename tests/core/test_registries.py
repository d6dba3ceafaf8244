"""One tiny plugin of every kind (tests/plugins): registered, named in a config or recipe, and acting in a real call.

None of them touches a file of the package. docs/extending.md prints these same files.
"""

from __future__ import annotations

import copy
import importlib.metadata
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, STUDENT
from support.exact_rows import targets_of, trainer_of
from support.flat_recipe import train_section
from support.model_kinds import model_of

import hintdistill as hd
from hintdistill.config import (
    CriticSection,
    EngineSection,
    InjectSection,
    LLMSection,
    RescoreSection,
    RunConfig,
    RunSection,
    TrainSection,
)
from hintdistill.core import extensions, parts, registry
from hintdistill.core.errors import ConfigError, TwinError
from hintdistill.core.types import Finding, Usage
from hintdistill.critics.backends import Reply, by_bytes
from hintdistill.critics.build import make_critics
from hintdistill.critics.llm import LLMCritic
from hintdistill.engines.loading import EngineJob, load
from hintdistill.injection.splice import Injector
from hintdistill.injection.twin_makers import twin_edits
from hintdistill.injection.twins import TwinBuilder
from hintdistill.objectives.compose import Batch, term
from hintdistill.prompts import shipped_library
from hintdistill.recipes import load_recipe, missing, teachers
from hintdistill.recipes.describe import over_step
from hintdistill.rollouts.evaluate import load_suite
from hintdistill.traces.reading import read_traces
from hintdistill.traces.registry import FORMATS, formats
from hintdistill.training.capabilities import available

PLUGINS = ROOT / "tests" / "plugins"
REGISTRIES = (
    FORMATS,
    parts.DIVERGENCES,
    parts.SHAPES,
    parts.HINTS,
    teachers.TEACHERS,
    extensions.PLACEMENTS,
    extensions.HINT_SOURCES,
    extensions.TWIN_MAKERS,
    extensions.STRATEGIES,
    extensions.CRITICS,
    extensions.ENGINES,
    extensions.ENVIRONMENTS,
)
GROUPS = {
    "hintdistill.trace_formats": "trace_format",
    "hintdistill.engines": "engine",
    "hintdistill.environments": "environment",
    "hintdistill.critics": "critic",
    "hintdistill.twin_makers": "twin_maker",
}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def plugin():
    """Runs a plugin's file; what it registers is taken away again."""
    before = {r.what: set(r.names()) for r in REGISTRIES}
    yield lambda name: runpy.run_path(str(PLUGINS / f"{name}.py"))
    for r in REGISTRIES:
        for name in set(r.names()) - before[r.what]:
            r.remove(name)


class Scripted:
    """A backend that says one answer to everything."""

    key, together, context_tokens, count = "scripted", False, None, staticmethod(by_bytes)

    def __init__(self, **answer):
        self.answer, self.asked = json.dumps(answer), 0

    def complete(self, requests):
        self.asked += len(requests)
        return [Reply(self.answer, Usage(requests=1)) for _ in requests]


def test_a_trace_format_is_read_and_recognised(plugin, tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"id": "d", "dialogue": ["two and two?", "four", "sure?", "yes"]}) + "\n")
    assert not isinstance(next(iter(read_traces([path]))), hd.Trace)
    plugin("trace_format")
    (trace,) = read_traces([path])
    assert [trace.step(k).content for k in range(2)] == ["four", "yes"] and "dialogue" in FORMATS


def test_a_placement_splices_where_it_says(plugin, student_renderer, unknown_tool_case):
    with pytest.raises(ValueError, match=r"unknown placement `opening`"):
        InjectSection(placements=("opening",))
    plugin("placement")
    trace, finding, hint = unknown_tool_case
    section = InjectSection(placements=("opening",))
    made = Injector(student_renderer, shipped_library(), section).inject(
        trace, finding.model_copy(update={"hint": hint})
    )
    assert (made.placement, made.role, made.insert_at) == ("opening", None, 0)
    assert student_renderer.decode(made.hinted_ids).startswith(f"Remember: {hint}\n")
    assert made.hinted_ids == made.block_ids + made.plain_ids and len(made.placebos) == 3
    assert hd.Injection.model_validate_json(made.model_dump_json()) == made


def test_a_divergence_has_value_gradient_and_its_own_parameters(plugin):
    change = {"terms": {"distill": {"divergence": {"kind": "hellinger", "scale": 2.0}, "support": {"kind": "full"}}}}
    with pytest.raises(ConfigError, match="unknown divergence `hellinger`"):
        load_recipe("targeted", change)
    plugin("divergence")
    spec = load_recipe("targeted", change).terms["distill"]
    assert spec.divergence.parameters == {"scale": 2.0}
    g = torch.Generator().manual_seed(0)
    logits, other = (torch.randn(3, 7, generator=g, dtype=torch.float64) for _ in range(2))

    def loss(x):
        teacher = other.log_softmax(-1)
        views = {"student": x.log_softmax(-1), "teacher": teacher, "plain": teacher, "initial": teacher}
        return term(spec, Batch(views, torch.tensor([1, 2, 3]), [3])).value

    s, t = logits.softmax(-1), other.softmax(-1)
    assert float(loss(logits)) == pytest.approx(float((2 * (1 - (s * t).sqrt().sum(-1))).mean()), rel=1e-12)
    assert float(loss(other)) == pytest.approx(0.0, abs=1e-12)
    assert torch.autograd.gradcheck(loss, logits.requires_grad_())
    for divergence, said in (
        ({"scael": 1.0}, r"unknown key `scael` of divergence hellinger \(did you mean `scale`\?\); it takes scale"),
        ({"alpha": 0.5}, "unknown key `alpha` of divergence hellinger"),
        ({"scale": 0}, "scale of hellinger must lie above 0, not 0"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_recipe("targeted", {"terms": {"distill": {"divergence": {"kind": "hellinger"} | divergence}}})
    dropped = {"kind": "union", "rest": "drop"}
    with pytest.raises(ConfigError, match="hellinger on a truncated support without its remainder lowers the mass"):
        load_recipe("targeted", {"terms": {"distill": {"divergence": {"kind": "hellinger"}, "support": dropped}}})


def test_a_divergence_that_does_not_say_what_truncation_does_is_refused():
    with pytest.raises(ConfigError, match=r"must declare .* `truncated`"):
        parts.Divergence("mine", implementation=lambda s, t: s)


def test_a_weight_shape_weighs(plugin):
    weight = {"score": "surprisal", "shape": "stairs", "low": 1.0, "high": 2.0, "middle": 0.25}
    change = {"terms": {"distill": {"weights": [weight], "normalize": "all", "support": {"kind": "full"}}}}
    with pytest.raises(ConfigError, match="unknown shape `stairs`"):
        load_recipe("targeted", change)
    plugin("shape")
    recipe = load_recipe("targeted", change)
    logprobs = torch.tensor([[0.5, 0.2, 0.3], [0.9, 0.05, 0.05], [0.7, 0.2, 0.1]]).log()
    views = dict.fromkeys(("student", "teacher", "plain", "initial"), logprobs)
    weights = term(recipe.terms["distill"], Batch(views, torch.tensor([0, 1, 1]), [3])).weights
    assert weights.tolist() == [0.0, 1.0, 0.25] and over_step(recipe) == []
    with pytest.raises(ConfigError, match=r"unknown key `midle` of shape stairs \(did you mean `middle`\?\)"):
        load_recipe("targeted", {"terms": {"distill": {"weights": [{"shape": "stairs", "midle": 0.5}]}}})


def test_a_critic_strategy_asks_its_question(plugin, weather_trace):
    with pytest.raises(ValueError, match="unknown critic strategy `last_step`"):
        LLMSection(strategy="last_step")
    plugin("strategy")
    backend = Scripted(
        mistake=True, quote=None, error_class="wrong_answer", hint="Look again at the error.", confidence=0.5
    )
    critic = LLMCritic(LLMSection(strategy="last_step"), shipped_library(), backend)
    found = critic.ask(weather_trace)
    last = len(weather_trace.step_indices) - 1
    assert [(f.step, f.hint) for f in found.findings] == [(last, "Look again at the error.")] and backend.asked == 1
    assert critic.estimate(weather_trace).requests == 1 and "critic/step.jinja" in critic.prompts_used()
    assert critic.key(weather_trace) != LLMCritic(LLMSection(), shipped_library(), backend).key(weather_trace)


def test_a_teacher_rule_follows_in_a_training_step(plugin, tmp_path):
    with pytest.raises(ConfigError, match="unknown teacher rule `halving`"):
        train_section(teacher="halving")
    plugin("teacher_rule")
    section = {"teacher": "halving", "targets": "in_step", "anchor": {"weight": 0.0}, "batch_size": 8, "epochs": 1}
    config = train_section(**section)
    assert not missing(config.effective_recipe, available(config))
    with pytest.raises(ValueError, match="a teacher with the update rule halving has no stored targets"):
        train_section(teacher="halving", targets="stored")
    model = model_of("llama")
    trainer = trainer_of(model, targets_of(copy.deepcopy(model))[:2], tmp_path, **section, learning_rate=1e-2)
    before = {n: w.clone() for n, w in trainer.follower.weights.items()}
    trainer.train()
    moved = False
    for name, weight in trainer.owner.named_parameters():
        half = (before[name] + weight.detach()) / 2
        moved |= not torch.equal(before[name], weight.detach())
        assert torch.allclose(trainer.follower.weights[name], half, atol=1e-7)
    assert moved and trainer.state.global_step == 1


def test_an_engine_scores_and_its_capabilities_decide(plugin, weather_trace):
    section = {"recipe": "targeted", "targets": "stored"}
    with pytest.raises(ValueError, match="unknown engine `uniform`"):
        EngineSection(backend="uniform")
    plugin("engine")
    assert EngineSection(backend="uniform").backend == "uniform"
    for backend, lacking in (("uniform", []), ("transformers", []), ("vllm", ["union_support"])):
        config = TrainSection(**section)
        assert [n.name for n in missing(config.effective_recipe, available(config, backend))] == lacking
    engine = hd.load_engine(str(STUDENT), backend="uniform")
    messages, tools = list(weather_trace.messages), weather_trace.tools
    target = hd.rescore(messages, step=0, hint="There is get_weather.", engine=engine, tools=tools)
    size = json.loads((STUDENT / "config.json").read_text())["vocab_size"]
    assert np.allclose(target.plain_sampled, -np.log(size)) and not target.hint_effect.any()
    assert not target.accepted and target.decision is None and target.versions["weights"] == "uniform"
    lies = extensions.EngineEntry("lies", frozenset({"full"}), extensions.ENGINES.get("uniform").implementation)
    extensions.ENGINES.register(lies)
    with pytest.raises(ConfigError, match="registered with the capabilities full but has gather"):
        load("lies", EngineJob(STUDENT))


def test_an_engine_that_a_call_asks_for_is_the_one_it_has(plugin, student_engine, student_renderer, weather_trace):
    """`RescoreSection.engine` beside an engine that is given is heard: the same, or refused by name."""
    plugin("engine")
    given = hd.LoadedModel(student_engine, student_renderer, "transformers")
    call = {"step": 0, "engine": given, "tools": weather_trace.tools}
    messages, asked = list(weather_trace.messages), RescoreSection(engine=EngineSection(backend="uniform"))
    for hint in (None, "There is get_weather."):
        with pytest.raises(ConfigError, match="asks for backend=uniform, but the given engine is transformers"):
            hd.rescore(messages, hint=hint, config=asked, **call)
    uniform = call | {"engine": hd.load_engine(str(STUDENT), backend="uniform")}
    assert hd.rescore(messages, hint=None, config=asked, **uniform).versions["engine"] == "Uniform"
    with pytest.raises(ConfigError, match="asks for max_length=7"):
        hd.rescore(messages, hint=None, config=RescoreSection(engine=EngineSection(max_length=7)), **call)
    with pytest.raises(ConfigError, match=r"unknown engine `unifrom` \(did you mean `uniform`\?\)"):
        hd.load_engine(str(STUDENT), backend="unifrom")
    with pytest.raises(ConfigError, match="is a server with an address"):
        hd.load_engine(str(STUDENT), backend="server")


def test_a_hint_source_says_the_hint_and_meets_a_recipes_need(plugin, student_renderer, unknown_tool_case):
    with pytest.raises(ValueError, match="unknown hint source `first_sentence`"):
        InjectSection(hint="first_sentence")
    plugin("hint_source")
    plugin("hint_kind")
    trace, finding, _ = unknown_tool_case
    given = finding.model_copy(update={"hint": "Read the tool list. Then call one of them."})
    made = Injector(student_renderer, shipped_library(), InjectSection(hint="first_sentence")).inject(trace, given)
    assert made.hint == "Read the tool list." and len(made.placebos) == 3
    assert made.hint in student_renderer.decode(made.block_ids)
    recipe = load_recipe("targeted", {"data": {"hint": {"kind": "timetable"}}})
    assert [n.name for n in missing(recipe, available(TrainSection()))] == ["demonstrations"]
    assert not missing(recipe, available(TrainSection()) | extensions.HINT_SOURCES.get("first_sentence").meets)


def test_a_context_maker_is_a_teachers_context_and_a_views(plugin, student_renderer, unknown_tool_case):
    plugin("context_maker")
    trace, finding, _ = unknown_tool_case
    made = Injector(student_renderer, shipped_library(), InjectSection(hint="greeting")).inject(trace, finding)
    assert made.hint == f"Hello, and mind step {finding.step}."
    recipe = load_recipe("amplify", {"views": {"plain": {"context": "greeting"}}})
    assert {v.context for v in recipe.used_views().values()} >= {"greeting"}


def test_a_critic_reads_beside_the_others(plugin, weather_trace):
    with pytest.raises(ValueError, match="unknown critic `polite`"):
        CriticSection(use=("polite",))
    plugin("critic")
    section = CriticSection(use=("rules", "polite"))
    rules, polite = make_critics(section, RunSection(model="m"), shipped_library())
    ((_, said),) = polite.critique([weather_trace])
    assert rules.name == "rules" and said.findings[0] == Finding(
        step=0, error_class="rude", hint="Say please.", critic="polite"
    )


def test_a_twin_maker_serves_its_class(plugin, student_renderer, weather_trace):
    finding = Finding(step=1, error_class="rude", critic="polite")
    with pytest.raises(TwinError, match="no maker of twins serves the error class 'rude'"):
        twin_edits(weather_trace, finding)
    plugin("twin_maker")
    (edit,) = twin_edits(weather_trace, finding)
    made = TwinBuilder(student_renderer).build(weather_trace, finding, edit, (0, 1))
    assert edit.maker == "asked_to_be_rude" and "Paris? Be rude, please." in student_renderer.decode(made.context_ids)


def test_an_environment_is_named_without_a_file(plugin):
    with pytest.raises(ConfigError, match="not of the form"):
        load_suite("echo")
    plugin("environment")
    suite = load_suite("echo")
    episode = suite.make()
    assert "red" in str(episode.reset("red").messages) and suite.splits()["test"] == ("blue",)
    assert episode.step(hd.Message(role="assistant", content="red")).reward == 1.0


def test_an_installed_package_offers_what_its_entry_points_name(monkeypatch, tmp_path):
    """A real distribution on the path: modules, and a dist-info folder whose entry points name their entries."""
    lines = []
    for group, name in GROUPS.items():
        (tmp_path / f"offered_{name}.py").write_text(_unregistered(PLUGINS / f"{name}.py"))
        lines += [f"[{group}]", f"{name} = offered_{name}:ENTRY", ""]
    info = tmp_path / "offered-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: offered\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(lines))
    offered = [r for r in REGISTRIES if r.group is not None]
    assert {r.group for r in offered} == set(GROUPS)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        for r in offered:
            r.refresh()
        assert formats()[0].NAME == "dialogue" and EngineSection(backend="uniform").backend == "uniform"
        (polite,) = make_critics(CriticSection(use=("polite",)), RunSection(model="m"), shipped_library())
        assert "asked_to_be_rude" in extensions.TWIN_MAKERS
        assert polite.name == "polite" and load_suite("echo").splits()["test"] == ("blue",)
        assert load("uniform", EngineJob(STUDENT)).capabilities == {"gather"}
    for r in offered:
        r.refresh()
    with pytest.raises(ValueError, match="unknown critic `polite`"):
        CriticSection(use=("polite",))


def _unregistered(path: Path) -> str:
    """A plugin whose entry an entry point names, in place of the call that registers it."""
    *body, last = path.read_text().strip().split("\n")
    call, _, entry = last.partition(".register(")
    assert call in ("FORMATS", "ENGINES", "ENVIRONMENTS", "CRITICS", "TWIN_MAKERS") and entry.endswith(")")
    return "\n".join([*body, f"ENTRY = {entry[:-1]}", ""])


class Point:
    """An entry point whose object does not do."""

    name, value = "broken", "pkg:broken"

    def load(self):
        return object()


def test_a_broken_or_doubled_entry_is_refused_by_name(monkeypatch, plugin):
    plugin("critic")
    with pytest.raises(ConfigError, match="the critic `polite` is already registered"):
        plugin("critic")
    with pytest.raises(ConfigError, match="the critic `rules` was not registered by a caller"):
        extensions.CRITICS.remove("rules")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [Point()])
    own = registry.Registry("critic", extensions.CriticEntry, {}, group="hintdistill.critics")
    with pytest.raises(ConfigError, match=r"the critic broken \(pkg:broken\) is not a CriticEntry"):
        own.names()


@pytest.mark.parametrize("r", REGISTRIES, ids=lambda r: r.what.replace(" ", "_"))
def test_every_shipped_entry_loads_under_its_name(r):
    """Whatever an entry names can be imported, and `get` of a slip names the nearest."""
    for name in r.names():
        entry = r.get(name)
        assert (entry.NAME if r is FORMATS else entry.name) == name
        for attribute in ("implementation", "follow", "asked"):
            if getattr(entry, attribute, None) is not None:
                assert callable(registry.loaded(getattr(entry, attribute)))
    if r.names():
        slip = f"{r.names()[0]}x"
        with pytest.raises(ConfigError, match=rf"unknown {r.what} `{slip}` \(did you mean `"):
            r.get(slip)


def test_names_are_known_without_their_implementations():
    """A config that names an engine is checked before torch is there."""
    code = (
        "import sys\nfrom hintdistill.config import RunConfig\n"
        "c = RunConfig.model_validate({'run': {'model': 'm'}, 'traces': {'path': ['t']}, 'rescore': {'engine': {'backend': 'vllm'}},"
        " 'critic': {'use': ['rules']}, 'inject': {'hint': 'placebo', 'placements': ['observation']},"
        " 'train': {'recipe': {'preset': 'targeted', 'teacher': {'update': 'ema'}}}})\n"
        "assert c.train.effective_recipe.teacher.update == 'ema' and not {'torch', 'transformers', 'vllm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    schema = RunConfig.model_json_schema()["$defs"]["EngineSection"]["properties"]["backend"]
    assert schema["enum"][:3] == ["transformers", "vllm", "server"]


def test_the_page_shows_these_files():
    """docs/extending.md prints the plugins as they are run here."""
    page = (ROOT / "docs" / "extending.md").read_text()
    for path in PLUGINS.glob("*.py"):
        assert f"```python\n{path.read_text().strip()}\n```" in page, f"run docs/make_extending_page.py: {path.name}"
