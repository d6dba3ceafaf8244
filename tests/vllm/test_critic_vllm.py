"""The tiny toolworld critic on vLLM in this process: the same answers as the local backend, and one prefill per record."""

from __future__ import annotations

import pytest
from support.served import CONTEXT, CRITIC, TOOLWORLD

vllm = pytest.importorskip("vllm", reason="vllm is not installed in this environment; `make test-vllm` has its own")
pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def backend(vllm_engine):
    from hintdistill.critics.vllm import VLLMBackend

    return VLLMBackend(CRITIC, max_tokens=320, context_tokens=CONTEXT, dtype="float32", engine=vllm_engine.llm)


def traces(n: int):
    from hintdistill.traces.reading import read_traces

    out = []
    for trace in read_traces([TOOLWORLD / "traces.jsonl"]):
        out.append(trace)
        if len(out) == n:
            break
    return out


def section(**settings):
    from hintdistill.config import LLMSection

    defaults = {
        "prompt": "critic/toolworld.jinja",
        "fields": (),
        "max_tokens": 320,
        "max_findings": 4,
        "concurrency": 16,
    }
    return LLMSection(**{**defaults, **settings})


def test_the_tiny_critic_answers_as_it_does_locally(backend):
    """float32 on both sides, greedy: the same JSON from vLLM's structured outputs as from llguidance."""
    from hintdistill.critics.llm import LLMCritic
    from hintdistill.critics.local import LocalBackend
    from hintdistill.prompts import PromptLibrary

    ours = LocalBackend(CRITIC, max_tokens=320, dtype="float32", device="cpu")
    said = []
    for one, name in ((backend, "vllm"), (ours, "local")):
        critic = LLMCritic(section(backend=name), PromptLibrary(), one)
        said.append({t.id: o for t, o in critic.critique(traces(24))})
    assert all(o.verdict in ("findings", "none") for o in said[0].values())
    same = sum(said[0][i].raw_answer == said[1][i].raw_answer for i in said[0])
    assert same >= 23, "a tie between two tokens may fall otherwise; nothing else"


def test_an_answer_that_the_limit_ends_is_marked(backend):
    from hintdistill.critics.answers import half_schema
    from hintdistill.critics.backends import Request
    from hintdistill.critics.vllm import VLLMBackend

    asked = [Request(({"role": "user", "content": "x"},), half_schema())]
    short = VLLMBackend(CRITIC, max_tokens=3, context_tokens=CONTEXT, engine=backend.engine)
    assert [one.complete(asked)[0].cut for one in (backend, short)] == [False, True]


def test_votes_and_an_edited_prompt_reuse_the_record(backend, tmp_path):
    """Prompt tokens that vLLM computed, over those of the records: one pass, then five votes and one edited prompt."""
    from hintdistill.core.types import Message, Trace
    from hintdistill.critics.llm import LLMCritic
    from hintdistill.prompts import PromptLibrary

    messages = []
    for k in range(40):
        messages += [
            Message(role="user", content=f"Request {k}: " + "book the hotel of Paris. " * 4),
            Message(role="assistant", content=f"Done with {k}. " + "Booked with code 123. " * 4),
        ]
    trace = Trace(id="long", messages=tuple(messages))
    computed: list[int] = []
    generate = backend.engine.generate

    def counting(prompts, params, use_tqdm):
        outputs = generate(prompts, params, use_tqdm=use_tqdm)
        computed.extend(len(o.prompt_token_ids) - (o.num_cached_tokens or 0) for o in outputs)
        return outputs

    backend.engine.generate = counting
    try:
        from hintdistill.critics.record import whole
        from hintdistill.critics.vllm import VLLMBackend

        # one finding of bounded length at most, so that whatever so small a model says of so long a trace comes to an end
        patient = VLLMBackend(CRITIC, max_tokens=1000, context_tokens=CONTEXT, engine=backend.engine)
        settings = {"backend": "vllm", "max_tokens": 1000, "max_findings": 1, "repair_rounds": 0}
        record = backend.count(whole(trace).text)
        LLMCritic(section(**settings), PromptLibrary(), patient).ask(trace)
        assert len(computed) == 1 and sum(computed) / record <= 1.2
        LLMCritic(section(**settings, votes=5, temperature=0.7), PromptLibrary(), patient).ask(trace)
        (tmp_path / "critic").mkdir()
        (tmp_path / "critic" / "toolworld.jinja").write_text(
            "{{ signatures }}\n{{ trace }}\nName the wrong step of {{ legal_steps | join(',') }}."
        )
        LLMCritic(section(**settings), PromptLibrary(tmp_path), patient).ask(trace)
        assert len(computed) == 7 and sum(computed) / record <= 1.5
    finally:
        backend.engine.generate = generate
