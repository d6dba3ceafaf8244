"""The transformers engine: one prefill per distinct sequence, cut after the last scored token, no decoding.

Requests are sorted by length and packed into right-padded batches under a token budget; a sequence that is asked for
twice is computed once, so that a view without a hint is bit-identical to the plain one. Hidden states of scored
positions are kept until every request of a group knows its top-k; then the head is applied again on the union.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hintdistill.engines import union_rows
from hintdistill.engines.forward import Head, chunks, head_error, hidden_at, make_head
from hintdistill.errors import ContextLengthError, ModelError, ScoreError
from hintdistill.models import model_key
from hintdistill.scores import ScoreRequest, Scores

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str) -> torch.device:
    """`auto` is the first accelerator, else the CPU. Raises ModelError for a device that is not there."""
    if name != "auto":
        try:
            torch.empty(1, device=name)
        except (RuntimeError, AssertionError) as error:
            raise ModelError(f"run.device={name} is not usable: {str(error).splitlines()[0]}") from None
        return torch.device(name)
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is float32 on a CPU and bfloat16 elsewhere."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return DTYPES[name]


def load_model(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """The weights of a model folder, in evaluation mode; an adapter folder is merged into its base model.

    Raises:
        ModelError: the folder cannot be loaded.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        if (folder / "adapter_config.json").is_file():
            from peft import AutoPeftModelForCausalLM

            model = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=dtype).merge_and_unload()
        else:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    except Exception as error:
        raise ModelError(f"cannot load the model of {folder}: {error}") from error
    return model.to(device).eval()


class TransformersEngine:
    """Scores with a transformers causal language model; see `Engine`."""

    capabilities = frozenset({"gather", "full"})

    def __init__(self, model: Any, key: str, batch_tokens: int = 16_384) -> None:
        """Wrap a model. Raises ModelError where its logits cannot be reproduced from its hidden states."""
        self.model, self.key, self.batch_tokens = model, key, batch_tokens
        config = model.config.get_text_config()
        self.max_length = int(getattr(config, "max_position_embeddings", None) or 1 << 30)
        self.vocab_size = int(model.get_output_embeddings().weight.shape[0])
        self.pad = int(config.pad_token_id or 0)
        self.head: Head = make_head(model)
        error, bound = head_error(model, self.head), 1e-3 if model.dtype == torch.float32 else 0.25
        if not error <= bound:
            raise ModelError(
                f"{type(model).__name__} changes its logits in a way its config does not say (off by {error:.3g})",
                hint="this architecture needs an entry in engines/forward.py:make_head",
            )

    @classmethod
    def load(
        cls, folder: Path, dtype: str = "auto", device: str = "auto", batch_tokens: int = 16_384
    ) -> TransformersEngine:
        """Load a model folder. Raises ModelError."""
        where = pick_device(device)
        model = load_model(folder, pick_dtype(dtype, where), where)
        return cls(model, model_key(folder).weights, batch_tokens)

    def score(self, requests: Sequence[ScoreRequest], top_k: int) -> list[Scores]:
        """See `Engine.score`."""
        hidden = self._hidden(requests)
        tops = [self._top(h, min(top_k, self.vocab_size)) for h in hidden]
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(request.group if request.group is not None else f"\0{i}", []).append(i)
        out: list[Scores | None] = [None] * len(requests)
        for members in groups.values():
            if len({requests[i].end - requests[i].start for i in members}) > 1:
                raise ValueError("requests of one group must score steps of the same length")
            kept = union_rows([*(tops[i] for i in members), _sampled(requests[members[0]])[:, None]])
            for i in members:
                out[i] = self._scores(requests[i], hidden[i], tops[i][:, 0], kept)
        return [s for s in out if s is not None]

    def logprobs(self, requests: Sequence[ScoreRequest]) -> Iterator[torch.Tensor]:
        """Log-probabilities of the whole vocabulary, float32 [T, V], one request at a time (capability `full`)."""
        for hidden in self._hidden(requests):
            # not around the yield: of two interleaved generators, the second would leave inference mode on for good
            with torch.inference_mode():
                logp = torch.cat([self.head(hidden[c]).log_softmax(-1) for c in chunks(len(hidden), self.vocab_size)])
            yield logp

    def _hidden(self, requests: Sequence[ScoreRequest]) -> list[torch.Tensor]:
        """Hidden states [T, H] per request; equal requests share theirs."""
        slots: dict[tuple[bytes, int, int], list[int]] = {}
        for i, r in enumerate(requests):
            if r.end > self.max_length:
                raise ContextLengthError(
                    f"a sequence of {r.end} tokens is longer than the model's {self.max_length} positions",
                    hint="shorten the trace, or use a model with a longer context",
                )
            slots.setdefault(
                (np.ascontiguousarray(r.ids[: r.end], dtype=np.int64).tobytes(), r.start, r.end), []
            ).append(i)
        order = sorted(slots, key=lambda slot: slot[2])
        out: list[torch.Tensor | None] = [None] * len(requests)
        with torch.inference_mode():
            for batch in self._batches(order):
                firsts = [requests[slots[slot][0]] for slot in batch]
                # the last scored token itself need not be read
                sequences = [r.ids[: r.end - 1] for r in firsts]
                found = hidden_at(self.model, sequences, [range(r.start - 1, r.end - 1) for r in firsts], self.pad)
                for slot, hidden in zip(batch, found, strict=True):
                    for i in slots[slot]:
                        out[i] = hidden
        return [h for h in out if h is not None]

    def _batches(self, order: Sequence[tuple[bytes, int, int]]) -> Iterator[list[tuple[bytes, int, int]]]:
        batch: list[tuple[bytes, int, int]] = []
        for slot in order:
            if batch and (len(batch) + 1) * slot[2] > self.batch_tokens:
                yield batch
                batch = []
            batch.append(slot)
        if batch:
            yield batch

    def _top(self, hidden: torch.Tensor, k: int) -> np.ndarray:
        with torch.inference_mode():
            parts = [self.head(hidden[c]).topk(k, dim=-1).indices for c in chunks(len(hidden), self.vocab_size)]
            return torch.cat(parts).cpu().numpy()

    def _scores(self, request: ScoreRequest, hidden: torch.Tensor, top1: np.ndarray, kept: np.ndarray) -> Scores:
        ids = torch.from_numpy(kept).to(hidden.device)
        sampled = torch.from_numpy(_sampled(request)).to(hidden.device)
        wanted = request.gather_ids
        gather = None if wanted is None else torch.from_numpy(np.asarray(wanted, np.int64)).to(hidden.device)
        columns: list[list[torch.Tensor]] = [[], [], [], []]
        with torch.inference_mode():
            for c in chunks(len(hidden), self.vocab_size):
                logp = self.head(hidden[c]).log_softmax(-1)
                here = ids[c]
                values = logp.gather(1, here.clamp(min=0)).masked_fill(here < 0, -torch.inf)
                columns[0].append(logp.gather(1, sampled[c, None])[:, 0])
                columns[1].append(values)
                if gather is not None:
                    columns[3].append(logp[:, gather])
                # sum of what is left, not one minus what is kept: no cancellation when almost nothing is left
                rest = logp.scatter(1, torch.where(here < 0, here[:, :1].clamp(min=0), here), -torch.inf)
                columns[2].append(rest.logsumexp(-1))
        sampled_lp, top_lp, tail = (torch.cat(c).cpu().numpy() for c in columns[:3])
        gathered = torch.cat(columns[3]).cpu().numpy() if gather is not None else None
        if not np.isfinite(sampled_lp).all() or np.isnan(top_lp).any() or np.isnan(tail).any():
            at = int(np.argmin(np.isfinite(sampled_lp)))
            raise ScoreError(f"log-probability {sampled_lp[at]} at position {at} of a step ({request.group or 'no group'})",
                             hint="the weights or the precision overflow; try run.dtype=float32")  # fmt: skip
        return Scores(sampled_lp, kept, top_lp, tail, gathered, top1)


def _sampled(request: ScoreRequest) -> np.ndarray:
    return np.asarray(request.ids[request.start : request.end], np.int64)
