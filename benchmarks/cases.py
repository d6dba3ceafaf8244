"""What the rescoring and the training benchmarks have in common: a trace with N errors, and the shape of a small model."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import Qwen3Config

WIDTH, FEED_FORWARD, HEADS, KEY_HEADS, HEAD = 512, 1536, 8, 4, 64


@dataclass(frozen=True)
class Errors:
    """A trace with N errors evenly spread, the last one at its end."""

    tokens: int
    errors: int
    vocab: int
    hint: int = 48
    step: int = 64

    @property
    def ends(self) -> list[int]:
        """Where each erring step ends in the trace."""
        return [self.tokens * (i + 1) // self.errors for i in range(self.errors)]


def small(layers: int, vocab: int) -> Qwen3Config:
    """An untied Qwen3 of these widths."""
    return Qwen3Config(
        vocab_size=vocab,
        hidden_size=WIDTH,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        head_dim=HEAD,
        max_position_embeddings=32_768,
        tie_word_embeddings=False,
    )
