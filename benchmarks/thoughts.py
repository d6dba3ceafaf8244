"""Train a student that reasons before each call, on whole steps and on actions alone, and compare.

    python benchmarks/thoughts.py [--dir runs/thoughts] [--student FOLDER] [--traces 240] [--episodes 80] [--page]

The student says a line of reasoning before each call (`examples/toolworld/build_student.py --thoughts`; it is made where
`--student` names none). Half of these lines name the call, so half of its errors stand in the reasoning first. Its own traces
are hinted and scored once; from the same targets one student is trained per loss span: `step`, reasoning and action, and
`action`, the step without its reasoning; anchors likewise. Findings come from the world's own checker, whose quote is moved into
the reasoning where the wrong name stands there.

Resumable: what a folder holds already is not made again. `--page` writes the table into docs/training.md. Last line: one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
TOOLWORLD = ROOT / "examples" / "toolworld"
sys.path[:0] = [str(ROOT), str(TOOLWORLD), str(ROOT / "benchmarks")]

from blocks import put  # noqa: E402
from world import Toolworld, label_steps  # noqa: E402

from hintdistill.core.scores import ScoreRequest, Target  # noqa: E402
from hintdistill.core.types import Finding, Trace  # noqa: E402
from hintdistill.engines.transformers import TransformersEngine  # noqa: E402
from hintdistill.injection.rendering import Renderer  # noqa: E402
from hintdistill.rescoring.store import TargetStore  # noqa: E402
from hintdistill.rollouts.sampling import Sampler, SamplingOptions  # noqa: E402
from hintdistill.traces.formats import native  # noqa: E402

SPANS = ("step", "action")
SEED, CLEAN = 7, 12
BEGIN, END = "<!-- spans: made by benchmarks/thoughts.py --page -->", "<!-- end of spans -->"


def make_student(folder: Path) -> Path:
    """The student that reasons."""
    if not (folder / "student" / "model.safetensors").exists():
        script = [sys.executable, str(TOOLWORLD / "build_student.py"), "corpus", "train"]
        subprocess.run([*script, "--thoughts", "--out", str(folder), "--lr", "1e-3"], check=True)
    return folder / "student"


def placed(finding: Finding, trace: Trace) -> Finding:
    """Return the finding with the facts of its hint; its quote is in the reasoning if the wrong name already occurs there."""
    said = trace.step(finding.step).content or ""
    if finding.error_class == "wrong_argument":
        right = next(iter(trace.tool_schemas[finding.facts["tool"]]["properties"]))
        finding = finding.model_copy(update={"facts": {**finding.facts, "right": right}})
    if finding.quote and finding.quote in said:
        return finding.model_copy(update={"quote_in": "content", "call": None})
    return finding


def make_traces(folder: Path, student: Path, count: int) -> None:
    """The student's own episodes on training tasks, and what the world's checker says of them."""
    if (folder / "findings.jsonl").exists():
        return
    engine, renderer = TransformersEngine.load(student, dtype="float32"), Renderer.from_pretrained(student)
    options = SamplingOptions(temperature=1.0, max_new_tokens=96, max_steps=8, batch_size=80, seed=SEED, logprobs=True)
    tasks = list(Toolworld().splits()["train"])[:count]
    traces = [e.trace for e in Sampler(engine, renderer, options).episodes(Toolworld(), tasks) if e.failure is None]
    native.write(folder / "traces.jsonl", traces)
    native.write(folder / "clean.jsonl", [t for t in traces if t.reward == 1.0][:CLEAN])
    rows = [
        json.dumps({"trace": t.id, **placed(f, t).model_dump(mode="json", exclude_defaults=True)})
        for t in traces
        for f in label_steps(t)
    ]
    (folder / "findings.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def run(folder: Path, name: str, settings: list[str], *more: str) -> None:
    """A run of the quickstart's configuration on these traces."""
    command = [sys.executable, "-m", "hintdistill.cli", "run", str(ROOT / "configs" / "quickstart.yaml"), "-q"]
    subprocess.run([*command, f"run.dir={folder / name}", *settings, *more], check=True, cwd=ROOT)


def train(folder: Path, student: Path, episodes: int) -> None:
    """Score the hints once, and train one student per span."""
    settings = [
        f"run.model={student}",
        f"traces.path={folder / 'traces.jsonl'}",
        "critic.use=[recorded]",
        f"critic.recorded.path={folder / 'findings.jsonl'}",
        "critic.recorded.error_classes=null",
        "rollout.splits=[test,test_clean]",
        f"rollout.limit={episodes}",
        "rollout.max_new_tokens=96",
        # the shipped ones do not reason
        f"report.off_target.near_misses={folder / 'clean.jsonl'}",
    ]
    if not (folder / "shared" / "targets").is_dir():
        run(folder, "shared", settings, "--until", "rescore")
    for span in SPANS:
        done = folder / f"{span}.done"
        if done.exists():
            continue
        if not (folder / span).exists():
            shutil.copytree(folder / "shared", folder / span)
        terms = [f"train.recipe.terms.{name}.span={span}" for name in ("distill", "anchor")]
        run(folder, span, [*settings, "train.recipe=targeted", *terms], "--resume")
        done.touch()


def request_of(target: Target) -> ScoreRequest:
    """The step of a target in the student's own context."""
    ids = np.concatenate([target.context_ids, target.step_ids])
    return ScoreRequest(ids, len(target.context_ids), len(ids))


def in_reasoning(target: Target) -> bool:
    """Whether the quote begins in the reasoning."""
    return target.span[0] < (target.action_start or 0)


def moved(initial: TransformersEngine, after: TransformersEngine, clean: list[Target]) -> dict[str, float]:
    """KL(initial ‖ student) in nats per token on held-out clean steps, of reasoning and of action."""
    requests = [request_of(t) for t in clean]
    parts: dict[str, list[float]] = {"reasoning": [], "action": []}
    for t, p, q in zip(clean, initial.logprobs(requests), after.logprobs(requests), strict=True):
        kl = (p.double().exp() * (p.double() - q.double())).sum(-1).tolist()
        cut = t.action_start or 0
        parts["reasoning"] += kl[:cut]
        parts["action"] += kl[cut:]
    return {f"kl_{name}": float(np.mean(values)) if values else 0.0 for name, values in parts.items()}


def read(folder: Path, student: Path) -> dict[str, Any]:
    """Everything that is reported, by span."""
    stored = list(TargetStore(folder / "shared" / "targets").read())
    hints = [t for t in stored if t.kind == "hint"]
    held = [t for t in hints if t.split == "holdout" and t.accepted and t.decision]
    clean = [t for t in stored if t.kind == "anchor" and t.split == "holdout" and (t.action_start or 0) >= 0]
    out: dict[str, Any] = {"findings": {}, "held_out": {}, "clean_steps": len(clean), "spans": {}}
    for place, inside in (("reasoning", True), ("action", False)):
        mine = [t for t in hints if in_reasoning(t) == inside]
        out["findings"][place] = {"scored": len(mine), "accepted": sum(t.accepted for t in mine)}
        ours = [t for t in held if in_reasoning(t) == inside]
        out["held_out"][place] = {
            "findings": len(ours),
            "before": mean([t.decision.logprob_plain for t in ours if t.decision]),
            "hinted": mean([t.decision.logprob_hinted for t in ours if t.decision]),
        }
    initial = TransformersEngine.load(student, dtype="float32")
    for span in SPANS:
        report = json.loads((folder / span / "report.json").read_text(encoding="utf-8"))
        after = TransformersEngine.load(folder / span / "student", dtype="float32")
        scores = after.score([request_of(t) for t in held], 1)
        found = {
            place: mean(
                [
                    float(s.sampled[t.decision.position])
                    for s, t in zip(scores, held, strict=True)
                    if t.decision and in_reasoning(t) == inside
                ]
            )
            for place, inside in (("reasoning", True), ("action", False))
        }
        env, splits = report["environment"], report["environment"]["splits"]
        out["spans"][span] = {
            "success": [env[when]["success_rate"] for when in ("before", "after")],
            "errors": [env[when]["error_rate"] for when in ("before", "after")],
            "clean_success": [splits["test_clean"][when]["success_rate"] for when in ("before", "after")],
            "p_error": found,
            **moved(initial, after, clean),
        }
    return out


def mean(logprobs: list[float]) -> float | None:
    """Mean probability; None of nothing."""
    return float(np.mean(np.exp(logprobs))) if logprobs else None


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""

    def number(value: float | None, form: str = ".3f") -> str:
        return "–" if value is None else format(value, form)

    first = found["spans"]["step"]
    rows = [("", "before", *(f"span `{s}`" for s in SPANS)), ("---",) * 4]
    for words, key in (
        ("task success, held-out tasks", "success"),
        ("share of episodes with a habit error", "errors"),
        ("task success, clean tasks", "clean_success"),
    ):
        rows.append((words, number(first[key][0]), *(number(found["spans"][s][key][1]) for s in SPANS)))
    for place in ("reasoning", "action"):
        held = found["held_out"][place]
        words = f"P(error), if it occurs first in the {place} (n = {held['findings']}; hinted {number(held['hinted'])})"
        after = (number(found["spans"][s]["p_error"][place]) for s in SPANS)
        rows.append((words, number(held["before"]), *after))
    for place in ("reasoning", "action"):
        words = f"KL(initial ‖ student) on {place} tokens of held-out clean steps, nats per token"
        rows.append((words, "", *(number(found["spans"][s][f"kl_{place}"], ".5f") for s in SPANS)))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    counts = found["findings"]
    said = " and ".join(
        f"{c['accepted']} of {c['scored']} whose error occurs first in the {place}" for place, c in counts.items()
    )
    return "\n".join(lines) + f"\n\nAccepted hints: {said}. One seed. Made by `python benchmarks/thoughts.py --page`."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=ROOT / "runs" / "thoughts")
    parser.add_argument("--student", type=Path, help="one that reasons already")
    parser.add_argument("--traces", type=int, default=240)
    parser.add_argument("--episodes", type=int, default=80, help="of each split that success is measured on")
    parser.add_argument("--page", action="store_true", help="write the table into docs/training.md")
    args = parser.parse_args()
    began, folder = time.process_time(), args.dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    student = args.student.resolve() if args.student else make_student(folder)
    make_traces(folder, student, args.traces)
    train(folder, student, args.episodes)
    found = read(folder, student)
    if args.page:
        put(ROOT / "docs" / "training.md", BEGIN, END, table(found))
    print(json.dumps(found | {"processor_s": round(time.process_time() - began, 1)}))


if __name__ == "__main__":
    main()
