"""Traces with human labels of the erring step, in the forms published by three benchmarks.

| set | record | label |
|---|---|---|
| Who&When (ag2ai) | `history` of messages whose speaker is `name`, else `role` | `mistake_step`: a string, from 0, into `history` |
| AgentProcessBench | OpenAI `messages` | `step_labels` by message index from 0; the first −1 is the error, none is a clean run |
| AgentRx | a ground-truth record; its trajectory is another file | `step_number` from 1; `root_cause` names one |

A label refers to a message. It becomes a step if that message is the student's, and the verdict `not_student` otherwise
(9 of 29 root causes of AgentRx tau are errors of the simulated user). In the two multi-agent sets every agent is the
student unless `student_role` names one; people and terminals never are. The first message of a Who&When log is the
task. Generated logs open with the manager's instructions, sent in an expert's name, so a label there does not refer to
the student.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hintdistill.core.errors import InputError, TraceError
from hintdistill.core.frozen import FrozenModel
from hintdistill.core.types import Message, Source, Trace, Verdict
from hintdistill.traces.files import all_files
from hintdistill.traces.formats import openai_chat
from hintdistill.traces.options import Failure, ReadOptions, Record
from hintdistill.traces.reading import read_records

NOT_AGENTS = {"human", "user", "computer_terminal", "computerterminal"}
"""Speakers of the multi-agent sets that are never the student, in lower case."""


class Label(FrozenModel):
    """Hold the human label of a trace."""

    verdict: Verdict
    """`findings`, `none`, or `not_student` if someone else made the error."""
    step: int | None = None
    """The erring step; if there are several, the root error, or the first if none is marked as root."""
    steps: tuple[int, ...] = ()
    """Every step labelled as an error."""
    error_class: str = "unlabelled"
    message: int | None = None
    """Index of the labelled message, whoever wrote it."""
    reason: str | None = None


class Labelled(FrozenModel):
    """Hold a trace and its label."""

    trace: Trace
    label: Label
    source_set: str


def read_annotated(paths: Sequence[str | Path], options: ReadOptions = ReadOptions()) -> Iterator[Labelled | Failure]:
    """Read every labelled record under `paths`. Trajectories that a ground-truth file labels count as part of that
    file.

    Raises:
        InputError: a path does not exist.
    """
    records = [r for file in all_files(paths) if not file.foreign for r in read_records(file, options)]
    truths = [r for r in records if isinstance(r, Record) and _is_truth(r.value)]
    labelled_elsewhere = {str(r.value["trajectory_id"]) for r in truths}
    for record in records:
        if isinstance(record, Failure):
            yield record
            continue
        value = record.value
        try:
            if _is_truth(value):
                yield _agentrx(value, record.source, options)
            elif isinstance(value, Mapping) and "mistake_step" in value:
                yield _who_and_when(value, record.source, options)
            elif isinstance(value, Mapping) and "step_labels" in value:
                yield _process_bench(value, record.source, options)
            elif _id_of(value, record.source) not in labelled_elsewhere:
                yield Failure(record.source, "no_label", "the record contains no label of a known set")
        except (TraceError, InputError) as error:
            yield Failure(record.source, "not_a_trace", error.message)
        except (KeyError, ValueError, TypeError, IndexError) as error:
            yield Failure(record.source, "not_a_label", f"{type(error).__name__}: {error}")


def _is_truth(value: Any) -> bool:
    return isinstance(value, Mapping) and "trajectory_id" in value and "failures" in value


def _id_of(value: Any, source: Source) -> str:
    if isinstance(value, Mapping) and "task_id" in value:
        return str(value["task_id"])
    return Path(source.file).stem


def _labelled(
    trace: Trace, messages: Sequence[int], root: int, error_class: str, reason: str | None, of: str
) -> Labelled:
    """Convert labelled message indices into steps."""
    if not 0 <= root < len(trace.messages):
        raise ValueError(f"the label refers to message {root} of {len(trace.messages)}")
    by_message = {at: k for k, at in enumerate(trace.step_indices)}
    steps = tuple(sorted({by_message[m] for m in messages if m in by_message}))
    step = by_message.get(root)
    label = Label(
        verdict="not_student" if step is None else "findings",
        step=step,
        steps=steps,
        error_class=error_class,
        message=root,
        reason=reason,
    )
    return Labelled(trace=trace, label=label, source_set=of)


def _who_and_when(value: Mapping[str, Any], source: Source, options: ReadOptions) -> Labelled:
    trace = Trace(
        id=f"{Path(source.file).parent.name}/{Path(source.file).stem}",
        messages=tuple(_task(m, options) if i == 0 else _spoken(m, options) for i, m in enumerate(value["history"])),
        reward=0.0,
        task_id=str(value.get("question_ID", "")) or None,
        source=source,
        extra={k: v for k, v in value.items() if k not in ("history", "system_prompt")},
    )
    at = int(value["mistake_step"])
    return _labelled(trace, [at], at, "unlabelled", value.get("mistake_reason"), "who_and_when")


def _task(message: Mapping[str, Any], options: ReadOptions) -> Message:
    """Return the first message of a Who&When log, which is the task, regardless of its named sender. In generated logs
    the manager, who is not a speaker, sends it in the name of the first expert."""
    spoken = _spoken(message, options)
    return (
        spoken if spoken.role == "user" else spoken.model_copy(update={"role": "user", "content": message["content"]})
    )


def _spoken(message: Mapping[str, Any], options: ReadOptions) -> Message:
    """Return a message of a multi-agent log with its speaker in front of the text, so that the critic sees who
    spoke."""
    speaker = str(message.get("name") or message["role"])
    agent = speaker.partition(" (")[0]
    student = agent.lower() not in NOT_AGENTS if options.student_role == "assistant" else agent == options.student_role
    content = message.get("content") or ""
    if not isinstance(content, str):
        raise TraceError(f"content of type {type(content).__name__}")
    return Message(role="assistant" if student else "user", content=f"{speaker}: {content}", name=speaker)


def _process_bench(value: Mapping[str, Any], source: Source, options: ReadOptions) -> Labelled:
    name = f"{value.get('data_source', Path(source.file).stem)}-{value.get('total_index', source.position)}"
    reward = value.get("final_label")
    record = {k: v for k, v in value.items() if k not in ("final_label",)} | {"id": name}
    trace = openai_chat.parse(record, source, options)
    trace = trace.model_copy(update={"reward": None if reward is None else float(reward == 1)})
    wrong = sorted(int(k) for k, v in value["step_labels"].items() if v == -1)
    if not wrong:
        return Labelled(trace=trace, label=Label(verdict="none"), source_set="agent_process_bench")
    return _labelled(trace, wrong, wrong[0], "unlabelled", None, "agent_process_bench")


def _agentrx(value: Mapping[str, Any], source: Source, options: ReadOptions) -> Labelled:
    wanted = str(value["trajectory_id"])
    trace = _trajectory(wanted, Path(source.file), options)
    failures = {str(f["failure_id"]): f for f in value["failures"]}
    root = failures[str(value["root_cause"]["failure_id"])]
    return _labelled(
        trace,
        [int(f["step_number"]) - 1 for f in value["failures"]],
        int(root["step_number"]) - 1,
        str(root["failure_category"]),
        root.get("step_reason"),
        "agentrx",
    )


def _records(path: Path, options: ReadOptions) -> Iterator[Record]:
    """Yield the readable records of a file."""
    for file in all_files([path]):
        for record in read_records(file, options):
            if isinstance(record, Record):
                yield record


def _trajectory(wanted: str, truth: Path, options: ReadOptions) -> Trace:
    """Return the trajectory of a ground-truth record: a file with its name, else a record with its task id, in the same
    folder or below it."""
    named = sorted(p for p in truth.parent.rglob(f"{wanted}.json") if p != truth)
    for path in named:
        # the elements of a JSON array are read one by one
        records = list(_records(path, options))
        if records and all(isinstance(r.value, Mapping) and ("role" in r.value or "name" in r.value) for r in records):
            messages = tuple(_spoken(r.value, options) for r in records)
            return Trace(id=wanted, messages=messages, reward=0.0, source=records[0].source)
    for path in sorted(truth.parent.glob("*.json")):
        if path == truth:
            continue
        for record in _records(path, options):
            value = record.value
            if isinstance(value, Mapping) and str(value.get("task_id")) == wanted and not _is_truth(value):
                trace = openai_chat.parse(value, record.source, options)
                return trace.model_copy(update={"id": f"{path.stem}-{wanted}"})
    raise InputError(f"{truth} labels the trajectory {wanted}, which is neither in the same folder nor below it")
