"""What a key of the configuration changes, seen from outside: small real runs and calls, each of which serves many keys.

An observer takes overrides and returns plain data: rows of a stage, requests that a server received, files, weights. Content
keys, times and the echo of the configuration are left out of it, since they differ without anything having happened.
"""

from __future__ import annotations

import itertools
import json
import re
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import STUDENT, TOOLWORLD
from support.scripted_server import ScriptedServer, scripted_server

from hintdistill.config import RunConfig
from hintdistill.config.file import load_config
from hintdistill.core.scores import Measurement, ScoreRequest
from hintdistill.core.types import Trace
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.dry_run import dry_run
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.run import run, run_folder
from hintdistill.pipeline.store import RunDir
from hintdistill.rescoring.store import TargetStore
from hintdistill.traces.reading import read_traces

UNSTABLE = {"key", "trace_key", "versions", "usage", "seconds"}
WORLD = f"{TOOLWORLD / 'world.py'}:Toolworld"


def config_of(overrides: Sequence[str]) -> RunConfig:
    """The student of the shipped example on what the overrides name."""
    return load_config(None, [f"run.model={STUDENT}", f"critic.prompts={TOOLWORLD / 'prompts'}", *overrides])


def plain(value: Any) -> Any:
    """Without content keys and what else changes by itself."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k not in UNSTABLE}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def rows(path: Path) -> list[Any]:
    """The rows of a JSONL file, sorted."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return sorted((plain(json.loads(line)) for line in lines), key=lambda r: json.dumps(r, sort_keys=True))


# -- stages -----------------------------------------------------------------------------------------------------------


def read(overrides: Sequence[str]) -> Any:
    """What the first stage keeps of the traces, how they are split, and how many threads it runs in."""
    config, before = config_of(overrides), torch.get_num_threads()
    try:
        ahead = asdict(dry_run(config, until="read"))
        with tempfile.TemporaryDirectory() as folder:
            run(config, Path(folder) / "run", until="read", console=Console(quiet=True))
            return ahead, rows(Path(folder) / "run" / "traces.jsonl"), torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def place(overrides: Sequence[str]) -> Any:
    """Where the run folder goes."""
    return re.sub(r"\d{8}.*", "TIME", str(run_folder(config_of(overrides), "name")))


def injected(overrides: Sequence[str]) -> Any:
    """Critiques, injections, twins, and findings left out, each with its reason."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        run(config_of(overrides), path, until="inject", console=Console(quiet=True))
        return rows(path / "injections.jsonl"), rows(path / "critiques.jsonl"), rows(path / "twins.jsonl")


def rescored(overrides: Sequence[str]) -> Any:
    """Targets, number by number, and the files they are in."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        run(config_of(overrides), path, until="rescore", console=Console(quiet=True))
        found = sorted(TargetStore(path / "targets").read(), key=lambda t: (t.trace_id, t.step, t.kind))
        values = [{f.name: _digest(getattr(t, f.name)) for f in fields(t) if f.name not in UNSTABLE} for t in found]
        return values, len(list((path / "targets").glob("part-*.parquet")))


def _digest(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [list(value.shape), np.round(value.astype(np.float64), 6).tolist()]
    return repr(value)


def forward_calls(overrides: Sequence[str]) -> Any:
    """How many forward passes the engine takes for eight sequences of 40 tokens, and its precision."""
    ctx = RunContext(config_of(overrides), RunDir(Path()), Console(quiet=True))
    engine = ctx.engine(STUDENT)
    calls: list[int] = []
    handle = engine.model.register_forward_hook(lambda *_: calls.append(1))
    ids = np.random.default_rng(0).integers(10, 400, (8, 40))
    try:
        engine.score([ScoreRequest(one, 20, 40, group=str(i)) for i, one in enumerate(ids)], top_k=2)
    finally:
        handle.remove()
    return len(calls), str(next(engine.model.parameters()).dtype)


def offloaded(overrides: Sequence[str]) -> Any:
    """Where the engine of a run keeps keys and values."""
    engine = RunContext(config_of(overrides), RunDir(Path()), Console(quiet=True)).engine(STUDENT)
    return engine.read_trunk(np.arange(10, 30)).memory.offload


def judged(overrides: Sequence[str]) -> Any:
    """What the gate says of hints that are just good enough in all but one respect."""
    from hintdistill.rescoring.gate import judge

    good = {
        "position": 0,
        "instead_id": 1,
        "effect": -2.0,
        "plain_logprob": -0.5,
        "max_raise": 0.0,
        "specificity": -1.0,
    }
    good |= {"legal_mass_gain": 0.5, "best_placebo": 0.0}
    good |= {"odds": 5.0, "rise": 3.0, "placebo_odds": 0.5, "placebo_odds_median": 0.2}
    bad = [
        {"effect": -0.5},
        {"odds": 2.2},
        {"placebo_odds_median": 3.4},
        {"plain_logprob": -6.0},
        {"max_raise": 0.7},
        {"specificity": 0.1},
        {"legal_mass_gain": -0.1},
    ]
    gate = config_of(overrides).rescore.gate
    guards = [(), ("leak: x",), ("dialect: y",), ("illegal: z",)]
    return [judge(Measurement(**good | b), (), gate) for b in bad], [
        judge(Measurement(**good), g, gate) for g in guards
    ]


# -- servers ----------------------------------------------------------------------------------------------------------


class Talk:
    """Two servers that answer as told, and what they were asked."""

    def __init__(self, one: ScriptedServer, two: ScriptedServer) -> None:
        self.one, self.two, self.at_once, self._now, self._lock = one, two, 0, 0, threading.Lock()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count how many requests are being answered at once."""
        with self._lock:
            self._now += 1
            self.at_once = max(self.at_once, self._now)
        time.sleep(0.05)
        yield
        with self._lock:
            self._now -= 1

    def said(self) -> Any:
        """What each server received, in a fixed order, with the key it was shown."""
        out = []
        for server in (self.one, self.two):
            got = sorted(json.dumps(plain(b), sort_keys=True) for b in server.received)
            out.append((got, sorted({h.get("authorization", h.get("Authorization", "")) for h in server.headers})))
        return out


@contextmanager
def talking(answer: Any, fails: int = 0) -> Iterator[Talk]:
    """Servers whose answer is `answer(body)`; the first `fails` requests get HTTP 500."""
    with ExitStack() as stack:
        servers = [stack.enter_context(scripted_server(0)) for _ in range(2)]
        talk = Talk(*servers)
        left = [fails]

        def act(body: dict[str, Any]) -> Any:
            with talk.counted():
                left[0] -= 1
                return 500 if left[0] >= 0 else answer(body)

        for server in servers:
            server.script = [act]
            server.max_model_len = 4096
        yield talk


@lru_cache(maxsize=1)
def traces() -> list[Trace]:
    """Three short traces of the shipped example."""
    read = itertools.islice(read_traces([str(TOOLWORLD / "traces.jsonl")]), 60)
    return [t for t in read if isinstance(t, Trace) and len(t.step_indices) > 1][:3]


VERDICT = {"verdict": "findings", "findings": []}


def _finding(step: int, quote: str | None = None) -> dict[str, Any]:
    return {
        "step": step,
        "quote": quote,
        "error_class": "wrong_answer",
        "hint": "Read the last result once more.",
        "confidence": 0.9,
        "caused_by": None,
    }


def asked(name: str, kind: str = "plain") -> Any:
    """An observer of an LLM critic (`llm` or `strong`): requests and critiques.

    Args:
        kind: what the server does: `plain`: three traces, no finding; `votes`: every other answer names a step;
            `broken`: no JSON at first; `invented`: a quote that is nowhere; `slow`: .4 s an answer; `down`: HTTP 500 at first.
    """

    def observe(overrides: Sequence[str]) -> Any:
        from hintdistill.critics.build import make_critics
        from hintdistill.prompts import PromptLibrary
        from hintdistill.reporting.spending import spending

        count = iter(range(10**6))

        def answer(body: dict[str, Any]) -> Any:
            n = next(count)
            if kind == "slow":
                time.sleep(0.4)
            if kind == "broken":
                return "no JSON"
            found = [_finding(1, "nowhere in it" if kind == "invented" else None)]
            if kind == "invented" or (kind == "votes" and n % 3 == 0):
                return json.dumps(VERDICT | {"findings": found})
            schema = json.dumps(body.get("response_format", {}))
            text = {"verdict": "none", "findings": []}
            if '"half"' in schema:
                text = {"half": "first"}
            return json.dumps(text)

        with talking(answer, fails=1 if kind == "down" else 0) as talk:
            own = [o.replace("URL1", talk.one.url).replace("URL2", talk.two.url) for o in overrides]
            own = [o.replace("critic.X.", f"critic.{name}.") for o in own]
            config = config_of([f"critic.use=[{name}]", "traces.path=none", *own])
            (critic,) = make_critics(config.critic, config.run, PromptLibrary(config.critic.prompts))
            found = list(critic.critique(traces()))
            said = [repr(o).replace(talk.one.url, "URL1").replace(talk.two.url, "URL2") for _, o in found]
            row = {"critic": name, "critique": {"usage": {"requests": 1, "prompt_tokens": 10, "completion_tokens": 5}}}
            money = spending([row], config.model_dump(mode="json"), 1)["money"]
            return talk.said(), sorted(re.sub(r"id='[^']*'", "", s) for s in said), money, talk.at_once > 1

    return observe


def completion(body: dict[str, Any]) -> bytes:
    """A completion as vLLM and OpenAI write it: every token of the prompt at -1 nat, and two sampled ones."""
    prompt = body.get("prompt", [])
    prompts = [None, *({str(i): {"logprob": -1.0}, "7": {"logprob": -2.0}} for i in prompt[1:])]
    echoed = {
        "tokens": [f"token_id:{i}" for i in prompt],
        "token_logprobs": [None, *[-1.0] * (len(prompt) - 1)] if body.get("echo") else [-0.5, -0.25],
        "top_logprobs": [None, *[{"token_id:7": -2.0}] * (len(prompt) - 1)],
        "text_offset": [0] * len(prompt),
    }
    choice = {"index": 0, "text": "", "finish_reason": "stop", "prompt_logprobs": prompts, "logprobs": echoed}
    choice["token_ids"] = [9, 2]
    return json.dumps(
        {"id": "c", "object": "text_completion", "created": 0, "model": "m", "choices": [choice]}
    ).encode()


def served(kind: str = "plain") -> Any:
    """An observer of the engine that reads the views through a server: requests and scores.

    Args:
        kind: `slow`: .4 s an answer; `down`: HTTP 500 at first.
    """

    def observe(overrides: Sequence[str]) -> Any:
        def answer(body: dict[str, Any]) -> Any:
            if kind == "slow":
                time.sleep(0.4)
            return completion(body)

        with talking(answer, fails=1 if kind == "down" else 0) as talk:
            own = [o.replace("URL1", talk.one.url).replace("URL2", talk.two.url) for o in overrides]
            ctx = RunContext(config_of(["traces.path=none", *own]), RunDir(Path()), Console(quiet=True))
            ids = np.random.default_rng(0).integers(10, 400, (3, 12))
            with ctx.scoring_engine() as engine:
                got = engine.score([ScoreRequest(one, 6, 12) for one in ids], top_k=1)
            return talk.said(), [g.sampled.tolist() for g in got], talk.at_once > 1

    return observe


def allowed(overrides: Sequence[str]) -> Any:
    """Whether the scoring engine may be asked; nothing is asked."""
    RunContext(config_of(overrides), RunDir(Path()), Console(quiet=True)).check_scoring_engine()
    return "allowed"


def generated(kind: str = "plain") -> Any:
    """An observer of the server that samples rollouts: requests and sampled tokens.

    Args:
        kind: `slow`: .4 s an answer; `down`: HTTP 500 at first; `hand_over`: weights are handed over as well.
    """

    def observe(overrides: Sequence[str]) -> Any:
        from hintdistill.rollouts.generation import SamplingOptions
        from hintdistill.rollouts.server import ServerGenerator

        def answer(body: dict[str, Any]) -> Any:
            if kind == "slow":
                time.sleep(0.4)
            return completion(body)

        with talking(answer, fails=1 if kind == "down" else 0) as talk:
            own = [o.replace("URL1", talk.one.url).replace("URL2", talk.two.url) for o in overrides]
            config = config_of(["traces.path=none", *own])
            server = ServerGenerator(config.rollout.sample.server, 4096)
            if kind == "hand_over":
                engine = RunContext(config, RunDir(Path()), Console(quiet=True)).engine(STUDENT)
                return server.hand_over(STUDENT, engine, [[1, 413, 205, 398]]) > 0
            got = server.generate([[1, 2], [1, 3], [1, 4]], [2], SamplingOptions(), 0)
            return talk.said(), got, talk.at_once > 1

    return observe


# -- rollouts ---------------------------------------------------------------------------------------------------------


def played(overrides: Sequence[str]) -> Any:
    """Episodes of a round: task, outcome, tokens; from a server where one is named."""
    from hintdistill.pipeline.rounds import Loop

    with talking(completion) as talk, tempfile.TemporaryDirectory() as folder:
        own = [o.replace("URL1", talk.one.url) for o in overrides]
        config = config_of(["run.rounds=1", *own])
        loop = Loop(config, RunDir(folder), Console(quiet=True))
        episodes = loop.episodes(1, STUDENT)
        tokens = [[m.token_ids for m in e.trace.messages if m.token_ids] for e in episodes]
        return [e.task for e in episodes], [e.failure for e in episodes], tokens, len(talk.one.received)


def measured(overrides: Sequence[str]) -> Any:
    """Every setting that the loop measures, with the outcomes of its tasks."""
    from hintdistill.pipeline.rounds import Loop

    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(config_of(["run.rounds=1", *overrides]), RunDir(folder), Console(quiet=True))
        return {s.name: [asdict(o) for o in loop.outcomes(STUDENT, s)] for s in loop.settings()}


def collapse(overrides: Sequence[str]) -> Any:
    """Whether two failed episodes of five end the loop."""
    from hintdistill.pipeline.rounds import collapsed

    return collapsed(2, 5, config_of(["run.rounds=1", *overrides]))


def escalated(overrides: Sequence[str]) -> Any:
    """Why the strong critic is asked about a run of reward .5 in which nobody found anything."""
    from hintdistill.core.types import Critique
    from hintdistill.critics.cascade import escalation

    trace = traces()[0].model_copy(update={"reward": 0.5})
    said = Critique(trace_id=trace.id, verdict="none", critics=("llm",))
    return escalation(config_of(overrides).critic, trace, [said])


def cached(overrides: Sequence[str]) -> Any:
    """Files that a critic's answers go to."""
    with tempfile.TemporaryDirectory() as folder:
        asked("llm")([o.replace("FOLDER", folder) for o in overrides])
        return sorted(p.name for p in Path(folder).iterdir())


def looped(overrides: Sequence[str]) -> Any:
    """How many rounds were trained, and why the loop ended."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        run(config_of(overrides), path, console=Console(quiet=True))
        document = json.loads((path / "rounds.json").read_text())
        return [r["trained"] for r in document["rounds"]], document["stop"]


SUITE = """
import sys, time
sys.path.insert(0, {world!r})
from world import Toolworld

class Slow(Toolworld):
    \"\"\"Every answer takes .4 seconds.\"\"\"

    def make(self):
        environment = super().make()
        step = environment.step

        def slowly(*args, **kwargs):
            time.sleep(0.4)
            return step(*args, **kwargs)

        environment.step = slowly
        return environment

def nothing(trace):
    return []
"""


@lru_cache(maxsize=1)
def files() -> Path:
    """A folder of small inputs: traces, tools, findings, an environment."""
    folder = Path(tempfile.mkdtemp(prefix="keys-"))
    call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
    said = [{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    said += [{"role": "tool", "tool_call_id": "1", "content": "sunny"}, {"role": "assistant", "content": "Sunny."}]

    def write(name: str, *records: Any) -> None:
        (folder / name).write_text("".join(json.dumps(r) + "\n" for r in records))

    write("traces.jsonl", *({"messages": said, "id": f"t{i}", "task_id": f"task {i}"} for i in range(4)))
    write("other.jsonl", {"messages": said[:2], "id": "other"})
    write("empty.jsonl", {"messages": said[:1], "id": "empty"})
    long = [{"role": "user", "content": "word " * 250_000}, said[3]]
    write("long.jsonl", {"messages": said, "id": "short"}, {"messages": long, "id": "long"})
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}
    template = (TOOLWORLD / "student" / "chat_template.jinja").read_text(encoding="utf-8")
    (folder / "template.jinja").write_text("{{ stamp or '' }}" + template, encoding="utf-8")
    (folder / "plain.jinja").write_text(template.replace("<tools>", "<functions>"), encoding="utf-8")
    (folder / "tools.json").write_text(json.dumps([tool]))
    (folder / "suite.py").write_text(SUITE.format(world=str(TOOLWORLD)))
    read = itertools.islice(read_traces([str(TOOLWORLD / "traces.jsonl")]), 3)
    found = [t for t in read if isinstance(t, Trace)]
    name = found[0].step(0).tool_calls[0].name
    common = {"step": 0, "hint": "Look at the tool list.", "confidence": 0.9}
    right = {"trace": found[0].id, "error_class": "unknown_tool", "quote": name, **common}
    last = found[0].step_indices[-1] and len(found[0].step_indices) - 1
    near = {**right, "step": last, "quote": None, "error_class": "other"}
    worse = {**right, "trace": found[1].id, "quote": found[1].step(0).tool_calls[0].name[:-2] + "zz"}
    absent = {**right, "trace": found[2].id, "quote": "words that are nowhere in it"}
    write("findings.jsonl", right, near, worse, absent)
    write("findings_other.jsonl", right)
    write("findings_marked.jsonl", {**right, "decisive": False}, {**near, "decisive": True})
    return folder
