"""The cost of the critics: tokens as counted by their servers, and money if the config sets a price, in total and per
accepted finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from hintdistill.reporting.markup import html_table

PARTS = ("requests", "prompt_tokens", "completion_tokens")


def spending(rows: Sequence[Mapping[str, Any]], config: Mapping[str, Any], accepted: int) -> dict[str, Any]:
    """Return usage by critic and in total, including failed critiques; `money` is None if a critic that asked a server
    has no price."""
    by_critic: dict[str, dict[str, int]] = {}
    for row in rows:
        usage = (row.get("critique") or row.get("failure") or {}).get("usage") or {}
        mine = by_critic.setdefault(row.get("critic", "unknown"), dict.fromkeys(PARTS, 0))
        for part in PARTS:
            mine[part] += usage.get(part, 0)
    total = {part: sum(u[part] for u in by_critic.values()) for part in PARTS}
    money: float | None = 0.0
    for name, usage in by_critic.items():
        if not usage["requests"]:
            continue
        prices = (config.get("critic", {}).get(name) or {}).get("price")
        if money is None or prices is None:
            money = None
            continue
        money += (usage["prompt_tokens"] * prices[0] + usage["completion_tokens"] * prices[1]) / 1e6
    tokens = total["prompt_tokens"] + total["completion_tokens"]
    return {
        "by_critic": by_critic,
        **total,
        "money": money,
        "tokens_per_accepted_finding": tokens / accepted if accepted else None,
        "money_per_accepted_finding": money / accepted if accepted and money is not None else None,
    }


def body(document: Mapping[str, Any]) -> str:
    """Return the section of the page: the usage of each critic, and the cost of an accepted finding."""
    usage = document["funnel"]["critique"].get("usage")
    if not usage or not usage["requests"]:
        return ""
    rows = [(name, *(f"{of[part]:,}" for part in PARTS)) for name, of in usage["by_critic"].items()]
    rows.append(("all", *(f"{usage[part]:,}" for part in PARTS)))
    accepted = document["funnel"]["rescore"]["accepted"]
    each = usage["tokens_per_accepted_finding"]
    lines = [f"{each:,.0f} tokens per accepted finding ({accepted:,} accepted)" if each else "no finding was accepted"]
    if usage["money"] is None:
        lines.append("the cost in money is unknown, because no price is set (critic.llm.price)")
    else:
        per = usage["money_per_accepted_finding"]
        lines.append(f"cost {usage['money']:,.4f}" + ("" if per is None else f", {per:,.6f} per accepted finding"))
    table = html_table(
        "What the critics cost", ("critic", "requests", "prompt tokens", "answer tokens"), rows, (1, 2, 3)
    )
    return str(Markup("{}\n<p>{}.</p>").format(table, "; ".join(lines)))


def spent(usage: Mapping[str, Any] | None) -> str | None:
    """Return the result of `spending` as a line of text; None if no critic asked a model."""
    if not usage or not usage["requests"]:
        return None
    line = f"critics: {usage['requests']:,} requests, {usage['prompt_tokens']:,} prompt and {usage['completion_tokens']:,} answer tokens"
    if usage["tokens_per_accepted_finding"] is not None:
        line += f", {usage['tokens_per_accepted_finding']:,.0f} per accepted finding"
    if usage["money"] is not None:
        line += f"; cost {usage['money']:,.4f}"
        if usage["money_per_accepted_finding"] is not None:
            line += f", {usage['money_per_accepted_finding']:,.6f} per accepted finding"
    return line
