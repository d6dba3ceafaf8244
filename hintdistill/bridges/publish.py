"""Upload an export to a hub (`hintdistill push --targets`), after a scan for secrets, or as a variant without text.

Token ids are text to anybody with the tokenizer. So every row is decoded and scanned before anything is sent. The
variant without text contains no token ids either, only numbers, for statistics and not for training.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from hintdistill.bridges.card import README
from hintdistill.bridges.export import ExportSettings, export
from hintdistill.bridges.formats import DATA
from hintdistill.bridges.runs import RunRows, open_rows
from hintdistill.bridges.tables import write_rows
from hintdistill.core.errors import ConfigError
from hintdistill.core.scores import Target
from hintdistill.critics import secrets
from hintdistill.critics.secrets import SecretError
from hintdistill.training.push import check_push, upload

_FLOATS = pa.list_(pa.float32())
NUMBERS = pa.schema(
    [
        ("trace", pa.int32()),
        ("kind", pa.string()),
        ("first_position", pa.int32()),
        ("span_start", pa.int32()),
        ("span_end", pa.int32()),
        ("action_start", pa.int32()),
        ("teacher_logprobs", pa.list_(_FLOATS)),
        ("plain_logprobs", pa.list_(_FLOATS)),
        ("teacher_tail", _FLOATS),
        ("plain_tail", _FLOATS),
        ("teacher_sampled", _FLOATS),
        ("plain_sampled", _FLOATS),
        ("decision", pa.int32()),
        ("effect", pa.float32()),
        ("odds", pa.float32()),
        ("specificity", pa.float32()),
    ]
)
"""Columns of the variant without text. `trace` numbers the traces; log-probabilities are in descending order of the
teacher's."""


def push_targets(
    run: Path,
    repository: str,
    *,
    form: str = "hf",
    settings: ExportSettings | None = None,
    text_free: bool = False,
    private: bool = True,
    licence: str | None = None,
    trust: bool = False,
) -> str:
    """Upload a run's targets as a data set, and return the address of the commit.

    Args:
        form, settings, licence: see `export.export`; for the variant without text, only the licence has an effect.
        text_free: send only numbers.
        trust: see `runs.open_rows`.

    Raises:
        ConfigError: there is no token, or the repository name is invalid.
        InputError: there are no targets.
        SecretError: a row contains a secret; the message names the trace and the kind of secret, never the secret.
            Nothing is sent.
        ServiceError: the hub cannot be reached or refuses.
    """
    check_push(repository)
    found = open_rows(run, trust=trust)
    with tempfile.TemporaryDirectory(prefix="hintdistill-push-") as name:
        folder = Path(name) / "export"
        if text_free:
            _write_numbers(found, folder, licence)
        else:
            scan(found)
            export(run, form, settings, out=folder, licence=licence, trust=trust)
        files = [(p.name, str(p)) for p in sorted(folder.iterdir())]
        where = f"{run}/targets"
        return upload(repository, files, private, what="the targets", where=Path(where), dataset=True)


def scan(run: RunRows) -> None:
    """Raise SecretError if a step, its context or its hint contains a secret. Every target is read and decoded."""
    secrets.require()
    with run.scope():
        decode, seen = run.ctx.renderer.decode, set[bytes]()
    for _, target in run.targets.by_part():
        parts = {"context": target.context_ids, "step": target.step_ids, "hint": target.block_ids}
        held = []
        for what, ids in parts.items():
            # twins and hints of one trace share their contexts
            if ids.tobytes() not in seen:
                seen.add(ids.tobytes())
                held += [
                    f"{what} of step {target.step}: {', '.join(kinds)}"
                    for kinds in [secrets.kinds(decode(ids.tolist()))]
                    if kinds
                ]
        if held:
            raise SecretError(
                f"trace {target.trace_id} contains a secret, and nothing was sent: {'; '.join(held)}",
                hint="clean the traces and run again, or send only numbers with --text-free",
            )


def _write_numbers(run: RunRows, folder: Path, licence: str | None) -> None:
    folder.mkdir(parents=True)
    traces = {h.trace_id: i for i, h in reversed(list(enumerate(run.targets.heads)))}
    numbered = {name: n for n, name in enumerate(sorted(traces, key=lambda t: traces[t]))}

    def rows() -> Iterator[dict[str, Any]]:
        for target in run.targets:
            yield numbers(target, numbered[target.trace_id])

    count = write_rows(folder, "numbers", NUMBERS, rows())
    kinds = sorted({str(h.kind) for h in run.targets.heads})
    text = "\n".join(
        [
            "---",
            f"license: {licence or 'unknown'}",
            "tags: [hintdistill, distillation]",
            "---",
            "",
            "# Numbers of a hintdistill run's targets, without text",
            "",
            f"{count} steps ({', '.join(kinds)}). `{DATA}` holds {', '.join(NUMBERS.names)}.",
            "It contains no token ids and no words, so it is for statistics and not for training.",
            "",
        ]
    )
    (folder / README).write_text(text, encoding="utf-8")


def numbers(target: Target, trace: int) -> dict[str, Any]:
    """Return those numbers of a target from which no text can be recovered."""
    order = (-target.teacher_logprobs).argsort(axis=1, kind="stable")
    counts = (target.support_ids >= 0).sum(1)
    measured = target.measurement

    def ranked(view: Any) -> list[list[float]]:
        return [row[o][:n].tolist() for row, o, n in zip(view, order, counts, strict=True)]

    return {
        "trace": trace,
        "kind": target.kind,
        "first_position": len(target.context_ids),
        "span_start": target.span[0],
        "span_end": target.span[1],
        "action_start": target.action_start,
        "teacher_logprobs": ranked(target.teacher_logprobs),
        "plain_logprobs": ranked(target.plain_logprobs),
        "teacher_tail": target.teacher_tail.tolist(),
        "plain_tail": target.plain_tail.tolist(),
        "teacher_sampled": target.teacher_sampled.tolist(),
        "plain_sampled": target.plain_sampled.tolist(),
        "decision": None if measured is None else measured.position,
        "effect": None if measured is None else measured.effect,
        "odds": None if measured is None else measured.odds,
        "specificity": None if measured is None else measured.specificity,
    }


def require_flags(targets: bool, text_free: bool) -> None:
    """Raise ConfigError if the student would be pushed but an option concerns targets."""
    if text_free and not targets:
        raise ConfigError(
            "--text-free concerns targets, but targets are not pushed", hint="hintdistill push RUN REPO --targets"
        )
