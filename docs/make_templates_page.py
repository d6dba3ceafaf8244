"""Writes docs/templates.md: for each chat template and placement, whether a hint has an exact place, or the named error.

    python docs/make_templates_page.py

The templates come from the `trl` wheel, which ships those of released models (requirements-templates.txt), and from
tests/templates/published, written for the tests from published formats. The trace is the same for all: a system prompt,
a question, a thought, a call of a tool that is not listed, its error, and the step. A template that rewrites the thought
away when a step follows gets it without (`tools, no thinking`), one that refuses tool results a talk without (`chat`).
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from conftest import TEMPLATES, TIME, WEATHER, call, published_templates, renderer_for, tool  # noqa: E402

from hintdistill.config import InjectSection  # noqa: E402
from hintdistill.core.errors import HintdistillError  # noqa: E402
from hintdistill.core.types import Finding, Injection, Message, Trace  # noqa: E402
from hintdistill.injection.rendering import Renderer  # noqa: E402
from hintdistill.injection.splice import Injector  # noqa: E402
from hintdistill.prompts import shipped_library  # noqa: E402

HINT = "Use the tool get_weather."
FAMILIES = {
    "Qwen2.5": "qwen2_5",
    "Qwen3 (drops earlier thinking)": "qwen3",
    "Qwen3 Instruct 2507": "qwen3_instruct_2507",
    "Qwen3.5": "qwen3_5_think",
    "Llama 3": "llama3",
    "Llama 3.1": "llama3_1",
    "Llama 3.2": "llama3_2",
    "Mistral v3 (written from the published format)": "mistral",
    "Gemma": "gemma",
    "Gemma 3": "gemma3",
    "Gemma 4": "gemma4_v5",
    "gpt-oss": "gptoss",
    "GLM-4 MoE": "glm4moe",
    "DeepSeek V3": "deepseekv3",
    "DeepSeek R1 distilled": "deepseek_r1_distill",
    "Phi-3.5": "phi3_5",
    "Cohere": "cohere2",
    "LFM2": "lfm2_v2",
    "Nemotron 3 Nano": "nemotron_3_nano",
}
PLACES = (
    ("message, user", {"placements": ("message",), "roles": ("user",)}),
    ("message, system", {"placements": ("message",), "roles": ("system",)}),
    ("observation", {"placements": ("observation",)}),
    ("system_prompt", {"placements": ("system_prompt",)}),
    ("assistant_turn", {"placements": ("assistant_turn",)}),
)
SYSTEM = Message(role="system", content="Be brief.")
ASK = Message(role="user", content="What is the weather in Paris?")
STEP = Message(role="assistant", content="The weather in Paris is sunny.")
CALL = call("get_forecast", '{"city": "Paris"}').model_copy(update={"reasoning": "I need the forecast."})
OBSERVED = tool("unknown tool get_forecast", name="get_forecast")
TALKS = {
    "tools": Trace(id="tools", tools=(WEATHER, TIME), messages=(SYSTEM, ASK, CALL, OBSERVED, STEP)),
    "tools, no thinking": Trace(
        id="tools",
        tools=(WEATHER, TIME),
        messages=(SYSTEM, ASK, CALL.model_copy(update={"reasoning": None}), OBSERVED, STEP),
    ),
    "chat": Trace(
        id="chat",
        messages=(
            ASK,
            Message(role="assistant", content="In which unit?"),
            Message(role="user", content="Celsius."),
            STEP,
        ),
    ),
}


def template_file(name: str) -> Path | None:
    """The file of a template, None where the wheel that ships it is not installed."""
    files = {p.stem: p for p in (*published_templates(), *sorted((TEMPLATES / "published").glob("*.jinja")))}
    return files.get(name)


def outcome(renderer: Renderer, trace: Trace, settings: dict[str, tuple[str, ...]]) -> Injection | HintdistillError:
    """The injection above the last step of a trace, or the named error."""
    finding = Finding(
        step=len(trace.step_indices) - 1, error_class="unknown_tool", hint=HINT, quote="sunny", critic="page"
    )
    try:
        return Injector(renderer, shipped_library(), InjectSection(**settings)).inject(trace, finding)
    except HintdistillError as error:
        return error


def talk_for(renderer: Renderer) -> str:
    """The first talk that the template takes."""
    for name, trace in TALKS.items():
        try:
            renderer.step(trace, len(trace.step_indices) - 1)
        except HintdistillError:
            continue
        return name
    raise ValueError("the template takes no talk")


def _words(result: Injection | HintdistillError) -> str:
    if isinstance(result, Injection):
        return " ".join(["works", *(f"(`{n}`)" for n in result.notes)])
    text = result.message.split("; ")[-1].split("in this chat template", 1)[-1].strip()
    for place in ("message/user: ", "message/system: ", "observation: ", "system_prompt: ", "assistant_turn: "):
        text = text.removeprefix(place)
    text = (
        text.removeprefix("the chat template refuses a conversation ending in ").replace("|", "\\|").replace("\n", " ")
    )
    return f"`{type(result).__name__}`: {text[:110]}"


def page() -> str:
    """The page's text."""
    lines = [
        "# Chat templates and placements",
        "",
        "Generated by `docs/make_templates_page.py`; do not edit. Where a hint has an exact place (one contiguous insertion of",
        f"tokens, checked), and the named error where it has none. Templates as trl {importlib.metadata.version('trl')} ships them.",
        "`spliced_block`: the template would rewrite what stands above the hint, so the block comes from a minimal conversation.",
        "`boundary_shifted`: the place lies inside a token and moved to the next boundary. `rewritten_history`: the template shows",
        "a finished step under another header than it asks for one.",
        "",
        "| template | talk | " + " | ".join(name for name, _ in PLACES) + " |",
        "|---" * (len(PLACES) + 2) + "|",
    ]
    for family, name in FAMILIES.items():
        path = template_file(name)
        if path is None:
            raise SystemExit(f"no template {name}: pip install --no-deps -r requirements-templates.txt")
        renderer = renderer_for(path.read_text(encoding="utf-8"))
        talk = talk_for(renderer)
        cells = [_words(outcome(renderer, TALKS[talk], dict(settings))) for _, settings in PLACES]
        lines.append(f"| {family} | {talk} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "templates.md").write_text(page(), encoding="utf-8")
