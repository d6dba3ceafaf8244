"""Several servers asked as one: real servers on this machine, one of which goes away."""

from __future__ import annotations

import json
import threading
import time

import numpy as np
import pytest
from support.observers import completion
from support.scripted_server import scripted_server

from hintdistill.core.errors import ConfigError, ServiceError
from hintdistill.core.http import Server, StatusError, UnreachableError
from hintdistill.core.pool import ServerPool
from hintdistill.core.scores import ScoreRequest
from hintdistill.engines.server import ServerEngine

GONE = "http://127.0.0.1:9/v1"


def pool(*urls: str, **more) -> ServerPool:
    return ServerPool(Server(urls[0], "the engine", "rescore.engine", retries=0, **more), urls[1:])


def test_requests_are_shared_and_a_busy_server_gets_fewer():
    release = threading.Event()

    def slow(body):
        release.wait(5)
        return "late"

    with scripted_server(slow) as busy, scripted_server("soon") as free:
        asked = pool(busy.url, free.url)
        first = threading.Thread(target=lambda: asked.post("/chat/completions", {}))
        first.start()
        while not busy.received:
            time.sleep(0.005)
        for _ in range(5):
            asked.post("/chat/completions", {})
        release.set()
        first.join()
        assert (len(busy.received), len(free.received)) == (1, 5)
        for _ in range(4):
            asked.post("/chat/completions", {})
        assert (len(busy.received), len(free.received)) == (5, 5), "those with as few under way take turns"


def test_what_a_server_that_goes_was_asked_is_asked_of_another_and_a_note_names_it():
    with scripted_server("a", "cut") as dying, scripted_server("b") as other:
        asked = pool(dying.url, other.url)
        said = [
            json.loads(asked.post("/chat/completions", {}).body)["choices"][0]["message"]["content"] for _ in range(6)
        ]
        assert said == ["a", "b", "b", "b", "b", "b"]
        assert len(dying.received) == 2 and len(other.received) == 5
        (note,) = asked.notes
        assert "does not answer" in note and str(dying.server_address[1]) in note


def test_all_gone_is_the_error_of_one_and_the_next_request_tries_them_again():
    asked = pool(GONE, "http://127.0.0.1:8/v1")
    for _ in range(2):
        with pytest.raises(UnreachableError) as caught:
            asked.post("/completions", {})
        assert caught.value.retryable is False
    assert len(asked.notes) == 2
    with pytest.raises(UnreachableError):
        asked.each("/models")


def test_a_question_that_is_refused_is_not_asked_of_everybody():
    with scripted_server(400) as one, scripted_server("x") as two:
        with pytest.raises(StatusError):
            pool(one.url, two.url).post("/chat/completions", {})
        assert not two.received
    with scripted_server(500) as one, scripted_server("x") as two:
        pool(one.url, two.url).post("/chat/completions", {})
        assert len(two.received) == 1


def test_every_server_has_to_be_allowed():
    with pytest.raises(ConfigError, match=r"allow_hosts"):
        pool(GONE, "http://example.com/v1")


def test_an_engine_scores_on_while_one_of_its_servers_goes():
    """The scores are those of one server, whichever answers."""
    requests = [ScoreRequest(ids, 6, 12) for ids in np.random.default_rng(0).integers(10, 400, (8, 12))]
    with scripted_server(completion) as one, scripted_server(completion, "cut") as two:
        alone = ServerEngine(one.url, "m", max_length=100, retries=0).score(requests, 1)
        engine = ServerEngine([two.url, one.url], "m", max_length=100, retries=0, concurrency=2)
        both = engine.score(requests, 1)
        assert [s.sampled.tolist() for s in alone] == [s.sampled.tolist() for s in both]
        assert len(two.received) >= 2 and any("does not answer" in note for note in engine.notes)
    with pytest.raises(ServiceError):
        engine.score(requests, 1)


def test_the_shortest_context_of_the_pool_holds():
    with scripted_server("x") as one, scripted_server("x") as two:
        one.max_model_len, two.max_model_len = 90, 50
        assert ServerEngine([one.url, two.url, GONE], "m", retries=0).max_length == 49
