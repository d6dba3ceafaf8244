"""Rollouts on a vLLM server, which samples the steps and receives the new weights in each round.

Contexts are sent as token ids and sampled ids are returned as ids (`return_token_ids`), with their log-probabilities
before any temperature. New weights are loaded in place from a folder that both sides can read (`reload_weights`,
available on a server started with VLLM_SERVER_DEV_MODE=1), and the prefix cache is emptied. Then the server's
log-probabilities are compared with those of the weights in this process, so that a server that kept its old weights is
detected before it samples. On a CPU vLLM's reload leaves kernels with the old weights; `vllm_worker.py` packs them
again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hintdistill.config import ServerSection
from hintdistill.core.errors import ServiceError
from hintdistill.core.http import MOST_BYTES, HttpClient, Server, StatusError
from hintdistill.core.scores import ScoreRequest
from hintdistill.core.threads import in_order
from hintdistill.engines.transformers import TransformersEngine
from hintdistill.injection.hints import seed_of
from hintdistill.rollouts.generation import Sampled, SamplingOptions

EXTENSION = "hintdistill.rollouts.vllm_worker.PackedKernels"
"""The option with which a server on a CPU must be started; see that module."""
ADAPTER_NAME = "hintdistill-"
"""Prefix of the names of adapters on a server."""
BYTES_PER_TOKEN = 1024
"""An upper bound of the size of a server's output for one token: its id, its text and its log-probability."""


class ServerGenerator:
    """Sample with the weights of a vLLM server."""

    def __init__(self, config: ServerSection, max_length: int) -> None:
        """Connect to the server. `max_length` is the model's context; if the server allows less, its limit applies.

        Raises:
            ConfigError: the server is on another machine whose host is not allowed.
            ServiceError: it cannot be reached, or serves no model.
        """
        self.config, self.max_length, self.key = config, max_length, ""
        self.client = HttpClient(asked(config))
        self.model = config.model or self._served()

    def generate(
        self, contexts: Sequence[Sequence[int]], stop: Sequence[int], options: SamplingOptions, seed: int
    ) -> list[Sampled]:
        """Implement `Generator.generate`."""
        body: dict[str, Any] = {
            "max_tokens": options.max_new_tokens,
            "temperature": options.temperature,
            "logprobs": 0,
            "return_token_ids": True,
            "stop_token_ids": list(stop),
            "skip_special_tokens": False,
        }
        if options.temperature > 0:
            # said even where they filter nothing: a server has defaults of its own, from the model's generation config
            body |= {"top_p": options.top_p, "top_k": options.top_k or -1, "min_p": options.min_p}

        def one(i: int) -> Sampled:
            prompt = {"model": self.model, "prompt": list(contexts[i]), "seed": seed_of(seed, i) % 2**31}
            choice = self._choice(prompt | body, len(contexts[i]) + options.max_new_tokens)
            with self._well_formed():
                return _sampled(choice)

        return in_order(one, range(len(contexts)), self.config.concurrency)

    def hand_over(self, folder: Path, engine: TransformersEngine, probe: Sequence[Sequence[int]]) -> float:
        """Load the weights in `folder` into the server, and check that it serves them.

        Args:
            engine: the same weights in this process.
            probe: token sequences on which the two are compared.

        Returns:
            Mean |log p server − log p here| over the probe's tokens, in nats.

        Raises:
            ServiceError: the server cannot reload weights, or its answers do not match these weights even after packing
                its kernels again.
        """
        calls: tuple[tuple[str, dict[str, Any]], ...] = (
            ("reload_weights", {"weights_path": str(folder.resolve())}),
            ("pack_again", {}),
        )
        gap, refused = float("nan"), ""
        for method, arguments in calls:
            try:
                self._post("/collective_rpc", {"method": method, "kwargs": arguments})
            except ServiceError as error:
                if method == "reload_weights":
                    raise
                refused = f" ({error.message})"
                break
            self._post("/reset_prefix_cache", None)
            gap = self.gap(engine, probe)
            if gap <= self.config.max_gap_nats:
                self.key = engine.key
                return gap
        raise ServiceError(
            f"after receiving {folder}, the server at {self.config.base_url} differs from it by {gap:.3g} nats "
            f"per token{refused}",
            hint=f"it may not have loaded these weights; a server on a CPU needs --worker-extension-cls {EXTENSION}; "
            "rollout.sample.server.max_gap_nats is the bound",
        )

    def hand_adapter(self, adapter: Path | None, engine: TransformersEngine, probe: Sequence[Sequence[int]]) -> float:
        """Load an adapter into the server in addition to its model, and check that it samples from both.

        Each adapter has a name of its own, so that the prefix cache contains nothing from another one; the previous
        adapter is unloaded.

        Args:
            adapter: folder of the adapter; None for the model alone, as in the first round.
            engine: model and adapter in this process.
            probe: token sequences on which the two are compared.

        Returns:
            Mean |log p server − log p here| over the probe's tokens, in nats.

        Raises:
            ServiceError: the server does not accept adapters at run time, or its answers do not match these weights.
        """
        served = self._models()
        names = [n for n in served if n.startswith(ADAPTER_NAME)]
        base = self.config.model or next((n for n in served if n not in names), "")
        wanted = base if adapter is None else f"{ADAPTER_NAME}{engine.key.replace(':', '-')[:24]}"
        if adapter is not None and wanted not in names:
            self._adapters("load", {"lora_name": wanted, "lora_path": str(adapter.resolve())})
        for name in names:
            if name != wanted:
                self._adapters("unload", {"lora_name": name})
        self.model = wanted
        if not (gap := self.gap(engine, probe)) <= self.config.max_gap_nats:
            if adapter is not None:
                self._adapters("unload", {"lora_name": wanted})
            raise ServiceError(
                f"with {'no adapter' if adapter is None else adapter}, the server at {self.config.base_url} "
                f"differs from the weights here by {gap:.3g} nats per token",
                hint="it must serve the initial model; rollout.sample.server.max_gap_nats is the bound",
            )
        self.key = engine.key
        return gap

    def sleep(self) -> None:
        """Let the server release the memory of its weights and caches. Raises ServiceError if it cannot sleep.

        This is untested, because sleep mode needs CUDA.
        """
        try:
            asleep = json.loads(self.client.get("/is_sleeping", at_root=True).body)
        except StatusError as error:
            raise ServiceError(
                f"{self.client.url} has no sleep mode ({error.status})",
                hint="start vLLM with --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1, or set rollout.sample.server.sleep=false",
            ) from None
        with self._well_formed():
            if not asleep["is_sleeping"]:
                self._post("/sleep?level=1", None)

    def wake(self) -> None:
        """Wake the server if it sleeps or its state is unknown. Raises ServiceError."""
        self._post("/wake_up", None)

    def _adapters(self, action: str, body: dict[str, Any]) -> None:
        """Load or unload an adapter. Raises ServiceError that says what the server lacks."""
        try:
            self.client.post(f"/{action}_lora_adapter", body)
        except StatusError as error:
            hint = "start vLLM with --enable-lora --max-lora-rank N and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, N at least the rank"
            raise ServiceError(
                f"{self.client.url} did not {action} {body['lora_name']}: {error.message}", hint=hint
            ) from None

    def gap(self, engine: TransformersEngine, probe: Sequence[Sequence[int]]) -> float:
        """Return the mean |log p server − log p engine| over the tokens of `probe`, in nats per token."""
        requests = [ScoreRequest(np.array(ids), 1, len(ids)) for ids in probe]
        total, tokens = 0.0, 0
        for ids, score in zip(probe, engine.score(requests, top_k=1), strict=True):
            prompt = {"model": self.model, "prompt": list(ids), "max_tokens": 1, "temperature": 0.0}
            choice = self._choice(prompt | {"prompt_logprobs": 0}, len(ids))
            with self._well_formed():
                table = choice["prompt_logprobs"]
                if len(table) != len(ids):
                    raise ServiceError(
                        f"{self.config.base_url} scored a prompt other than the one sent: {len(table)} "
                        f"positions for {len(ids)} tokens"
                    )
                theirs = np.array([float(table[i][str(ids[i])]["logprob"]) for i in range(1, len(ids))])
            total += float(np.abs(theirs - score.sampled).sum())
            tokens += len(theirs)
        return total / tokens

    def _served(self) -> str:
        with self._well_formed():
            return self._models()[0]

    def _models(self) -> list[str]:
        """Return the names that the server serves: those of its model and of adapters."""
        with self._well_formed():
            return [str(model["id"]) for model in json.loads(self.client.get("/models").body)["data"]]

    def _choice(self, body: dict[str, Any], tokens: int) -> dict[str, Any]:
        """Return the first choice of a completion that contains this many tokens."""
        answer = self.client.post("/completions", body, most_bytes=MOST_BYTES + tokens * BYTES_PER_TOKEN)
        with self._well_formed():
            return json.loads(answer.body)["choices"][0]

    @contextmanager
    def _well_formed(self) -> Iterator[None]:
        """Raise ServiceError if an answer does not have vLLM's form."""
        try:
            yield
        except (TypeError, KeyError, ValueError, AttributeError, IndexError, RecursionError, OverflowError) as error:
            raise ServiceError(
                f"the rollout server at {self.client.url} does not answer in vLLM's format: {error!r}"
            ) from None

    def _post(self, path: str, body: Any) -> None:
        try:
            self.client.post(path, body, at_root=True)
        except StatusError as error:
            if error.status == 404:
                raise ServiceError(
                    f"{path} is missing, so the server at {self.client.url} cannot load new weights",
                    hint="start vLLM with VLLM_SERVER_DEV_MODE=1, on an interface that only you can reach",
                ) from None
            raise


def asked(config: ServerSection) -> Server:
    """Return the sampling server in the form that the HTTP client takes."""
    assert config.base_url is not None
    return Server(
        config.base_url,
        "the rollout server",
        "rollout.sample.server",
        config.allow_hosts,
        "rollout.sample.server.allow_hosts",
        config.api_key_env,
        config.timeout_s,
        config.retries,
    )


def _sampled(choice: Any) -> Sampled:
    ids = choice.get("token_ids")
    if not ids:
        raise ServiceError(
            "the rollout server returned no token ids",
            hint="it must be a vLLM server that supports return_token_ids (0.10.2 or later)",
        )
    said = choice.get("logprobs")
    logprobs = said["token_logprobs"] if said is not None else None
    if logprobs is None or len(logprobs) != len(ids) or any(x is None for x in logprobs):
        raise ServiceError(
            f"the rollout server returned {len(logprobs or ())} log-probabilities for {len(ids)} token ids"
        )
    return Sampled(tuple(map(int, ids)), tuple(round(float(x), 6) for x in logprobs))
