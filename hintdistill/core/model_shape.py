"""Read a model's shape, from which memory and operations are counted. The shape comes from the config and the headers
of the weights. Torch-free."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hintdistill.core.errors import ModelError
from hintdistill.core.models import ADAPTER_CONFIG, resolve_model, unloadable
from hintdistill.core.trust import model_code_allowed


@dataclass(frozen=True)
class Linear:
    """Describe a matrix by which every token is multiplied."""

    name: str
    outputs: int
    inputs: int
    share: float = 1.0
    """Share of the tokens that pass through it; below 1 for one expert of several."""

    @property
    def size(self) -> int:
        """Number of its entries."""
        return self.outputs * self.inputs


@dataclass(frozen=True)
class ModelShape:
    """Hold the widths, counts and matrices of a causal language model."""

    kind: str
    hidden: int
    intermediate: int
    """Width of the feed-forward block that one token passes through, summed over its experts if there are several."""
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    """Whether the output embedding shares the weights of the input embedding."""
    max_length: int
    parameters: int
    linears: tuple[Linear, ...]
    """Linear maps of the layers, without the embeddings."""
    head_norms: bool = False
    """Whether queries and keys are normalised per head."""
    masked: bool = False
    """Whether attention has windows, caps or sinks, so that engines must build masks."""

    @property
    def query_width(self) -> int:
        """Number of heads times head width."""
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Number of key heads times head width."""
        return self.kv_heads * self.head_dim

    @cached_property
    def body(self) -> int:
        """Number of matrix entries in the layers by which one token is multiplied."""
        return round(sum(m.size * m.share for m in self.linears))

    @property
    def head(self) -> int:
        """Number of entries of the output embedding."""
        return self.hidden * self.vocab

    def adapter(self, rank: int, targets: str | tuple[str, ...]) -> int:
        """Return the number of entries of low-rank adapters of `rank` on `targets`: names of modules, or
        `all-linear`."""
        names = None if targets == "all-linear" else ([targets] if isinstance(targets, str) else list(targets))
        chosen = [m for m in self.linears if names is None or m.name.split(".")[-1] in names]
        return sum(rank * (m.outputs + m.inputs) for m in chosen)

    @classmethod
    def of(cls, folder: Path) -> ModelShape:
        """Return the shape of the model in a folder, or of the base model if the folder holds an adapter.

        Raises:
            ModelError: the config cannot be read, or lacks a width.
        """
        from transformers import AutoConfig

        folder = base_folder(folder)
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=model_code_allowed()).get_text_config()
        except Exception as error:
            raise unloadable(f"the config of {folder}", error) from error
        return cls.from_config(config, _tensors(folder))

    @classmethod
    def from_config(cls, config: Any, tensors: dict[str, tuple[int, ...]] | None = None) -> ModelShape:
        """Return the shape that a config describes. `tensors` holds the shapes of the stored weights by name, if they
        are known.

        Raises:
            ModelError: the config lacks a width.
        """
        wanted = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
        if missing := [n for n in wanted if getattr(config, n, None) is None]:
            raise ModelError(
                f"the config of this {config.model_type} model has no {', '.join(missing)}, from which its memory is counted"
            )
        hidden, heads = int(config.hidden_size), int(config.num_attention_heads)
        active = int(getattr(config, "num_experts_per_tok", None) or 1)
        expert = getattr(config, "moe_intermediate_size", None) if active > 1 else None
        kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
        shape = cls(
            kind=str(config.model_type),
            hidden=hidden,
            intermediate=int(expert or getattr(config, "intermediate_size", None) or 4 * hidden) * active,
            layers=int(config.num_hidden_layers),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=int(getattr(config, "head_dim", None) or hidden // heads),
            vocab=int(config.vocab_size),
            tied=bool(getattr(config, "tie_word_embeddings", False)),
            max_length=int(getattr(config, "max_position_embeddings", None) or 1 << 30),
            parameters=0,
            linears=(),
            masked=_is_masked(config),
            head_norms=config.model_type in ("qwen3", "qwen3_moe", "gemma3_text", "gemma3", "olmo2"),
        )
        if tensors:
            experts = int(getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or 1)
            return shape._measured(tensors, active / experts if experts > 1 else 1.0)
        return shape._assumed()

    def _measured(self, tensors: dict[str, tuple[int, ...]], share: float) -> ModelShape:
        """Return the shape with the matrices and the size of the stored weights."""
        linears = []
        for name, dims in tensors.items():
            module = name.removesuffix(".weight")
            if "layers." not in name or len(dims) < 2 or "norm" in module.split(".")[-1]:
                continue
            stacked = math.prod(dims[:-2])
            linears.append(Linear(module, dims[-2] * stacked, dims[-1], share if "experts" in name else 1.0))
        untied = any("lm_head" in n for n in tensors)
        stored = sum(math.prod(d) for d in tensors.values())
        return self._with(stored, tuple(linears), tied=not untied)

    def _assumed(self) -> ModelShape:
        """Return the shape with the matrices of a Llama-like layer, used if there are no stored weights to count."""
        h, q, k, i = self.hidden, self.query_width, self.key_width, self.intermediate
        layer = {
            "q_proj": (q, h),
            "k_proj": (k, h),
            "v_proj": (k, h),
            "o_proj": (h, q),
            "gate_proj": (i, h),
            "up_proj": (i, h),
            "down_proj": (h, i),
        }
        linears = tuple(Linear(f"layers.{n}.{m}", a, b) for n in range(self.layers) for m, (a, b) in layer.items())
        norms = (2 * h + (2 * self.head_dim if self.head_norms else 0)) * self.layers + h
        total = sum(m.size for m in linears) + norms + self.head * (1 if self.tied else 2)
        return self._with(total, linears, tied=self.tied)

    def _with(self, parameters: int, linears: tuple[Linear, ...], tied: bool) -> ModelShape:
        import dataclasses

        return dataclasses.replace(self, parameters=parameters, linears=linears, tied=tied)


def _is_masked(config: Any) -> bool:
    """Return whether attention is more than a softmax over all earlier keys: windows, soft caps, sinks, or values of
    another width."""
    layers = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    sliding = "sliding_attention" in layers or (not layers and bool(window))
    values = getattr(config, "v_head_dim", None)
    return (
        sliding
        or bool(getattr(config, "attn_logit_softcapping", None))
        or config.model_type == "gpt_oss"
        or (values is not None and values != getattr(config, "head_dim", None))
    )


def base_folder(folder: Path) -> Path:
    """Return the folder of the full weights: the folder itself, or the base model's folder for an adapter. Raises
    ModelError.

    An adapter names its base model, and other libraries would download it; so this check comes first.
    """
    adapter = folder / ADAPTER_CONFIG
    if not adapter.is_file() or (folder / "config.json").is_file():
        return folder
    try:
        said = json.loads(adapter.read_text(encoding="utf-8"))
        base, revision = said["base_model_name_or_path"], said.get("revision")
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{adapter} does not name its base model: {error}") from None
    return resolve_model(str(base), revision)


def safetensors_header(path: Path) -> dict[str, Any]:
    """Return name → dtype, shape and position of each tensor in a safetensors file. Raises ModelError if the file is
    damaged."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return {n: t for n, t in header.items() if n != "__metadata__" and len(t["shape"]) >= 0 and t["data_offsets"]}
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise ModelError(
            f"{path} is not a safetensors file: {error}", hint="download or copy the model folder again"
        ) from None


def _tensors(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the stored weights by name, from the headers of the safetensors files; empty if there are no
    files."""
    out: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        out |= {n: tuple(t["shape"]) for n, t in safetensors_header(path).items()}
    return out
