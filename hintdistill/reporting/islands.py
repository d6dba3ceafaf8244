"""Store the findings and traces of a page as compressed islands of data, which the page's script unpacks on demand.

An island is JSON, compressed by gzip and encoded as base64: text without characters that are special in HTML. The index
contains the values by which the list of findings is shown, sorted and filtered; details and traces come in chunks, each
in a separate island.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hintdistill.reporting.reasons import explained
from hintdistill.reporting.twins import edit_lines
from hintdistill.reporting.worst import residual

CHUNK = 1 << 18
"""Approximate size of a chunk in characters of JSON, which the page unpacks to show one finding."""
AROUND = 160
"""Number of context characters that a finding shows at the hint and at the step, if the page contains its trace."""
WHEN = ("before", "hinted", "after")


def island(text: str) -> str:
    """Pack JSON with gzip and base64."""
    # a lone surrogate is no text: it becomes a question mark here and stays as it is in report.json
    packed = gzip.compress(text.encode("utf-8", "replace"), compresslevel=6, mtime=0)
    return base64.b64encode(packed).decode("ascii")


class _Chunks:
    """Collect values as JSON in islands of about `CHUNK` characters, with at least one value each; only one island is
    in memory."""

    def __init__(self, letter: str) -> None:
        """Store the prefix of the islands' ids."""
        self._letter, self._number, self._size, self._some = letter, 0, 0, list[str]()

    def add(self, value: Any) -> tuple[int, int]:
        """Add a value; return the number of its island and its position there."""
        place = self._number, len(self._some)
        self._some.append(_json(value))
        self._size += len(self._some[-1])
        return place

    def packed(self, *, last: bool = False) -> Iterator[tuple[str, str]]:
        """Return id and content of the island if it is full, or is the last one and not empty."""
        if self._some and (last or self._size >= CHUNK):
            yield f"{self._letter}{self._number}", island(f"[{','.join(self._some)}]")
            self._number, self._size, self._some = self._number + 1, 0, []


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def pack(
    findings: Iterable[Mapping[str, Any]],
    unscored: Iterable[Mapping[str, Any]],
    traces: Mapping[str, Mapping[str, Any]],
) -> Iterator[tuple[str, str]]:
    """Pack the findings that a page shows, and their traces: yield id and content of each island, the index last.

    Findings and traces may be on disk: each is read once, and only its row of the index is kept.

    Args:
        findings: entries of the report document, in the order in which the page numbers them.
        unscored: all findings that were not scored; those of the shown traces are listed with them.
        traces: by trace id, the result of `trace_page`; empty if the page contains no trace text.
    """
    number, rows, reasons = dict[str, int](), list[str](), set[str]()
    details = _Chunks("d")
    for f in findings:
        at = details.add(detail(f, f["trace"] in traces))
        rows.append(_json(_index_row(f, number.setdefault(f["trace"], len(number)), at)))
        reasons.update(f["reasons"])
        yield from details.packed()
    yield from details.packed(last=True)
    places, pages = list[tuple[int, int] | None](), _Chunks("t")
    for name in number:
        places.append(pages.add(traces[name]) if name in traces else None)
        yield from pages.packed()
    yield from pages.packed(last=True)
    lost: dict[int, list[list[Any]]] = {}
    for u in unscored:
        if u["trace"] in number:
            lost.setdefault(number[u["trace"]], []).append([u["step"], u["error_class"], u["reason"]])
    rest = {
        "traces": list(number),
        "places": places,
        "unscored": lost,
        "reasons": {r: explained(r) for r in sorted(reasons)},
    }
    yield "index", island(f'{{"findings":[{",".join(rows)}],{_json(rest)[1:]}')


def _index_row(f: Mapping[str, Any], trace: int, at: tuple[int, int]) -> dict[str, Any]:
    """Return the values by which the list shows, sorts and filters a finding."""
    return {
        "key": f["key"],
        "trace": trace,
        "step": f["step"],
        "cls": f["error_class"] or "",
        "split": f["split"] or "",
        "critic": f["critic"] or "",
        "ok": bool(f["accepted"]),
        "trained": bool(f["trained"]),
        "why": f["reasons"],
        "level": "" if f.get("level") is None else str(f["level"]),
        "place": f["placement"] or "",
        "twin": _twin(f),
        "p": [_rounded((f["decision"] or {}).get(when)) for when in WHEN],
        "left": _rounded(residual(f)) if f["decision"] else None,
        "odds": _rounded((f["decision"] or {}).get("odds_nats")),
        "at": at,
    }


def _twin(finding: Mapping[str, Any]) -> str:
    """Return the outcome of a finding's twins as one word to filter by."""
    twins = finding.get("twins") or ()
    if not twins:
        return "none"
    return "kept" if any(t["accepted"] for t in twins) else "dropped"


def detail(finding: Mapping[str, Any], with_trace: bool) -> dict[str, Any]:
    """Return the details of one opened finding; its context is abridged if the page contains the trace."""
    tokens = finding["tokens"]
    quoted = [i for i, t in enumerate(tokens) if t["quoted"]]
    keys = ("hint", "quote", "evidence", "fidelity", "notes", "guards", "specificity_nats", "legal_mass_gain")
    return {
        **{k: finding.get(k) for k in keys},
        "block": finding.get("hint_block"),
        "candidate": finding.get("candidate") or "",
        "above": _end(finding["context_above"], with_trace),
        "below": _middle(finding["context_below"], with_trace),
        "decision": finding["decision"],
        "placebos": finding["placebos"],
        "twins": [_twin_lines(t) for t in finding.get("twins") or ()],
        "tokens": {
            "text": [t["text"] for t in tokens],
            "quote": [quoted[0], quoted[-1] + 1] if quoted else None,
            # mostly the token itself
            "instead": {str(i): t["instead"] for i, t in enumerate(tokens) if t["instead"] != t["text"]},
            **{w: [_rounded(t[w]) for t in tokens] if _known(tokens, w) else None for w in WHEN},
        },
    }


def _known(tokens: Sequence[Mapping[str, Any]], when: str) -> bool:
    return bool(tokens) and tokens[0][when] is not None


def _twin_lines(twin: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("kind", "maker", "accepted", "reasons", "trained", "original", "here", "after")
    return {
        **{k: twin.get(k) for k in keys},
        "notes": [*twin.get("notes", ())],
        "edit": edit_lines(twin["edit"]) if twin.get("edit") else [],
    }


def _end(text: str | None, cut: bool) -> str:
    """Return the end of a text, starting at a line's beginning if possible."""
    text = text or ""
    if not cut or len(text) <= AROUND:
        return text
    end = text[-AROUND:]
    first, _, rest = end.partition("\n")
    return "…" + (rest if rest.strip() else first)


def _middle(text: str | None, cut: bool) -> str:
    """Return a text without its middle, which is replaced by a note with its length."""
    text = text or ""
    if not cut or len(text) <= 2 * AROUND:
        return text
    return f"{text[:AROUND]}\n… {len(text) - 2 * AROUND} characters, see the trace …\n{text[-AROUND:]}"


def _rounded(value: float | None) -> float | None:
    """Return a number rounded to four decimals for display; report.json contains it in full."""
    return None if value is None else round(value, 4)


def trace_page(trace: Mapping[str, Any], critiques: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a trace as shown on the page: its messages, tools, and each critic's answer.

    Args:
        trace: a trace as stored in its row; token ids and log-probabilities are left out.
        critiques: the trace's critique rows, one per critic.
    """
    return {
        "messages": [_message(m) for m in trace["messages"]],
        "tools": [json.dumps(t, ensure_ascii=False) for t in trace.get("tools", ())],
        "said": [_said(row) for row in critiques],
    }


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message: its role and all of its texts."""
    kept = {k: message[k] for k in ("role", "name", "reasoning", "content", "raw_text") if message.get(k)}
    calls = [[c["name"], c["arguments_raw"]] for c in message.get("tool_calls", ())]
    return kept | ({"calls": calls} if calls else {})


def _said(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a critic's answer as written, or as findings if no text was kept; for a failure, the reason."""
    said, failure = row.get("critique"), row.get("failure") or {}
    critic = row.get("critic") or "unknown"
    if said is None:
        return {"critic": critic, "verdict": failure.get("reason") or "failed", "text": failure.get("raw_answer") or ""}
    answer = said.get("raw_answer") or json.dumps(said.get("findings", []), ensure_ascii=False, indent=1)
    return {"critic": critic, "verdict": said["verdict"], "text": answer, "notes": said.get("notes", [])}
