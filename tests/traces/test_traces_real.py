"""Every real file loads or is refused with a reason; counts are those of the index that lies beside the files."""

from __future__ import annotations

import re

import pytest
from conftest import REAL_TRACES

from hintdistill.reporting.inspection import FileReport, inspect_files

REFUSED = {
    "inspect/log_tool_call_error.json": "no_assistant_step",
    "openai_chat/tools_tau_airline.json": "not_a_trace",
    "openai_chat/tools_tau_retail.json": "not_a_trace",
    "tau2/tools_data.json": "not_a_trace",
    "token_ids/maybe_correct_merged_tokens_test_data.json": "not_a_trace",
    "token_ids/test_nemo_gym_sanity.json": "not_a_trace",
}
"""Files without a turn of a model: tool lists, retokenisation cases, tool errors."""

pytestmark = pytest.mark.skipif(not REAL_TRACES.is_dir(), reason=f"no real traces at {REAL_TRACES}")


@pytest.fixture(scope="module")
def reports() -> dict[str, FileReport]:
    folders = sorted(p for p in REAL_TRACES.iterdir() if p.is_dir() and p.name != "annotated")
    return {r.path.removeprefix(f"{REAL_TRACES}/"): r for folder in folders for r in inspect_files([folder])}


def test_every_file_loads_or_is_refused_with_a_reason(reports):
    refused = {name: r for name, r in reports.items() if not r.steps and r.failures}
    repeated = {name for name, r in refused.items() if set(r.reasons) == {"repeated_prefix"}}
    assert all(name.startswith("llm_call_logs/") for name in repeated)
    assert {name: next(iter(r.reasons)) for name, r in refused.items() if name not in repeated} == REFUSED
    assert all(r.reason for r in refused.values())


@pytest.mark.parametrize(
    "folder", ["otel", "langfuse", "langsmith", "atif", "openai_responses", "swe_agent", "toolbench"]
)
def test_no_file_yields_zero_steps(reports, folder):
    mine = [r for name, r in reports.items() if name.startswith(folder)]
    assert mine and all(r.steps for r in mine)


def test_tool_calls_are_those_of_the_index(reports):
    """Where the index counted a format by its own reader; spans and Langfuse it counted with a generic one, which misses."""
    counted = {}
    for row in (REAL_TRACES / "INDEX.md").read_text().splitlines():
        cells = [c.strip() for c in row.strip("|").split("|")]
        if len(cells) >= 10 and re.fullmatch(r"\d+", cells[6]):
            counted[cells[0]] = (int(cells[4]), int(cells[6]))
    other = (
        "otel/",
        "langfuse/",
        "adk/order",
        "toolbench/G1_69",
        "toolbench/stable_588",
        "llm_call_logs/",
        "annotated/",
        "inspect/",
    )
    compared = {name: r for name, r in reports.items() if name in counted and not name.startswith(other)}
    assert len(compared) > 45
    # aviary repeats its states; the index counted each
    wrong = {
        n: (r.tool_calls, counted[n])
        for n, r in compared.items()
        if r.tool_calls != counted[n][1] and "aviary" not in n
    }
    assert not wrong
    found = sum(r.tool_calls for n, r in reports.items() if n.startswith(("otel/", "langfuse/")))
    assert found >= sum(c for n, (_, c) in counted.items() if n.startswith(("otel/", "langfuse/")))


def test_token_ids_are_where_they_were_recorded(reports):
    assert reports["token_ids/nemo_gym_competitive_coding.jsonl"].token_ids == 5
    assert reports["atif/harbor_terminus2_timeout.json"].token_ids == 3
    empty = [r for n, r in reports.items() if n.startswith("openai_responses/")]
    assert sum(r.token_ids for r in empty) == 0, "empty lists mean absent"
