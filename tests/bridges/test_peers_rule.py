"""A peer that is not installed is named: an error in `make test-peers`, a skip elsewhere, a message in a bridge."""

from __future__ import annotations

import pytest
from support.peers import need

from hintdistill.bridges.peers import need as need_in_bridge
from hintdistill.core.errors import ConfigError


def test_where_peers_are_asked_for_a_missing_one_fails_by_name(monkeypatch):
    monkeypatch.setenv("HINTDISTILL_PEERS", "1")
    with pytest.raises(RuntimeError, match="not installed in this environment: no_such_trainer, nor_this"):
        need("json", "no_such_trainer", "nor_this")


def test_elsewhere_it_is_skipped_by_name(monkeypatch):
    monkeypatch.delenv("HINTDISTILL_PEERS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="not installed: no_such_trainer"):
        need("no_such_trainer")
    assert [m.name for m in need("json")] == ["peers"]


def test_a_bridge_says_what_to_install():
    with pytest.raises(ConfigError, match="this bridge needs no_such_trainer") as error:
        need_in_bridge("no_such_trainer.inner")
    assert "pip install no_such_trainer" in str(error.value)
