"""Count the prompt tokens that the real vLLM computes for a critic, per token of the record that it reads.

    python benchmarks/critic.py            # in the vLLM environment; about a minute

Every question opens with the record, byte-identical across votes and edited instructions, so that the prefix cache serves
all but the last block before the instructions. Measured in one process on one trace of about 12,000 tokens: one pass; then,
together with it, five votes; then one edited prompt. The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def long_trace(tokens: int, count: Any) -> Any:
    """A conversation of about so many tokens."""
    from hintdistill.core.types import Message, ToolCall, Trace
    from hintdistill.critics.record import whole

    messages = [Message(role="system", content="You answer requests with tools.")]
    size, k = 0, 0
    while size < tokens:
        arguments = json.dumps({"city": "Paris", "nights": k % 9}, separators=(",", ":"))
        messages += [
            Message(role="user", content=f"Request {k}: book the hotel of Paris for {k % 9} nights."),
            Message(role="assistant", tool_calls=(ToolCall(name="book_hotel", arguments_raw=arguments),)),
            Message(role="tool", content=json.dumps({"code": str(100 + k)}, separators=(",", ":")), name="book_hotel"),
            Message(role="assistant", content=f"Booked with code {100 + k}."),
        ]
        k += 1
        size = count(whole(Trace(id="long", messages=tuple(messages))).text)
    return Trace(id="long", messages=tuple(messages))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=12_000)
    parser.add_argument("--model", type=Path, default=ROOT / "examples" / "toolworld" / "student")
    args = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    from hintdistill.config import LLMSection
    from hintdistill.critics.llm import LLMCritic
    from hintdistill.critics.record import whole
    from hintdistill.critics.vllm import VLLMBackend
    from hintdistill.prompts import PromptLibrary

    backend = VLLMBackend(args.model, max_tokens=1000, context_tokens=2 * args.tokens + 8192, dtype="float32")
    trace = long_trace(args.tokens, backend.count)
    record = backend.count(whole(trace).text)
    computed: list[int] = []
    generate = backend.engine.generate

    def counting(prompts: Any, params: Any, use_tqdm: bool) -> Any:
        outputs = generate(prompts, params, use_tqdm=use_tqdm)
        computed.extend(len(o.prompt_token_ids) - (o.num_cached_tokens or 0) for o in outputs)
        return outputs

    backend.engine.generate = counting

    def ask(library: PromptLibrary, **settings: Any) -> float:
        """Critique the trace; the ratio so far. Answers may be long, so that what a small model says comes to an end."""
        section = LLMSection(backend="vllm", max_tokens=1000, max_findings=1, repair_rounds=0, **settings)
        for _ in LLMCritic(section, library, backend).critique([trace]):
            pass
        return round(sum(computed) / record, 4)

    one = ask(PromptLibrary())
    five = ask(PromptLibrary(), votes=5, temperature=0.7)
    with tempfile.TemporaryDirectory() as folder:
        edited = Path(folder) / "critic"
        edited.mkdir()
        text = (ROOT / "prompts" / "critic" / "all_at_once.jinja").read_text(encoding="utf-8")
        (edited / "all_at_once.jinja").write_text(
            text.replace("Deterministic checks found:", "What the checks say:"), encoding="utf-8"
        )
        last = ask(PromptLibrary(folder))
    print(
        json.dumps(
            {
                "record_tokens": record,
                "questions": len(computed),
                "computed_tokens": sum(computed),
                "one_pass": one,
                "with_five_votes": five,
                "with_an_edited_prompt": last,
                "bounds": {"one_pass": 1.2, "with_an_edited_prompt": 1.5},
                "within_bounds": one <= 1.2 and last <= 1.5,
            }
        )
    )


if __name__ == "__main__":
    main()
