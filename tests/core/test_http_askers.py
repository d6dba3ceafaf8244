"""What asks servers beside the critics, the server engine and the rollout server, where the server misbehaves. Real sockets."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from support.bad_server import BadServer, bad_server

from hintdistill.config.rollout import ServerSection
from hintdistill.core import masking
from hintdistill.core.errors import ConfigError, InputError, ServiceError
from hintdistill.core.http import CancelledError, CutError, OversizedError, RedirectError, StatusError, TimedOutError
from hintdistill.core.scores import ScoreRequest
from hintdistill.core.threads import stop_all
from hintdistill.engines.server import ServerEngine
from hintdistill.rollouts.generation import SamplingOptions
from hintdistill.rollouts.server import ServerGenerator

KEY = "sk-test-7Qd+0/Zr==9Lm4"
IDS = [5, 6, 7]
Ask = Callable[..., object]


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def scored(url: str, timeout_s: float = 5.0, retries: int = 0, *, model: str | None = "m", **more) -> object:
    """The log-probabilities of three tokens; without a length that is known, the server is asked what it serves first."""
    length = 100 if model else None
    engine = ServerEngine(url, "m", max_length=length, timeout_s=timeout_s, retries=retries, **more)
    return engine.score([ScoreRequest(np.array(IDS), 1, 3)], 2)


def sampled(url: str, timeout_s: float = 5.0, retries: int = 0, *, model: str | None = "m", **more) -> object:
    """One step after three tokens; without a model's name the server is asked what it serves first."""
    config = ServerSection(base_url=url, model=model, timeout_s=timeout_s, retries=retries, **more)
    return ServerGenerator(config, 100).generate([IDS], [2], SamplingOptions(max_new_tokens=4), 0)


def handed_over(url: str, timeout_s: float = 5.0, retries: int = 0) -> object:
    """The call with which a server is given new weights, which goes to its root."""
    config = ServerSection(base_url=url, model="m", timeout_s=timeout_s, retries=retries)
    return ServerGenerator(config, 100)._post("/collective_rpc", {"method": "reload_weights"})


def asked(server: BadServer) -> str:
    return "".join(got["body"] for got in server.received)


both = pytest.mark.parametrize("ask", [scored, sampled])


@both
@pytest.mark.parametrize("mode", ["moved302", "moved307"])
def test_no_redirect_is_followed(ask: Ask, mode):
    with bad_server() as server, bad_server("127.0.0.2") as other:
        server.elsewhere = other.url("none")
        for model in ("m", None):
            with pytest.raises(RedirectError, match=r"127\.0\.0\.2") as caught:
                ask(server.url(mode), retries=3, model=model)
        assert other.received == [] and len(server.received) == 2
        assert ("rescore.engine" if ask is scored else "rollout.sample.server") in caught.value.hint


@both
@pytest.mark.parametrize(
    ("mode", "error"),
    [
        ("hangs", TimedOutError),
        ("drips", TimedOutError),
        ("drips_head", TimedOutError),
        ("cut", CutError),
        ("floods", OversizedError),
        ("bomb", OversizedError),
        ("busy", StatusError),
        ("page", ServiceError),
    ],
)
def test_what_is_no_answer_is_a_declared_error(ask: Ask, mode, error):
    with bad_server() as server, pytest.raises(error):
        ask(server.url(mode), timeout_s=0.2 if error is TimedOutError else 20.0)


@pytest.mark.parametrize("mode", ["moved307", "busy", "drips"])
def test_a_hand_over_is_bounded_too(mode):
    with bad_server() as server:
        server.elsewhere = server.url("none")
        # at the root, so the mode is the whole host's
        with pytest.MonkeyPatch.context() as patch:
            handler = type(server).__init__.__globals__["_Handler"]
            patch.setattr(handler, "do_collective_rpc", getattr(handler, f"do_{mode}"), raising=False)
            with pytest.raises((RedirectError, StatusError, TimedOutError)):
                handed_over(server.url("none"), timeout_s=0.2)
        assert len(server.received) == 1


@both
@pytest.mark.parametrize("mode", ["echo401", "echo500", "echo_page", "echo_moved", "echo_answer", "echo_scores"])
def test_a_key_is_covered_in_whatever_comes_back(ask: Ask, mode):
    with bad_server() as server:
        with pytest.raises((ServiceError, InputError)) as caught:
            ask(server.url(mode))
        assert KEY in str(server.received[0]["headers"])
    said = f"{caught.value} {caught.value.message} {caught.value!r}"
    assert KEY not in said and KEY[8:] not in said
    # of a page or an answer in another form only its kind is told
    assert masking.COVER in said or mode in ("echo_page", "echo_answer")


@both
@pytest.mark.parametrize("mode", ["hangs", "drips", "busy"])
def test_a_request_ends_when_its_run_is_stopped(ask: Ask, mode):
    """Each had 60 seconds and 50 tries."""
    with bad_server() as server:

        def stop() -> None:
            while not server.received:
                time.sleep(0.01)
            stop_all()

        threading.Thread(target=stop, daemon=True).start()
        with pytest.raises(CancelledError, match="before it was answered"):
            ask(server.url(mode), timeout_s=60, retries=50)


@both
def test_a_host_outside_this_machine_has_to_be_allowed(ask: Ask):
    with pytest.raises(ConfigError, match=r"allow_hosts|not allowed"):
        ask("http://scores.example/v1")


@both
def test_this_machine_is_reached_past_every_proxy(ask: Ask, monkeypatch):
    with bad_server() as server, bad_server("127.0.0.2") as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.host}")
        with pytest.raises(ServiceError):
            ask(server.url("page"))
        assert proxy.received == [] and str(IDS) in asked(server)
