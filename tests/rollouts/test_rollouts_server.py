"""The server that samples rollouts: whom it may send them to."""

from __future__ import annotations

import pytest

from hintdistill.config import ServerSection
from hintdistill.core.errors import ConfigError
from hintdistill.rollouts.server import ServerGenerator


def test_a_rollout_server_needs_consent():
    with pytest.raises(ConfigError, match=r"rollout server at http://vllm.example/v1 is outside"):
        ServerGenerator(ServerSection(base_url="http://vllm.example/v1", model="m"), 10)
    assert ServerGenerator(
        ServerSection(base_url="http://vllm.example/v1", model="m", allow_hosts=("vllm.example",)), 10
    )
