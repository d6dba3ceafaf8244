"""hintdistill: targeted hint-injection self-distillation.

Public names are imported on first use, so that `import hintdistill` loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

_EXPORTS = {
    "Critique": "core.types",
    "Finding": "core.types",
    "Injection": "core.types",
    "Message": "core.types",
    "ScoreRequest": "core.scores",
    "Scores": "core.scores",
    "Target": "core.scores",
    "ToolCall": "core.types",
    "Trace": "core.types",
    "Twin": "core.types",
    "TwinEdit": "core.types",
    "Replacement": "core.types",
    "HintdistillError": "core.errors",
    "RunConfig": "config",
    "load_config": "config.file",
    "Diagnosed": "api",
    "Diagnosis": "api",
    "HintMemory": "api",
    "LoadedModel": "api",
    "RankedHint": "api",
    "Session": "api",
    "connect_engine": "api",
    "diagnose": "api",
    "diagnose_async": "api",
    "load_critic": "api",
    "load_engine": "api",
    "rank_hints": "api",
    "rank_hints_async": "api",
    "rescore": "api",
    "rescore_async": "api",
    "twin": "api",
    "TraceSink": "recording.sink",
    "record_openai": "recording.openai",
    "OpenedRun": "reporting.opened",
    "open_run": "reporting.opened",
    "read_traces": "traces.reading",
    "run": "pipeline.run",
}
__all__ = [*_EXPORTS, "__version__"]

if TYPE_CHECKING:
    from hintdistill.api import (
        Diagnosed,
        Diagnosis,
        HintMemory,
        LoadedModel,
        RankedHint,
        Session,
        connect_engine,
        diagnose,
        diagnose_async,
        load_critic,
        load_engine,
        rank_hints,
        rank_hints_async,
        rescore,
        rescore_async,
        twin,
    )
    from hintdistill.config import RunConfig
    from hintdistill.config.file import load_config
    from hintdistill.core.errors import HintdistillError
    from hintdistill.core.scores import ScoreRequest, Scores, Target
    from hintdistill.core.types import (
        Critique,
        Finding,
        Injection,
        Message,
        Replacement,
        ToolCall,
        Trace,
        Twin,
        TwinEdit,
    )
    from hintdistill.pipeline.run import run
    from hintdistill.recording.openai import record_openai
    from hintdistill.recording.sink import TraceSink
    from hintdistill.reporting.opened import OpenedRun, open_run
    from hintdistill.traces.reading import read_traces


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
