"""Settings of the engine that reads the views in the rescore stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hintdistill.config.base import Section
from hintdistill.core.extensions import ENGINES
from hintdistill.core.registry import NameIn


class EngineSection(Section):
    """Configure the engine that scores the plain and the hinted views. Training and measuring always use
    transformers."""

    backend: Annotated[str, NameIn(ENGINES)] = "transformers"
    """`vllm`: vLLM in this process; `server`: an OpenAI-compatible server that serves the teacher's weights. Neither
    can score chosen ids, so targets contain only ids that both views return, and recipes that need the union of their
    top k are refused."""
    base_url: str | None = None
    """Address of the server, up to and including `/v1`."""
    more_urls: tuple[str, ...] = ()
    """Further servers of the same weights under the same name. Each prompt goes to the server with the fewest open
    prompts. If a server fails, its prompts go to the others."""
    model: str | None = None
    """The name of the weights on the server."""
    dialect: Literal["prompt_logprobs", "echo"] = "prompt_logprobs"
    """The server's interface: vLLM's `prompt_logprobs` (start it with --max-logprobs at least `rescore.top_k`), or
    `echo` with `logprobs`."""
    allow_hosts: tuple[str, ...] = ()
    """Hosts outside this machine that may receive traces, as token ids."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Seconds for one whole answer, from the first byte sent to the last byte received."""
    retries: int = Field(default=2, ge=0)
    """Number of retries after a rate limit, a server error or a time-out."""
    concurrency: int = Field(default=8, ge=1)
    """Prompts in flight to each server."""
    max_length: int | None = Field(default=None, ge=1)
    """Longest prompt in tokens; default: the limit of the model or the server."""

    @model_validator(mode="after")
    def _a_server_has_an_address(self) -> EngineSection:
        if ENGINES.get(self.backend).remote and (self.base_url is None or self.model is None):
            raise ValueError(f"rescore.engine.backend={self.backend} needs base_url and model")
        return self
