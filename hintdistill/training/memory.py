"""Peak memory of training, computed from a model's shape: the tensors alive at the worst moment. This module does not
import torch.

The count is per layer and token, in floats, for a Llama-like layer that trains all its weights (H hidden, A heads ×
width, K key heads × width, I feed-forward). The two norms keep input, normalised input and output (6 H). Attention
keeps queries, keys and values, and its output before and after the change of layout (3 A + 2 K). Per-head norms keep
queries and keys before and after (2 A + 2 K). The feed-forward block keeps the gate, its activation, the other branch
and their product (4 I). With gradient checkpointing each layer keeps only its input, and the layer being computed keeps
all of the above.

Freed blocks that an allocator retains are not counted; `hintdistill plan` measures them if the device is present.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hintdistill.core.machine import Peak
from hintdistill.core.model_shape import ModelShape
from hintdistill.engines.token_counts import FLOAT, PROGRAM, cache_bytes, forward_bytes

CHUNK_POSITIONS = 96
"""Number of positions processed together in the loss; `objectives.chunked.POSITIONS`."""
WATCH_POSITIONS = 256
"""Number of positions whose whole distributions exist together when training is watched; `training.watch.POSITIONS`."""
STORED = 48
"""Bytes of a stored entry, an id and two log-probabilities (16), in each of its forms: in the file's table, in a
target, and in a row's tensors."""


ENTRY_BYTES = 16
"""Bytes of one kept entry of a target: an id and two log-probabilities."""


@dataclass(frozen=True)
class TeacherUse:
    """Describe the memory that the recipe's teacher needs in a training step."""

    copies: int = 0
    """Frozen copies of the whole model: an initial or external teacher's weights."""
    follower: bool = False
    """Whether a following teacher keeps a copy of the trained parameters."""
    views: int = 0
    """Number of views made in the step, without the student's."""
    rides: bool = False
    """Whether such a view reuses the student's keys and values."""
    prefills: bool = False
    """Whether one of them reads each trace again."""
    dense: bool = False
    """Whether a term needs whole distributions of all scored positions."""
    branch_tokens: int = 16_384


@dataclass(frozen=True)
class Beside:
    """Describe other memory that a run uses during training."""

    other_weights: int = 0
    """Bytes of models that earlier stages have left loaded."""
    stored: int = 0
    """Number of kept entries of all targets of the run."""
    watched: int = 0
    """Number of tokens read together, without gradient, to watch the training."""


@dataclass(frozen=True)
class TrainSetup:
    """Describe the properties of a model's training that affect memory."""

    trained: int
    """Number of weights with a gradient and two moments."""
    weight_bytes: int = FLOAT
    activation_bytes: int = FLOAT
    on_cpu: bool = True
    rank: int = 0
    """Rank of the low-rank adapters; 0 trains all weights."""
    checkpointing: bool = False
    accumulates: bool = False
    """Whether gradients of earlier micro-batches exist while one is processed."""
    kinds: int = 2
    """Number of kinds of slots with a term: hints, anchors."""
    teacher: TeacherUse = field(default_factory=TeacherUse)
    beside: Beside = field(default_factory=Beside)


@dataclass(frozen=True)
class Load:
    """Count the tokens of a micro-batch, or of anything else that is read together."""

    tokens: int
    scored: int
    branch_tokens: int = 0


def layer_floats(shape: ModelShape, rank: int = 0) -> list[int]:
    """Return the total width of the tensors that one layer keeps per token for its backward pass; see the module's
    docstring.

    With adapters (`rank`) the norms' weights are frozen, so their inputs are not kept, and each adapted matrix keeps
    its low-rank activation.
    """
    h, a, k, i = shape.hidden, shape.query_width, shape.key_width, shape.intermediate
    kept = [h] * (4 if rank else 6) + [a] * 3 + [k] * 2 + [i] * 4
    if shape.head_norms:
        kept += [a, k] if rank else [a, k] * 2
        kept += [shape.heads + shape.kv_heads]
    return [*kept, shape.heads, 2, *[rank] * (7 if rank else 0)]


def saved_bytes(shape: ModelShape, setup: TrainSetup, load: Load) -> int:
    """Return the bytes that the student's pass keeps for the backward pass; with checkpointing, including the layer
    being computed."""
    n, b, h = load.tokens, setup.activation_bytes, shape.hidden
    layer = n * sum(layer_floats(shape, setup.rank)) * b + _cast_bytes(shape, setup, n)
    ends = (n * (2 * h + 2 * shape.head_dim + 1) + load.scored * h) * b
    if setup.checkpointing:
        return shape.layers * n * h * b + layer + ends
    # the last layer's feed-forward block sees scored positions only
    unseen = max(0, n - load.scored) * (4 * shape.intermediate + h) * b
    return shape.layers * layer - unseen + ends


def _cast_bytes(shape: ModelShape, setup: TrainSetup, tokens: int) -> int:
    """Return the bytes of float32 copies in half precision: those of the norms, and each adapter's copy of its
    input."""
    if setup.activation_bytes == FLOAT:
        return 0
    adapted = 5 * shape.hidden + shape.query_width + shape.intermediate if setup.rank else 0
    return tokens * FLOAT * (4 * shape.hidden + adapted)


def loss_bytes(shape: ModelShape, setup: TrainSetup, load: Load) -> int:
    """Return the bytes of logits, log-probabilities and the head's gradient while the loss is computed."""
    if setup.teacher.dense:
        # logits and log-probabilities of the student, and two more while they are differentiated; one per further view
        return (4 + setup.teacher.views) * load.scored * shape.vocab * FLOAT
    chunk = min(load.scored, CHUNK_POSITIONS) * shape.vocab * FLOAT * (1 + setup.teacher.views)
    return chunk + setup.kinds * _head_gradient(shape, setup)


def _head_gradient(shape: ModelShape, setup: TrainSetup) -> int:
    return 0 if setup.rank else shape.head * FLOAT


def train_peak(shape: ModelShape, setup: TrainSetup, load: Load) -> Peak:
    """Return the peak of training on micro-batches like `load`: the worst of four moments, plus weights and optimiser
    moments."""
    gradients = setup.trained * FLOAT
    earlier = gradients if setup.accumulates else 0
    n, b = load.tokens, setup.activation_bytes
    saved = saved_bytes(shape, setup, load)
    teacher = teacher_bytes(shape, setup, load)
    temporary = n * (shape.intermediate + shape.hidden) * b + shape.intermediate * shape.hidden * FLOAT
    head = _head_gradient(shape, setup)
    layer = n * sum(layer_floats(shape, setup.rank)) * b
    moments = {
        # the last layer's backward pass, everything still there; the head's gradients of each kind are given away after it
        "backward": {
            "gradients": earlier,
            "activations": saved + temporary,
            "loss": loss_bytes(shape, setup, load) if setup.teacher.dense else setup.kinds * head,
        },
        "loss": {"gradients": earlier, "activations": saved, "loss": max(loss_bytes(shape, setup, load), teacher)},
        # the first one's, and the input embedding's gradient on top
        "end": {
            "gradients": gradients,
            "activations": (layer if setup.checkpointing else layer // 2) + temporary,
            "loss": (setup.kinds - 1 + (0 if shape.tied else 1)) * head,
        },
        "optimizer": {"gradients": gradients, "activations": 0, "loss": 0},
        "watch": {
            "gradients": 0,
            "activations": forward_bytes(shape, min(setup.beside.watched, setup.teacher.branch_tokens), b),
            "loss": 6 * min(setup.beside.watched, WATCH_POSITIONS) * shape.vocab * FLOAT,
        },
    }
    worst = max(moments.values(), key=lambda m: sum(m.values()))
    parts = {
        "program": PROGRAM if setup.on_cpu else 0,
        "weights": shape.parameters * setup.weight_bytes,
        "optimizer moments": 2 * setup.trained * FLOAT,
        "frozen copies": setup.teacher.copies * shape.parameters * setup.weight_bytes
        + (gradients if setup.teacher.follower else 0),
        "other models": setup.beside.other_weights,
        "stored targets": STORED * setup.beside.stored,
        **worst,
    }
    return Peak({k: int(v) for k, v in parts.items() if v})


def teacher_bytes(shape: ModelShape, setup: TrainSetup, load: Load) -> int:
    """Return the bytes that views made in the step hold before the loss: keys and values, and the tensors of one
    call."""
    out = 0
    if setup.teacher.rides:
        out = cache_bytes(shape, load.tokens, setup.activation_bytes)
        out += forward_bytes(shape, min(load.branch_tokens, setup.teacher.branch_tokens), setup.activation_bytes)
    if setup.teacher.prefills:
        read = load.tokens + load.branch_tokens
        own = cache_bytes(shape, load.tokens, setup.activation_bytes)
        out = max(out, own + forward_bytes(shape, min(read, setup.teacher.branch_tokens), setup.activation_bytes))
    return out + setup.teacher.views * load.scored * shape.hidden * setup.activation_bytes


def with_caches(peak: Peak, entries: int, *, rows: bool = False) -> Peak:
    """Add the largest size of the caches of stored targets, because a short measured run ends before they are full.

    Args:
        entries: number of kept entries of all targets.
        rows: whether training rows are also cached.
    """
    # the data set and the store are imported here, because counting by shape alone needs no torch
    from hintdistill.rescoring.stored import CACHE_BYTES as COLUMNS
    from hintdistill.training.rows import CACHE_BYTES as ROWS

    limits = (COLUMNS, ROWS) if rows else (COLUMNS,)
    return Peak({**peak.parts, "kept targets": sum(min(ENTRY_BYTES * entries, limit) for limit in limits)})
