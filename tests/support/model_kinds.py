"""Tiny random models of every architecture kind that prefixes are shared on, or are not."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM

VOCAB = 512
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "bos_token_id": None,
}
MIXED = ["sliding_attention", "full_attention"] * 2
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def _config(kind: str):
    import transformers as t

    return {
        "llama": lambda: t.LlamaConfig(**COMMON),
        "qwen3": lambda: t.Qwen3Config(**COMMON, head_dim=8),
        "qwen3_tied_lora": lambda: t.Qwen3Config(**COMMON, head_dim=8, tie_word_embeddings=True),
        "mistral": lambda: t.MistralConfig(**COMMON, head_dim=8, sliding_window=16),
        "gemma2": lambda: t.Gemma2Config(
            **COMMON, head_dim=8, sliding_window=16, attn_logit_softcapping=5.0, final_logit_softcapping=3.0
        ),
        "gemma3": lambda: t.Gemma3TextConfig(**COMMON, head_dim=8, sliding_window=16, layer_types=MIXED),
        "gpt_oss": lambda: t.GptOssConfig(
            **COMMON, head_dim=8, sliding_window=16, num_local_experts=4, num_experts_per_tok=2, layer_types=MIXED
        ),
        "qwen3_moe": lambda: t.Qwen3MoeConfig(**COMMON, head_dim=8, **EXPERTS),
        "qwen3_next": lambda: t.Qwen3NextConfig(
            **COMMON,
            head_dim=8,
            linear_num_value_heads=4,
            linear_num_key_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            shared_expert_intermediate_size=32,
            **EXPERTS,
        ),
        "lfm2": lambda: t.Lfm2Config(**COMMON, layer_types=["conv", "full_attention"] * 2),
        "mamba": lambda: t.MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=8),
        "mamba2": lambda: t.Mamba2Config(
            vocab_size=VOCAB,
            hidden_size=32,
            num_hidden_layers=2,
            state_size=8,
            num_heads=8,
            head_dim=8,
            n_groups=1,
            chunk_size=16,
        ),
    }[kind]()


WAYS = {
    **dict.fromkeys(
        ("llama", "qwen3", "qwen3_tied_lora", "mistral", "gemma2", "gemma3", "gpt_oss", "qwen3_moe"), "shared_prefix"
    ),
    "qwen3_next": "snapshots",
    "lfm2": "snapshots",
    "mamba2": "snapshots",
    "mamba": "snapshots_by_token",
}
LOOSE = {"mistral", "gemma2", "gemma3", "gpt_oss", "qwen3_next", "lfm2", "mamba", "mamba2"}
"""Sliding-window and recurrent kinds: 5e-5; the others 1e-5."""
_built: dict[str, object] = {}


def model_of(kind: str):
    """A random model of a kind, opinionated enough that a wrong token changes every number."""
    if kind not in _built:
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(_config(kind)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2 and "mamba" not in kind:
                    parameter.mul_(3.0)
        if kind.endswith("lora"):
            from peft import LoraConfig, get_peft_model

            model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
        _built[kind] = model
    return _built[kind]
