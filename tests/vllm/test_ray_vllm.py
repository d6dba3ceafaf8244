"""Ray actors whose engine is the real vLLM, in their own process: the same hints are scored, with the same numbers."""

from __future__ import annotations

import os

import numpy as np
import pytest
from conftest import ROOT
from support.ray_cluster import cluster

pytest.importorskip("vllm", reason="vllm is not installed in this environment; `make test-vllm` has its own")
pytest.importorskip("ray")
pytestmark = pytest.mark.vllm

from hintdistill.config.file import load_config  # noqa: E402
from hintdistill.pipeline.progress import Console  # noqa: E402
from hintdistill.pipeline.ray_shards import Actors, run_on_ray  # noqa: E402
from hintdistill.pipeline.run import run  # noqa: E402
from hintdistill.pipeline.store import RunDir  # noqa: E402
from hintdistill.rescoring.store import TargetStore  # noqa: E402


def targets(folder, *more: str):
    rows = TargetStore(folder / "targets").open(RunDir.open(folder).index("rescore"))
    return {(t.kind, t.trace_id, t.step): t for t in rows}


def test_an_actor_holds_vllm_and_scores_what_transformers_does(tmp_path):
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    small = ["run.dtype=float32", "critic.use=[rules]", "traces.limit=16", "rescore.part_rows=4", "train.watch.steps=3"]

    def settings(name: str, *more: str):
        return load_config(ROOT / "configs" / "quickstart.yaml", [*small, f"run.dir={tmp_path / name}", *more])

    run(settings("whole"), tmp_path / "whole", until="rescore", console=Console(quiet=True))
    with cluster():
        run_on_ray(settings("shared", "rescore.engine.backend=vllm"), 2, Actors(1), console=Console(quiet=True))
    one, two = targets(tmp_path / "whole"), targets(tmp_path / "shared")
    assert one.keys() == two.keys() and len(one) > 20
    for key, target in one.items():
        assert np.abs(target.teacher_sampled - two[key].teacher_sampled).max() <= 1e-3
