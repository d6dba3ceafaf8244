"""The objects that the stages share: the configuration, the run folder, and expensive ones, each loaded once when first
needed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from hintdistill.config import RunConfig
from hintdistill.core.errors import ConfigError
from hintdistill.core.extensions import ENGINES
from hintdistill.core.hosts import require_allowed
from hintdistill.core.models import ModelKey, model_key, resolve_model
from hintdistill.core.storage import content_key
from hintdistill.core.trust import in_use as settings_in_use
from hintdistill.core.trust import require_scope
from hintdistill.core.types import Split, Trace
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.store import RunDir
from hintdistill.prompts import PromptLibrary
from hintdistill.recipes.teachers import whose
from hintdistill.traces.options import ReadOptions
from hintdistill.traces.reading import load_tool_effects, load_tools
from hintdistill.traces.registry import format_named

if TYPE_CHECKING:
    from hintdistill.engines import Engine
    from hintdistill.engines.transformers import TransformersEngine
    from hintdistill.injection.rendering import Renderer


class RunContext:
    """Hold the state of one run in progress."""

    def __init__(
        self,
        config: RunConfig,
        rundir: RunDir,
        console: Console,
        engines: dict[Path, TransformersEngine] | None = None,
        student: Path | None = None,
        held: dict[str, Engine] | None = None,
    ) -> None:
        """Store the arguments. `engines` are already loaded engines by folder, to which new ones are added. `student`
        was trained elsewhere.

        `held` keeps engines of other kinds for later runs of this process; without it they are closed when scoring
        ends.

        Raises:
            UntrustedError: the configuration comes from a run folder from elsewhere, and is used outside `in_use`.
        """
        require_scope(config.foreign)
        self.config, self.rundir, self.console, self.elsewhere = config, rundir, console, student
        self.engines: dict[Path, TransformersEngine] = {} if engines is None else engines
        self.held = held
        self.shard: tuple[int, int] | None = None
        """The number of this shard and the number of shards; None for a whole run."""
        self.gathers = False
        """Whether rows of shards are being merged: their results are taken over, no critic is asked and no weights are
        loaded."""

    @cached_property
    def library(self) -> PromptLibrary:
        """Return the prompts of this run."""
        return PromptLibrary(self.config.critic.prompts)

    @cached_property
    def model_folder(self) -> Path:
        """Return the folder of the student as this run starts. Raises ModelError."""
        return resolve_model(self.config.run.model)

    @cached_property
    def initial_folder(self) -> Path:
        """Return the folder of the initial policy: `run.initial` if the loop set it, else the same as `model_folder`.
        Raises ModelError."""
        initial = self.config.run.initial
        return self.model_folder if initial is None else resolve_model(initial)

    @property
    def teacher_folder(self) -> Path:
        """Return the folder of the model whose plain and hinted views make the targets."""
        return (
            self.initial_folder
            if whose("teacher", self.config.train.effective_recipe.teacher.update) == "initial"
            else self.model_folder
        )

    @cached_property
    def model_key(self) -> ModelKey:
        """Return the content key of the student as this run starts."""
        return model_key(self.model_folder)

    @cached_property
    def renderer(self) -> Renderer:
        """Return the renderer: the student's tokenizer, template and template options. Raises ModelError or
        ConfigError."""
        from hintdistill.injection.rendering import Renderer

        template = self.config.run.template
        return Renderer.from_pretrained(self.model_folder, template.options, template.file)

    @property
    def student_folder(self) -> Path:
        """Return the folder of the corrected model: where training writes it, or where it was trained elsewhere."""
        return self.rundir.path / "student" if self.elsewhere is None else self.elsewhere

    def engine(self, folder: Path) -> TransformersEngine:
        """Return the engine of a model folder; one engine is cached per folder."""
        from hintdistill.engines.transformers import TransformersEngine

        run = self.config.run
        if folder not in self.engines:
            self.engines[folder] = TransformersEngine.load(
                folder,
                run.dtype,
                run.device,
                self.config.rescore.batch_tokens,
                offload=self.config.rescore.offload,
            )
        return self.engines[folder]

    def check_scoring_engine(self) -> None:
        """Raise ConfigError if `rescore.engine` names a server to which traces must not be sent, or which cannot follow
        the teacher."""
        section, teacher = self.config.rescore.engine, self.config.train.effective_recipe.teacher.update
        remote, moves = ENGINES.get(section.backend).remote, whose("teacher", teacher) != "initial"
        if remote and self.config.run.rounds is not None and moves:
            raise ConfigError(
                f"the teacher is {teacher} and changes with the rounds, but the server of rescore.engine "
                "always serves the same weights",
                hint="set train.recipe.teacher.update=initial, or rescore.engine.backend=vllm or transformers",
            )
        for url in (section.base_url, *section.more_urls) if remote else ():
            if url is not None:
                require_allowed("the engine", url, section.allow_hosts, "rescore.engine.allow_hosts")

    @contextmanager
    def scoring_engine(self) -> Iterator[Engine]:
        """Yield the engine of the rescore stage with the teacher's weights; an engine used only for this stage is
        closed at the end.

        Raises:
            ConfigError, ServiceError, ModelError: the engine must not be used, cannot be reached, or does not load.
        """
        from hintdistill.engines.loading import EngineJob, load, opened

        section = self.config.rescore.engine
        if ENGINES.get(section.backend).shared:
            yield self.engine(self.teacher_folder)
            return
        self.check_scoring_engine()
        job = EngineJob(
            self.teacher_folder,
            section,
            self.config.run.dtype,
            self.config.run.device,
            self.config.rescore.batch_tokens,
            self.config.rescore.top_k,
            self.renderer.vocabulary.get,
            self.renderer.text_of,
            # the run says whose weights are served; how far they are from the trainer's is measured (`engine_floor`)
            model_key(self.teacher_folder).weights,
        )
        if self.held is not None:
            made = content_key("engine", section.model_dump(mode="json"), job.key, job.dtype, job.top_k)
            if made not in self.held:
                self.held[made] = load(section.backend, job)
            yield self.held[made]
            return
        with opened(section.backend, job) as engine:
            yield engine

    def read_options(self) -> ReadOptions:
        """Return the options for reading traces. Raises InputError if traces.tools cannot be read, ConfigError for an
        unknown format."""
        section = self.config.traces
        if section.format != "auto":
            format_named(section.format)
        return ReadOptions(
            format=section.format,
            student_role=section.student_role,
            token_ids=section.token_ids,
            tools=load_tools(section.tools) if section.tools else (),
            tool_effects=load_tool_effects(section.tools) if section.tools else {},
            max_record_bytes=section.max_record_mb * 2**20,
        )

    def split_of(self, group: str) -> Split:
        """Return the split of a trace: `holdout` for a fixed share of tasks, decided only by the task (`traces.groups`)
        and the seed."""
        share = self.config.traces.holdout
        draw = random.Random(f"{self.config.run.seed}:{group}").random()
        return "holdout" if draw < share else "train"


def in_use(config: RunConfig, trust: bool = False) -> AbstractContextManager[None]:
    """Return the scope in which a configuration's settings may be used; see `core/trust.py`. `trust` is the caller's
    `--trust`."""
    return settings_in_use(config.foreign, model_code=config.run.trust_remote_code, trusted=trust)


def trace_key(trace: Trace) -> str:
    """Return the content key of a trace, which does not depend on the file it was read from."""
    data = trace.model_dump(mode="json", exclude={"source"})
    if not trace.tool_effects:
        # runs that know no such fields keep their keys
        del data["tool_effects"]
    for message in data["messages"]:
        if message["logprobs_of"] is None:
            del message["logprobs_of"]
        if not message["cut"]:
            del message["cut"]
    return content_key("trace", data)
