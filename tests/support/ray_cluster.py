"""A Ray cluster of this machine alone, for the tests of tests/scale and tests/vllm."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from conftest import ROOT

# on a machine that may be busy; nothing is left in the home folder
os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_agent_register_timeout_ms": "180000", "RAY_USAGE_STATS_ENABLED": "0"}


@contextmanager
def cluster() -> Iterator[None]:
    """Start the cluster, several times if need be; workers import the package from where this process does."""
    import ray

    os.environ["PYTHONPATH"] = f"{ROOT}:{ROOT / 'tests'}"
    for left in reversed(range(5)):
        try:
            # its own agents have seconds to start in, which are too few on a machine with much else to do
            ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
            break
        except Exception:
            ray.shutdown()
            if not left:
                raise
    try:
        yield
    finally:
        ray.shutdown()
