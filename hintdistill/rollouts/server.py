"""Rollouts by a vLLM server: steps are sampled there, and each round it is handed the new weights.

Contexts go as token ids and sampled ids come back as ids (`return_token_ids`), with their log-probabilities before any
temperature. New weights are loaded in place from a folder both sides can read (`reload_weights`, which a server started
with VLLM_SERVER_DEV_MODE=1 offers) and the prefix cache is emptied; then the server's log-probabilities are compared with
those of the weights in this process, so that a server that kept its old weights is found out before it samples anything.
On a CPU vLLM's reload leaves kernels of the old weights; `vllm_worker.py` has what packs them again.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from hintdistill.config import ServerSection
from hintdistill.core.errors import ServiceError
from hintdistill.core.scores import ScoreRequest
from hintdistill.engines.transformers import TransformersEngine
from hintdistill.injection.hints import seed_of
from hintdistill.rollouts.generation import Sampled, SamplingOptions

EXTENSION = "hintdistill.rollouts.vllm_worker.PackedKernels"
"""What a server on a CPU must be started with, see there."""


class ServerGenerator:
    """Samples from the weights that a vLLM server holds."""

    def __init__(self, config: ServerSection, max_length: int) -> None:
        """Connect. `max_length` is the model's context; the server may allow less and then says so."""
        from openai import OpenAI

        assert config.base_url is not None
        self.config, self.max_length, self.key = config, max_length, ""
        self.client = OpenAI(
            base_url=config.base_url,
            api_key=os.environ.get(config.api_key_env) or "none",
            timeout=config.timeout_s,
            max_retries=config.retries,
        )
        self.model = config.model or self._served()

    def generate(
        self, contexts: Sequence[Sequence[int]], stop: Sequence[int], options: SamplingOptions, seed: int
    ) -> list[Sampled]:
        """See `Generator.generate`."""
        body: dict[str, Any] = {
            "max_tokens": options.max_new_tokens,
            "temperature": options.temperature,
            "logprobs": 0,
            "extra_body": {"return_token_ids": True, "stop_token_ids": list(stop), "skip_special_tokens": False},
        }
        if options.temperature > 0:
            # said even where they filter nothing: a server has defaults of its own, from the model's generation config
            body["top_p"] = options.top_p
            body["extra_body"] |= {"top_k": options.top_k or -1, "min_p": options.min_p}

        def one(item: tuple[int, Sequence[int]]) -> Sampled:
            i, context = item
            answer = self._ask(
                lambda: self.client.completions.create(
                    model=self.model, prompt=list(context), seed=seed_of(seed, i) % 2**31, **body
                )
            )
            return _sampled(answer.choices[0])

        with ThreadPoolExecutor(self.config.concurrency) as pool:
            return list(pool.map(one, enumerate(contexts)))

    def hand_over(self, folder: Path, engine: TransformersEngine, probe: Sequence[Sequence[int]]) -> float:
        """Load the weights of `folder` into the server and make sure that it serves them.

        Args:
            engine: the same weights in this process.
            probe: token sequences on which both are compared.

        Returns:
            Mean |log p server − log p here| over the probe's tokens, nats.

        Raises:
            ServiceError: the server offers no reload, or answers as other weights would, after packing its kernels again too.
        """
        root = self.client.base_url.copy_with(path="/")
        calls: tuple[tuple[str, dict[str, Any]], ...] = (
            ("reload_weights", {"weights_path": str(folder.resolve())}),
            ("pack_again", {}),
        )
        gap, refused = float("nan"), ""
        for method, arguments in calls:
            try:
                self._post(f"{root}collective_rpc", {"method": method, "kwargs": arguments})
            except ServiceError as error:
                if method == "reload_weights":
                    raise
                refused = f" ({error.message})"
                break
            self._post(f"{root}reset_prefix_cache", None)
            gap = self.gap(engine, probe)
            if gap <= self.config.max_gap_nats:
                self.key = engine.key
                return gap
        raise ServiceError(
            f"after the hand-over the server at {self.config.base_url} is {gap:.3g} nats per token away from {folder}{refused}",
            hint=f"it may not have loaded these weights; a server on a CPU needs --worker-extension-cls {EXTENSION}; "
            "rollout.sample.server.max_gap_nats is the bound",
        )

    def gap(self, engine: TransformersEngine, probe: Sequence[Sequence[int]]) -> float:
        """Mean |log p server − log p engine| over the tokens of `probe`, nats per token."""
        requests = [ScoreRequest(np.array(ids), 1, len(ids)) for ids in probe]
        total, tokens = 0.0, 0
        for ids, score in zip(probe, engine.score(requests, top_k=1), strict=True):
            answer = self._ask(
                lambda ids=ids: self.client.completions.create(
                    model=self.model,
                    prompt=list(ids),
                    max_tokens=1,
                    temperature=0.0,
                    extra_body={"prompt_logprobs": 0},
                )
            )
            table = answer.choices[0].prompt_logprobs
            theirs = np.array([table[i][str(ids[i])]["logprob"] for i in range(1, len(ids))])
            total += float(np.abs(theirs - score.sampled).sum())
            tokens += len(theirs)
        return total / tokens

    def _served(self) -> str:
        models = self._ask(self.client.models.list)
        return str(models.data[0].id)

    def _ask(self, call: Any) -> Any:
        from openai import APIConnectionError, APIStatusError

        try:
            return call()
        except APIConnectionError as error:
            raise ServiceError(
                f"cannot reach the rollout server at {self.config.base_url}: {type(error).__name__}",
                hint="start it, or correct rollout.sample.server.base_url",
            ) from error
        except APIStatusError as error:
            raise ServiceError(
                f"the rollout server at {self.config.base_url} answered {error.status_code}: {str(error)[:300]}"
            ) from error

    def _post(self, url: str, body: Any) -> None:
        data = json.dumps(body).encode() if body is not None else b""
        request = urllib.request.Request(url, data, {"content-type": "application/json"}, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=self.config.timeout_s):
                return
        except urllib.error.HTTPError as error:
            if error.code == 404:
                raise ServiceError(
                    f"{url} is not there, so the server cannot be handed new weights",
                    hint="start vLLM with VLLM_SERVER_DEV_MODE=1, on an interface that only you can reach",
                ) from None
            raise ServiceError(f"{url} answered {error.code}: {error.read()[:300].decode(errors='replace')}") from error
        except OSError as error:
            raise ServiceError(f"cannot reach {url}: {type(error).__name__}: {error}") from error


def _sampled(choice: Any) -> Sampled:
    ids = getattr(choice, "token_ids", None)
    if not ids:
        raise ServiceError(
            "the rollout server returned no token ids",
            hint="it must be a vLLM that knows return_token_ids (0.10.2 or later)",
        )
    logprobs = choice.logprobs.token_logprobs if choice.logprobs is not None else None
    if logprobs is None or len(logprobs) != len(ids) or any(x is None for x in logprobs):
        raise ServiceError(
            f"the rollout server returned {len(logprobs or ())} log-probabilities for {len(ids)} token ids"
        )
    return Sampled(tuple(ids), tuple(round(float(x), 6) for x in logprobs))
