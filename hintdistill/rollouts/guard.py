"""Limit the damage of a broken environment to its own episode.

Each episode's environment is created, reset, stepped and closed in a thread of its own, so that an environment may be
bound to its thread, and one that hangs is abandoned after its time limit. Its results are checked before they are used.
"""

from __future__ import annotations

import json
import math
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from hintdistill.core.errors import EnvironmentFailure, HintdistillError
from hintdistill.core.types import Message
from hintdistill.rollouts.environment import Environment, Reply, Start
from hintdistill.rollouts.greetings import with_greetings_given

ANSWERING = ("system", "developer", "user", "tool")


class GuardedEnvironment:
    """An environment in which every call ends, either with a checked answer or with an EnvironmentFailure that gives
    the reason."""

    def __init__(self, make: Callable[[], Environment], timeout_s: float | None) -> None:
        self.timeout_s = timeout_s
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._environment: Environment | None = None
        self._make = make
        # a daemon, because a hanging call can be left behind but not stopped
        threading.Thread(target=self._serve, daemon=True, name="environment").start()

    def reset(self, task: str) -> Start:
        """Create the environment and begin `task`."""

        def begin() -> Start:
            self._environment = self._make()
            return self._environment.reset(task)

        start = self._bounded("reset", begin)
        if not isinstance(start, Start):
            raise EnvironmentFailure(f"reset returned {type(start).__name__}, not a Start")
        _check_messages(
            "reset", with_greetings_given(tuple(start.messages)) if _are_messages(start.messages) else start.messages
        )
        if not start.messages:
            raise EnvironmentFailure("reset returned no message to answer")
        if not isinstance(start.tools, tuple | list) or not all(isinstance(t, dict) for t in start.tools):
            raise EnvironmentFailure("reset returned tools that are not objects")
        try:
            json.dumps(start.tools, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise EnvironmentFailure(f"reset returned tools that are not JSON: {error}") from None
        return start

    def step(self, message: Message) -> Reply:
        """Pass on one assistant message."""
        environment = self._environment
        assert environment is not None
        reply = self._bounded("step", lambda: environment.step(message))
        if not isinstance(reply, Reply):
            raise EnvironmentFailure(f"step returned {type(reply).__name__}, not a Reply")
        _check_messages("step", reply.messages)
        if not isinstance(reply.done, bool):
            raise EnvironmentFailure(f"step returned done={reply.done!r}")
        if reply.reward is not None and not _is_number(reply.reward):
            raise EnvironmentFailure(f"step returned the reward {reply.reward!r}, not a finite number")
        if not reply.done and not reply.messages:
            raise EnvironmentFailure("step returned no message although the episode is not done")
        return reply

    def close(self) -> None:
        """Release the environment; its own `close` is called if it has one."""
        close = getattr(self._environment, "close", None)
        if callable(close):
            self._calls.put((close, Future()))
        self._calls.put(None)

    def _bounded(self, name: str, call: Callable[[], Any]) -> Any:
        future: Future[Any] = Future()
        self._calls.put((call, future))
        try:
            return future.result(self.timeout_s)
        except HintdistillError:
            raise
        except TimeoutError as error:
            if future.done():  # the environment's own
                raise EnvironmentFailure(f"{name} raised TimeoutError: {error}") from error
            raise EnvironmentFailure(f"{name} did not return within {self.timeout_s:g} s") from None
        except Exception as error:
            raise EnvironmentFailure(f"{name} raised {type(error).__name__}: {error}") from error

    def _serve(self) -> None:
        while (item := self._calls.get()) is not None:
            call, future = item
            try:
                future.set_result(call())
            except Exception as error:
                future.set_exception(error)
            except BaseException as error:
                # an environment that exits or interrupts does so in its own thread, and must not end the run
                future.set_exception(EnvironmentFailure(f"the environment raised {type(error).__name__}: {error}"))


def _are_messages(messages: Any) -> bool:
    return isinstance(messages, tuple | list) and all(isinstance(m, Message) for m in messages)


def _check_messages(where: str, messages: Any) -> None:
    if not isinstance(messages, tuple | list):
        raise EnvironmentFailure(f"{where} returned messages of type {type(messages).__name__}")
    for message in messages:
        if not isinstance(message, Message):
            raise EnvironmentFailure(f"{where} returned {type(message).__name__}, not a Message")
        if message.role not in ANSWERING and not (where == "reset" and message.given):
            raise EnvironmentFailure(
                f"{where} returned a message with the role {message.role}, which only the student may have"
                + (" (mark a demonstration with given=True)" if where == "reset" else "")
            )
        try:
            message.model_dump_json()
        except (ValueError, RecursionError) as error:
            # lone surrogates, or objects in `extra`: no row could hold it and no tokenizer reads it
            raise EnvironmentFailure(f"{where} returned a message that is not JSON: {error}") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
