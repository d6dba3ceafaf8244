"""Check arguments against JSON schemas from outside, in bounded time and without fetching anything.

The tool schemas of a trace are data from outside, and a schema is a program: a pattern may backtrack for hours,
references may multiply, and a reference may name a URL or a file of this machine. So no reference is ever fetched. A
schema without patterns, whose references form a small tree, is evaluated in this process, in time bounded by its size.
Every other schema is evaluated in a helper process that the kernel ends after `CPU_SECONDS` of computing or at
`MEMORY_BYTES`. A schema that is invalid or needs more raises `CannotJudge` and never gives a verdict.

The helper is `python -c "from hintdistill.core.schemas import serve; serve()"`: it reads one line of JSON and writes
one line. POSIX only.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import json
import os
import select
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import Any

from hintdistill.core.errors import InputError

CPU_SECONDS = 0.25
"""Computing time of one check in the helper, seconds; an ordinary check takes a thousandth of it."""
WALL_SECONDS = 60.0
"""Seconds without an answer after which the helper is ended, however little it has computed."""
MEMORY_BYTES = 2 * 2**30
"""Largest address space of the helper."""
MOST_VISITS = 200_000
"""Limit on nodes of the schema times nodes of the arguments, up to which a schema is evaluated in this process."""
TEXT = 100
"""Number of characters of a string that count as one more node."""
MOST_ERRORS = 1_000
"""Limit on violations in one call; above it the schema cannot judge the call."""

_NEEDS_BOUND = frozenset(
    {
        "patternProperties",
        "uniqueItems",
        "unevaluatedProperties",
        "unevaluatedItems",
        "$dynamicRef",
        "$recursiveRef",
        "$id",
        "$anchor",
        "$dynamicAnchor",
    }
)
"""Keywords whose cost is not bounded by the schema's size, or that change the meaning of references."""


class CannotJudge(InputError):
    """A schema cannot judge a call: it is invalid, refers to another document, or would take too long."""


@dataclass(frozen=True)
class Violation:
    """Describe one part of the arguments that violates the schema."""

    path: tuple[str | int, ...]
    """Path from the root of the arguments."""
    rule: str
    """The violated keyword: `type`, `required`, `enum`, ..."""
    expected: Any
    """The schema's value for that keyword."""
    value: Any
    """The value found in the arguments."""
    schema: Any
    """The part of the schema that was violated."""
    message: str


def violations(schema: Any, args: Any) -> list[Violation]:
    """Return the violations of `schema` (draft 2020-12) by `args`, ordered by path; empty if `args` are valid.

    Raises:
        CannotJudge: the schema is invalid, refers to another document, or exceeds the limits.
    """
    _validator()
    try:
        if _visits(schema, args) <= MOST_VISITS:
            return _judge(schema, args)
        request = json.dumps([schema, args])
    except CannotJudge:
        raise
    except Exception as error:
        raise CannotJudge(_said(error)) from None
    return [Violation(tuple(path), *rest) for path, *rest in _asked(request)]


class _Unbounded(Exception):
    """The schema's size does not bound the cost of evaluating it."""


def _visits(schema: Any, args: Any) -> int:
    """Return an upper bound on the comparisons between nodes of the arguments and of the schema; very large without a
    bound."""
    try:
        left = MOST_VISITS // (1 + _places(args, MOST_VISITS))
        _expand(schema, schema, [left], ())
    except (_Unbounded, RecursionError):
        return MOST_VISITS + 1
    return 0


def _places(value: Any, most: int) -> int:
    found, stack = 0, [value]
    while stack:
        item = stack.pop()
        found += 1 + (len(item) // TEXT if isinstance(item, str) else 0)
        if found > most:
            raise _Unbounded
        if isinstance(item, dict):
            stack.extend(item)
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
    return found


def _expand(node: Any, root: Any, left: list[int], inside: tuple[str, ...]) -> None:
    """Expand a schema along its internal references. Raises _Unbounded unless the result is a small tree."""
    left[0] -= 1 + (len(node) // TEXT if isinstance(node, str) else 0)
    if left[0] < 0:
        raise _Unbounded
    if isinstance(node, list):
        for item in node:
            _expand(item, root, left, inside)
    elif isinstance(node, dict):
        if not _NEEDS_BOUND.isdisjoint(node) or isinstance(node.get("pattern"), str):
            raise _Unbounded
        reference = node.get("$ref")
        if isinstance(reference, str):
            if reference in inside:
                raise _Unbounded
            _expand(_pointed(root, reference), root, left, (*inside, reference))
        for key, value in node.items():
            # definitions cost where they are referred to
            if key not in ("$defs", "definitions"):
                _expand(value, root, left, inside)


def _pointed(root: Any, reference: str) -> Any:
    """Return the target of a reference into the schema itself. Raises _Unbounded for any other reference."""
    if reference != "#" and not reference.startswith("#/"):
        raise _Unbounded
    node = root
    for part in reference.split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if "%" in part or not isinstance(node, dict) or part not in node:
            raise _Unbounded
        node = node[part]
    return node


@functools.cache
def _validator() -> Any:
    """Return the validator class and a registry that holds the drafts' own schemas and fetches nothing."""
    import jsonschema
    from jsonschema_specifications import REGISTRY

    return functools.partial(jsonschema.Draft202012Validator, registry=REGISTRY)


def _judge(schema: Any, args: Any) -> list[Violation]:
    """Check without a limit. Raises CannotJudge, and the validator's own errors for an invalid schema."""
    found: list[Violation] = []
    for error in _validator()(schema).iter_errors(args):
        if len(found) == MOST_ERRORS:
            raise CannotJudge(f"more than {MOST_ERRORS} violations")
        found.append(
            Violation(
                tuple(error.path),
                str(error.validator),
                error.validator_value,
                error.instance,
                error.schema,
                error.message,
            )
        )
    return sorted(found, key=lambda v: list(map(str, v.path)))


def _said(error: BaseException) -> str:
    """Return a one-line description of an error."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__


class _Helper:
    """Run a helper process that evaluates schemas. It starts on demand, and again after it was ended."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = os.getpid()

    def ask(self, line: bytes) -> bytes | None:
        """Return the answer to a request; None if the helper was ended during it."""
        if self.owner != os.getpid():
            # a fork: the pipes are the parent's
            self.owner, self.process = os.getpid(), None
        process = self.process = self.process or _started()
        assert process.stdin is not None and process.stdout is not None
        answer = b""
        try:
            process.stdin.write(line + b"\n")
            process.stdin.flush()
            if select.select([process.stdout], [], [], WALL_SECONDS)[0]:
                answer = process.stdout.readline()
        except OSError:
            pass
        finally:
            # also where an interrupt cut the reading short: the next answer would be taken for another request's
            if not answer.endswith(b"\n"):
                self.end()
        return answer or None

    def end(self) -> None:
        """End this process's helper."""
        process, self.process = self.process, None
        if process is not None and self.owner == os.getpid():
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()


def _started() -> subprocess.Popen[bytes]:
    """Return a helper that is ready. Raises RuntimeError if it does not start, which says nothing about the schema."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from hintdistill.core.schemas import serve; serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(),
        # a Ctrl-C is the caller's to answer
        start_new_session=True,
    )
    assert process.stdout is not None and process.stderr is not None
    if process.stdout.readline() != READY:
        _, said = process.communicate()
        raise RuntimeError(
            f"the helper process that evaluates schemas does not start: {said.decode(errors='replace')[-500:]}"
        )
    process.stderr.close()
    return process


def _environment() -> dict[str, str]:
    """Return an environment in which the helper finds the same packages as this process, without the working
    directory."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PYTHONSAFEPATH": "1"}


READY = b"ready\n"
_helper, _lock = _Helper(), threading.Lock()
atexit.register(_helper.end)
_ENDED: set[str] = set()
"""Digests of requests during which the helper was ended, so that each costs its time only once."""


def _asked(request: str) -> list[list[Any]]:
    """Return the helper's result. Raises CannotJudge."""
    digest = hashlib.sha256(request.encode()).hexdigest()
    with _lock:
        answer = None if digest in _ENDED else _helper.ask(request.encode())
        if answer is None:
            _ENDED.add(digest)
            raise CannotJudge(f"its evaluation takes more than {CPU_SECONDS:g} s of computing, or too much memory")
    said = json.loads(answer)
    if isinstance(said, str):
        raise CannotJudge(said)
    return list(said)


def serve() -> None:
    """Evaluate requests from standard input one after another, each within the limits, until the input ends."""
    import resource
    import signal

    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    _validator()
    sys.stdout.write(READY.decode())
    sys.stdout.flush()
    for line in sys.stdin.buffer:
        # the kernel's own timer: it ends this process inside a regular expression, too
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        said = _answer(line)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(said + "\n")
        sys.stdout.flush()


def _answer(line: bytes) -> str:
    try:
        found = _judge(*json.loads(line))
        return json.dumps([[list(v.path), v.rule, v.expected, v.value, v.schema, v.message] for v in found])
    except CannotJudge as error:
        return json.dumps(error.message)
    except Exception as error:
        return json.dumps(_said(error))
