"""Plan BFCL with a model of 4 or 8 billion parameters on one GPU, by `hintdistill plan`, without weights or a GPU.

    python benchmarks/bfcl_plan.py            # writes the table into docs/benchmarks.md; needs bfcl-eval

The folders that are planned for have the models' published shapes, a Hermes template and, in place of the models' own tokenizer, which
is not here, that of SmolLM2 (`build/smollm2`, or MODEL): about the same number of tokens for English and JSON. Nothing is measured, so
there are no times of the plan's own; what is said of time is arithmetic on its tokens.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.blocks import put
from hintdistill.config.file import load_config
from hintdistill.core.machine import Room
from hintdistill.planning import estimate
from hintdistill.planning.estimate import Forecast

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
MARKS = "<!-- plan: made by benchmarks/bfcl_plan.py -->", "<!-- end of plan -->"
CONFIG = ROOT / "examples" / "bfcl" / "bfcl.yaml"
GIGABYTES = 80
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "head_dim": 128,
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SHAPES = {
    "4B": {"hidden_size": 2560, "intermediate_size": 9728, "tie_word_embeddings": True},
    "8B": {"hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False},
}
SUITES = {
    "TURNS": [],
    "CALLS": [
        f"rollout.environment={ROOT / 'examples' / 'bfcl' / 'bfcl_suite.py'}:CALLS",
        "rollout.sample.tasks=[simple_python_*,multiple_*,live_simple_*,live_multiple_*]",
        "rollout.sample.episodes=400",
        "rollout.max_steps=1",
        "rollout.splits=[test,irrelevance]",
    ],
}
TEMPLATE = """{%- if tools -%}
<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }}

{% endif %}Functions:
<tools>
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}</tools>
Calls: <tool_call>{"name": ..., "arguments": {...}}</tool_call><|im_end|>
{% endif -%}
{%- for message in messages -%}
{%- if not (loop.first and tools and message.role == 'system') -%}
<|im_start|>{{ message.role }}
{{ message.content or '' }}{% for call in message.tool_calls or [] %}
<tool_call>{"name": {{ call.function.name | tojson }}, "arguments": {{ call.function.arguments | tojson }}}</tool_call>
{%- endfor %}<|im_end|>
{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


@dataclass(frozen=True)
class Planned:
    """One row of the table."""

    size: str
    suite: str
    found: Forecast


def folder_of(size: str, tokenizer: Path, at: Path) -> Path:
    """A model folder without weights: config, template, tokenizer."""
    folder = at / size
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QWEN3 | SHAPES[size]), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder / name)
    return folder


def on_gpu(device: str, gigabytes: float | None) -> Room:
    """The room of a GPU, which this machine need not have."""
    assert gigabytes is not None
    return Room(int(gigabytes * 1e9), "--memory", on_cpu=False, beside_program=False)


def planned(tokenizer: Path) -> list[Planned]:
    """Plan every size, suite and memory."""
    estimate.room = on_gpu  # type: ignore[assignment]
    out = []
    with tempfile.TemporaryDirectory() as made:
        for size in SHAPES:
            folder = folder_of(size, tokenizer, Path(made))
            for suite, overrides in SUITES.items():
                options = [f"run.model={folder}", "run.template.options={}", *overrides]
                found = estimate.forecast(load_config(CONFIG, options), measured=False, gigabytes=GIGABYTES)
                out.append(Planned(size, suite, found))
                print(size, suite, *found.notes, sep="; ", flush=True)
    return out


def table(rows: list[Planned]) -> str:
    """The plans as a table: one row a model, suite and GPU."""
    lines = [
        "| model | suite | opening tokens: median / longest | rescore: tokens, peak | train: tokens, peak | the plan recommends (80 GB) |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        stages = {s.stage: s for s in row.found.stages}
        rescore, train = stages["rescore"], stages["train"]
        opening = row.found.lengths.get("opening") or row.found.lengths["trace"]
        lines.append(
            f"| {row.size} | {row.suite} | {opening.median:,} / {opening.longest:,} "
            f"| {rescore.tokens / 1e6:.2f} M, {_gb(rescore.peak_bytes)} | {train.tokens / 1e6:.2f} M, {_gb(train.peak_bytes)} "
            f"| {_settings(row.found)} |"
        )
    return "\n".join(lines)


def _settings(found: Forecast) -> str:
    if found.recommended is None:
        return "nothing fits"
    return "<br>".join(f"`{key}={value}`" for key, value in found.recommended.settings.items())


def _gb(peak: int | None) -> str:
    return "–" if peak is None else f"{peak / 1e9:.0f} GB"


def main() -> None:
    """Plan and write."""
    parser = argparse.ArgumentParser(description="Plan BFCL for models that are not here.")
    parser.add_argument("tokenizer", nargs="?", type=Path, default=ROOT / "build" / "smollm2")
    put(PAGE, *MARKS, table(planned(parser.parse_args().tokenizer)))


if __name__ == "__main__":
    main()
