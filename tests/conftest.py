"""Shared pieces: tiny models that are built here, chat templates, the shipped example, real traces where they are."""

from __future__ import annotations

import gc
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hintdistill.config import CHECKS
from hintdistill.core import http
from hintdistill.core.types import Finding, Message, ToolCall, Trace
from hintdistill.critics.rules import RulesCritic
from hintdistill.engines.transformers import TransformersEngine
from hintdistill.injection.rendering import Renderer
from hintdistill.traces.reading import read_traces

# the key that signs run folders is a user's own; tests have one for themselves
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="hintdistill-state-")
ROOT = Path(__file__).resolve().parent.parent
TOOLWORLD = ROOT / "examples" / "toolworld"
STUDENT = TOOLWORLD / "student"
TEMPLATES = Path(__file__).parent / "templates"
REAL_TRACES = ROOT.parent / "shared" / "traces"

sys.path[:0] = [str(TOOLWORLD), str(ROOT / "examples" / "bfcl")]

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "kelvin"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
TIME = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "The time of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


# waiting is no check: nobody pulls the plug here, and a server of a test needs no time to recover
os.fsync = lambda at: None
http.FIRST_PAUSE_S = 0.02
# two threads at most, and one where OMP_NUM_THREADS says so: processes side by side would wait for one another's threads
torch.set_num_threads(min(2, torch.get_num_threads()))
if importlib.util.find_spec("hypothesis") is not None:
    from hypothesis import HealthCheck, settings

    # how fast a busy machine draws examples is no property of what is tested
    settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any machine")
# no garbage comes of importing and collecting: the collector begins when that is done, and passes over what is there by then
gc.disable()


def pytest_collection_finish() -> None:
    """Take what stays to the end (libraries, modules, test items) out of every later pass of the garbage collector."""
    gc.freeze()
    gc.enable()


def examples(n: int) -> int:
    """How many random examples a property test tries; `make fuzz` asks for more."""
    return int(os.environ.get("HINTDISTILL_EXAMPLES", n))


def call(name: str, arguments: str, call_id: str | None = "call00001") -> Message:
    """An assistant message with one tool call."""
    return Message(role="assistant", tool_calls=(ToolCall(name=name, arguments_raw=arguments, id=call_id),))


def tool(content: str, call_id: str | None = "call00001", name: str | None = "get_weather") -> Message:
    """A tool result."""
    return Message(role="tool", content=content, tool_call_id=call_id, name=name)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For modules of tiny models and tensors, where a second thread only waits: `pytestmark = usefixtures("one_thread")`."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def unknown_tool_case() -> tuple[Trace, Finding, str]:
    """A shipped trace in which the student called a tool that is not listed, and a hint it heeds."""
    for trace in read_traces([TOOLWORLD / "traces.jsonl"]):
        assert isinstance(trace, Trace)
        found = [
            f for f in RulesCritic(CHECKS).check(trace).findings if f.error_class == "unknown_tool" and f.step == 0
        ]
        if found:
            wrong, tools = found[0].facts["wrong"], ", ".join(trace.tool_schemas)
            return trace, found[0], f"There is no tool {wrong}. The tools are {tools}."
    raise AssertionError("no such trace is shipped")


@dataclass(frozen=True)
class FailedCall:
    """A conversation as an agent holds it, whose first call is of a tool that is not listed."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    name: str
    """Of the tool it called: the wrong words."""
    hint: str
    """One that the shipped student heeds."""


@pytest.fixture(scope="session")
def failed_call(unknown_tool_case: tuple[Trace, Finding, str]) -> FailedCall:
    """The shipped trace of `unknown_tool_case` up to the error that its call met, as chat messages."""
    trace, _, hint = unknown_tool_case
    wrong = trace.step(0).tool_calls[0]
    messages = [{"role": m.role, "content": m.content} for m in trace.before(0)]
    function = {"name": wrong.name, "arguments": wrong.arguments_raw}
    messages += [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "1", "content": '{"error":"unknown tool"}'},
    ]
    return FailedCall(messages, list(trace.tools), wrong.name, hint)


@pytest.fixture
def weather_trace() -> Trace:
    """A call of a tool that does not exist, its error, and an answer."""
    return Trace(
        id="weather",
        messages=(
            Message(role="system", content="Be brief."),
            Message(role="user", content="What is the forecast for Paris?"),
            call("get_forecast", '{"city":"Paris"}'),
            tool('{"error":"unknown tool get_forecast"}'),
            Message(role="assistant", content="It is 21 degrees in Paris."),
        ),
        tools=(WEATHER, TIME),
    )


def _config(arch: str) -> Any:
    from transformers import (
        Gemma2Config,
        Gemma3TextConfig,
        LlamaConfig,
        MistralConfig,
        Qwen3Config,
        Qwen3MoeConfig,
    )

    common = {
        "vocab_size": 1024,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "pad_token_id": 0,
        "eos_token_id": 2,
        "bos_token_id": None,
    }
    return {
        "llama": lambda: LlamaConfig(**common),
        "qwen3": lambda: Qwen3Config(**common, head_dim=8),
        "mistral_sliding": lambda: MistralConfig(**common, sliding_window=16, head_dim=8),
        "gemma3_sliding": lambda: Gemma3TextConfig(**common, head_dim=8, sliding_window=16),
        "gemma2_softcap": lambda: Gemma2Config(**common, head_dim=8, final_logit_softcapping=3.0),
        "qwen3_moe": lambda: Qwen3MoeConfig(
            **common, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32
        ),
    }[arch]()


ARCHITECTURES = ("llama", "qwen3", "mistral_sliding", "gemma3_sliding", "gemma2_softcap", "qwen3_moe")


@pytest.fixture(scope="session")
def tiny_model() -> Callable[[str], Any]:
    """A random model of an architecture, the same each time it is asked for; large weights make it opinionated."""
    built: dict[str, Any] = {}

    def build(arch: str) -> Any:
        if arch not in built:
            torch.manual_seed(7)
            model = AutoModelForCausalLM.from_config(_config(arch)).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim == 2:
                        parameter.mul_(3.0)
            built[arch] = model
        return built[arch]

    return build


@pytest.fixture(scope="session")
def student_engine() -> TransformersEngine:
    """The toolworld student."""
    return TransformersEngine.load(STUDENT, dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def student_renderer() -> Renderer:
    """The toolworld student's tokenizer and template."""
    return Renderer.from_pretrained(STUDENT)


_SPECIAL = re.compile(
    r"<\|[^|>\s]{1,40}\|>|<｜[^｜>\s]{1,40}｜>|</?(?:think|tool_call|tool_response|start_of_turn|end_of_turn|arg_key|arg_value)>"
    r"|<(?:\|?turn\|?|\|?channel\|?)>|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]|\[gMASK\]|<sop>|</?s>|<bos>|<eos>"
)


def renderer_for(template: str) -> Renderer:
    """A renderer whose tokenizer knows the special tokens of a template, as a real model's tokenizer would."""
    tokenizer = AutoTokenizer.from_pretrained(STUDENT)
    special = sorted({*_SPECIAL.findall(template), "<s>", "</s>"})
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
    tokenizer.chat_template = template
    return Renderer(tokenizer)


@pytest.fixture(scope="session")
def own_template() -> Callable[[str], Renderer]:
    """A renderer of a template in tests/templates."""
    built: dict[str, Renderer] = {}

    def get(name: str) -> Renderer:
        if name not in built:
            built[name] = renderer_for((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8").rstrip("\n"))
        return built[name]

    return get


OWN_TEMPLATES = tuple(sorted(p.stem for p in TEMPLATES.glob("*.jinja")))


@pytest.fixture(scope="session")
def merging_renderer() -> Renderer:
    """A tokenizer that merges punctuation with the line break after it, as Qwen's and others do."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        special_tokens=["<|im_start|>", "<|im_end|>", "</s>"],
    )
    tokenizer.train_from_iterator(
        ['{"a":1}\n\n"}\n', "assistant user tool", "tool_response", "1}\n2", "x\n\n\ny"] * 50, trainer
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", additional_special_tokens=["<|im_start|>", "<|im_end|>"]
    )
    fast.chat_template = (TEMPLATES / "chatml_double_encode.jinja").read_text(encoding="utf-8").rstrip("\n")
    return Renderer(fast)


def published_templates() -> list[Path]:
    """Chat templates of released models, as the trl wheel ships them; empty where it is not installed."""
    spec = importlib.util.find_spec("trl")
    if spec is None or not spec.submodule_search_locations:
        return []
    folder = Path(next(iter(spec.submodule_search_locations))) / "chat_templates"
    return sorted(p for p in folder.glob("*.jinja") if "training" not in p.name)


def real_file(*parts: str) -> Path:
    """A real trace file; skips the test, saying so, where the folder is absent."""
    path = REAL_TRACES.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"real traces are not at {path}")
    return path


LONGEST = (
    "pipeline/test_pipeline.py",
    "config/test_every_key_acts.py",
    "training/test_training_processes.py",
    "pipeline/test_controls.py",
    "pipeline/test_rounds.py",
    "pipeline/test_watch_run.py",
    "critics/test_critic_commands.py",
    "rollouts/test_rollouts_environments.py",
    "planning/test_plan.py",
    "training/test_outcome_training.py",
    "recipes/test_recipes.py",
    "bridges/test_export.py",
    "rescoring/test_stored.py",
    "critics/test_bad_servers.py",
    "pipeline/test_safe_folders.py",
    "pipeline/test_rounds_held.py",
    "pipeline/test_rounds_stages.py",
    "engines/test_engine_sharing.py",
    "injection/test_templates.py",
    "injection/test_twins.py",
    "ablation/test_evidence_tables.py",
    "pipeline/test_elsewhere.py",
    "training/test_trackers.py",
    "pipeline/test_clean.py",
)
"""Files of tests that take longest. They come first, so that of two workers neither ends with one of them alone."""


def pytest_collection_modifyitems(items):
    """Begin with the longest files.

    Of the real vLLM: first what leaves its server as it is, then what hands it other weights, then what kills it.
    """
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(LONGEST)))
    items.sort(key=lambda item: ("killed_in_the_middle" in item.name, "test_rollouts_vllm" in item.nodeid))


@pytest.fixture(scope="session")
def vllm_engine():
    """vLLM in this process on the tiny critic, for all tests: it scores (engine tests) and answers (critic tests)."""
    from support.served import CONTEXT, CRITIC

    from hintdistill.engines.vllm import VLLMEngine

    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    engine = VLLMEngine.load(
        CRITIC,
        dtype="float32",
        max_logprobs=16,
        max_length=CONTEXT,
        structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
    )
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The one vLLM server."""
    from support.served import Server

    running = Server(tmp_path_factory.mktemp("vllm") / "log")
    try:
        running.wait()
        yield running
    finally:
        running.kill()
