"""Fix the splits and let the student produce the shipped traces. About two minutes.

    python examples/toolworld/make_traces.py

Writes splits.json, traces.jsonl (the student's own rollouts on training tasks, temperature 1, token ids and
log-probabilities kept), near_misses.jsonl (greedy rollouts on near-miss tasks, the successful ones) and findings.jsonl
(what the world's own checker says of traces.jsonl).
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from demonstrator import draw_task, rollout_kinds  # noqa: E402
from world import HELD_OUT_KINDS, Toolworld, label_steps  # noqa: E402

from hintdistill.core.types import Trace  # noqa: E402
from hintdistill.engines.transformers import TransformersEngine  # noqa: E402
from hintdistill.injection.rendering import Renderer  # noqa: E402
from hintdistill.rollouts.sampling import Sampler, SamplingOptions  # noqa: E402
from hintdistill.traces.formats import native  # noqa: E402

STUDENT = HERE / "student"
TRACES = 600
NEAR_MISS_TRACES = 24
SEED = 2026


def make_splits() -> dict[str, list[str]]:
    """Task names by split. Training tasks use names of the corpus, all others names it never contained."""
    rng = random.Random(SEED)
    kinds = rollout_kinds()

    def draw(n: int, names: str, of: tuple[str, ...] = kinds, **fixed: str) -> list[str]:
        out: dict[str, None] = {}
        while len(out) < n:
            out[draw_task(rng, names, of, **fixed)] = None
        return list(out)

    clean = [
        t
        for t in draw(1200, "new", trigger="none") + draw(600, "new", trigger="given")
        if t.split(".")[2] in ("none", "busy")
    ]
    return {
        "train": draw(1200, "old"),
        "validation": draw(200, "new"),
        "test": draw(300, "new"),
        "test_clean": sorted(rng.sample(clean, 240)),
        "near_miss_unknown_tool": draw(60, "new", trigger="near_alias", fault="none"),
        "near_miss_wrong_argument": draw(60, "new", trigger="near_noun", fault="none"),
        "near_miss_skipped_lookup": draw(60, "new", trigger="near_urgent", fault="none"),
        "near_miss_ignored_error": draw(60, "new", trigger="none", fault="warning"),
        "transfer": draw(200, "new", HELD_OUT_KINDS),
    }


def roll_out(tasks: list[str], temperature: float) -> list[Trace]:
    """The student's episodes on these tasks, in order; those that came to an end."""
    engine, renderer = TransformersEngine.load(STUDENT, dtype="float32"), Renderer.from_pretrained(STUDENT)
    options = SamplingOptions(
        temperature=temperature, max_new_tokens=64, max_steps=8, batch_size=100, seed=SEED, logprobs=True
    )
    episodes = Sampler(engine, renderer, options).episodes(Toolworld(), tasks)
    return [e.trace for e in episodes if e.failure is None]


def main() -> None:
    splits = make_splits()
    about = "Which toolworld tasks train, validate and test; see world.py for how a name spells out its task."
    (HERE / "splits.json").write_text(json.dumps({"about": about, "splits": splits}, indent=0) + "\n", encoding="utf-8")
    traces = roll_out(splits["train"][:TRACES], temperature=1.0)
    native.write(HERE / "traces.jsonl", traces)
    near = []
    for name, tasks in splits.items():
        if name.startswith("near_miss_"):
            # the second half: the first is for measuring success
            near += [t for t in roll_out(tasks[-2 * NEAR_MISS_TRACES :], temperature=0.0) if t.reward == 1.0][
                :NEAR_MISS_TRACES
            ]
    native.write(HERE / "near_misses.jsonl", near)
    with (HERE / "findings.jsonl").open("w", encoding="utf-8") as file:
        for trace in traces:
            for finding in label_steps(trace):
                row = {"trace": trace.id, **finding.model_dump(mode="json", exclude_defaults=True)}
                file.write(json.dumps(row, separators=(",", ":")) + "\n")
    classes = Counter(f.error_class for t in traces for f in label_steps(t) if f.caused_by is None)
    print(
        f"{len(traces)} traces, {sum(t.reward or 0 for t in traces) / len(traces):.3f} successful, {len(near)} near-misses, {dict(classes)}"
    )


if __name__ == "__main__":
    main()
