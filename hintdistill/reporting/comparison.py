"""Compare two runs: their figures with differences, their common findings, and the settings that differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from hintdistill.core.errors import ConfigError
from hintdistill.core.storage import write_atomic
from hintdistill.reporting.choose import name_of
from hintdistill.reporting.html import policy
from hintdistill.reporting.markup import html_table
from hintdistill.reporting.opened import open_run
from hintdistill.reporting.templates import PAGE, text

COMPARISON_SCHEMA = 1
SHOWN = 200
"""Maximum number of findings of each kind on the page; the JSON contains all."""
_PAGE = Markup(
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>hintdistill: {title}</title>\n<style>{style}</style>\n'
    "</head>\n<body>\n<main>\n<h1>Two runs</h1>\n{body}\n</main>\n</body>\n</html>\n"
)
_FUNNEL = (
    ("traces", ("read", "traces")),
    ("findings", ("critique", "findings")),
    ("injections", ("inject", "injections")),
    ("accepted", ("rescore", "accepted")),
    ("trained", ("train", "hints")),
    ("anchors", ("train", "anchors")),
)


def compare(a: Path, b: Path) -> dict[str, Any]:
    """Compare two finished runs.

    Returns:
        `runs` (name, date, command, config hash of each), `metrics` (name, a, b, difference), `findings` (`shared`,
        `only_a`, `only_b`, each finding with its numbers), and `config` (key, a and b if they differ; null for a
        missing key).

    Raises:
        InputError, ConfigError: see `open_run`; also if both are the same run.
    """
    if a.resolve() == b.resolve():
        raise ConfigError(f"{a} is given twice", hint="hintdistill report RUN_A RUN_B")
    documents = open_run(a).document, open_run(b).document
    return {
        "schema": COMPARISON_SCHEMA,
        "runs": [
            {"path": str(path), **{k: doc["run"].get(k) for k in ("name", "started", "command", "config_hash")}}
            for path, doc in zip((a, b), documents, strict=True)
        ],
        "metrics": _metrics(*documents),
        "findings": _findings(*documents),
        "config": _settings(*documents),
    }


def _metrics(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    first, second = dict(_numbers(a)), dict(_numbers(b))
    rows = []
    for name in [*first, *(n for n in second if n not in first)]:
        one, other = first.get(name), second.get(name)
        apart = None if one is None or other is None else other - one
        rows.append({"name": name, "a": one, "b": other, "difference": apart})
    return [r for r in rows if r["a"] is not None or r["b"] is not None]


def _numbers(doc: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """Yield the figures of a report by which two runs are compared, in the order of the stages."""
    for name, (stage, key) in _FUNNEL:
        yield name, doc["funnel"][stage].get(key)
    for reason, n in doc["funnel"]["rescore"]["reasons"].items():
        yield f"rejected: {reason}", n
    usage = doc["funnel"]["critique"].get("usage") or {}
    for key in ("requests", "prompt_tokens", "completion_tokens", "money", "tokens_per_accepted_finding"):
        yield f"critics: {key.replace('_', ' ')}", usage.get(key) if usage.get("requests") else None
    yield "placebos that pass the gate", doc["gate"].get("null_pass_rate")
    held = doc["effects"]["by_split"]["holdout"]
    for name, x in [("held-out traces", held), *doc["effects"]["by_class"].items()]:
        for when in ("before", "hinted", "after"):
            yield f"probability of the error, {name}, {when}", x["error_probability"][when]
        yield f"effect at the decision token, {name}, nats", x["decision_effect_mean_nats"]
    for split, by in ((doc["environment"] or {}).get("splits") or {}).items():
        for when, x in by.items():
            yield f"success, {split}, {when}", x["success_rate"]
            yield f"episodes with an error, {split}, {when}", x["error_rate"]
    yield "off-target KL, nats per token", doc["off_target_kl_nats"]
    for name, m in doc["off_target"].items():
        yield f"off-target KL, {name}, nats per token", m["kl_per_token"]
    yield "optimiser steps", (doc["train"] or {}).get("steps")


def _findings(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the findings by place: a trace, a step, and the wrong words; several at one place are numbered."""
    first, second = _placed(a), _placed(b)
    shared = [_about(f) | {"a": _numbers_of(f), "b": _numbers_of(second[k])} for k, f in first.items() if k in second]
    return {
        "shared": shared,
        "only_a": [f for k, f in first.items() if k not in second],
        "only_b": [f for k, f in second.items() if k not in first],
    }


def _placed(doc: Mapping[str, Any]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Return by place the compared values of each finding; other values are not kept in memory, because findings may be
    many."""
    out: dict[tuple[Any, ...], dict[str, Any]] = {}
    for finding in doc["findings"]:
        place, n = (finding["trace"], finding["step"], finding["quote"]), 0
        while (*place, n) in out:
            n += 1
        decision = finding["decision"] or {}
        out[*place, n] = {
            "name": name_of(finding),
            **{k: finding[k] for k in (*_PLACE, *_SAID)},
            **{k: decision.get(k) for k in _NUMBERS},
        }
    return out


_PLACE = ("trace", "step", "quote")
_SAID = ("error_class", "hint", "accepted", "reasons", "trained", "split")
_NUMBERS = ("before", "hinted", "after")


def _about(f: Mapping[str, Any]) -> dict[str, Any]:
    return {k: f[k] for k in ("name", *_PLACE)}


def _numbers_of(f: Mapping[str, Any]) -> dict[str, Any]:
    return {k: f[k] for k in (*_SAID, *_NUMBERS)}


def _settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    first, second = dict(_leaves(a["run"]["config"])), dict(_leaves(b["run"]["config"]))
    keys = [*first, *(k for k in second if k not in first)]
    return [
        {"key": k, "a": first.get(k), "b": second.get(k)}
        for k in keys
        if first.get(k) != second.get(k) and k != "run.dir"
    ]


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _leaves(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def shown(value: Any, signed: bool = False) -> str:
    """Return a figure as text; a dash if there is none."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:+,}" if signed else f"{value:,}"
    return f"{value:+.5g}" if signed else f"{value:.5g}"


def changed(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the common findings that were accepted in only one of the runs."""
    return [f for f in document["findings"]["shared"] if f["a"]["accepted"] != f["b"]["accepted"]]


def counts(document: Mapping[str, Any]) -> str:
    """Return a sentence with the number of common findings of two runs."""
    found = document["findings"]
    return (
        f"{len(found['shared'])} findings in both, {len(found['only_a'])} only in A, {len(found['only_b'])} "
        f"only in B; {len(changed(document))} common findings were accepted in only one run"
    )


def comparison_html(document: Mapping[str, Any]) -> str:
    """Return the comparison as one self-contained page."""
    names = [f"{letter}: {run['name'] or run['path']}" for letter, run in zip("AB", document["runs"], strict=True)]
    metrics = [(m["name"], shown(m["a"]), shown(m["b"]), shown(m["difference"], True)) for m in document["metrics"]]
    settings = [(c["key"], _said(c["a"]), _said(c["b"])) for c in document["config"]]
    parts = [
        Markup("<dl>{}</dl>").format(
            Markup("").join(
                Markup("<dt>{}</dt><dd>{}; <code>{}</code></dd>").format(
                    n, text(", ".join(filter(None, (r["path"], r["started"])))), text(r["command"] or "")
                )
                for n, r in zip("AB", document["runs"], strict=True)
            )
        ),
        Markup("<h2>Figures</h2>\n{}").format(
            html_table("Figures of both runs", ("figure", *names, "B − A"), metrics, numeric=(1, 2, 3))
        ),
        Markup("<h2>Settings that differ</h2>\n{}").format(
            html_table("Settings that differ", ("key", "A", "B"), settings) if settings else Markup("<p>None.</p>")
        ),
        Markup("<h2>Findings</h2>\n<p>{}.</p>").format(counts(document)),
        *_finding_tables(document),
    ]
    style = (PAGE / "page.css").read_text(encoding="utf-8")
    title = text(f"{names[0]} and {names[1]}")
    return _PAGE.format(title=title, style=Markup(style), policy=policy(style, ""), body=Markup("\n").join(parts))


def _finding_tables(document: Mapping[str, Any]) -> Iterator[Markup]:
    columns = ("finding", "class", "quote", "accepted", "before", "hinted", "after")
    for title, which in (("Only in A", "only_a"), ("Only in B", "only_b")):
        found = document["findings"][which]
        rows = [(f["name"], f["error_class"], f["quote"], *_fate(f)) for f in found[:SHOWN]]
        yield from _listed(title, columns, rows, len(found))
    both = changed(document)
    apart = [(f["name"], f["a"]["error_class"], f["quote"], *_fate(f["a"]), *_fate(f["b"])) for f in both[:SHOWN]]
    twice = (*columns[:3], *(f"{c}, {letter}" for letter in "AB" for c in columns[3:]))
    yield from _listed("Accepted in only one run", twice, apart, len(both))


def _listed(title: str, columns: tuple[str, ...], rows: list[Any], count: int) -> Iterator[Markup]:
    if count:
        more = f" ({len(rows)} of {count} shown; `--json` prints all)" if count > len(rows) else ""
        numeric = [i for i, c in enumerate(columns) if c.split(",")[0] in ("before", "hinted", "after")]
        yield Markup("<h3>{}{}</h3>\n{}").format(title, more, html_table(title, columns, rows, numeric))


def _fate(f: Mapping[str, Any]) -> tuple[str, str, str, str]:
    said = "accepted" + ", trained" * f["trained"] if f["accepted"] else ", ".join(f["reasons"])
    return said, *(shown(f[k]) for k in ("before", "hinted", "after"))  # type: ignore[return-value]


def _said(value: Any) -> str:
    return "–" if value is None else str(value)


def write_comparison(a: Path, document: Mapping[str, Any]) -> Path:
    """Write the page into the folder of run A's report, and return its path."""
    other = Path(document["runs"][1]["path"]).resolve().name
    path = a / f"compare-{other}.html"
    write_atomic(path, comparison_html(document))
    return path
