"""Peak memory of training, from a model's shape alone: what is alive at the worst moment. Torch-free.

Counted per layer and token, in floats, for a Llama-like layer that trains all its weights (H hidden, A heads × width, K key
heads × width, I feed-forward): the two norms keep input, normalised input and output (6 H); attention keeps queries, keys and
values as it reads them and its output as it leaves and as it is laid out (3 A + 2 K), per-head norms keep queries and keys
before and after (2 A + 2 K); the feed-forward block keeps gate, its activation, the other branch and their product (4 I).
With gradient checkpointing a layer keeps its input, and the layer at work all of the above.

What an allocator keeps of freed blocks is not counted: `hintdistill plan` measures it if the device is present.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hintdistill.core.machine import Peak
from hintdistill.core.model_shape import ModelShape
from hintdistill.engines.token_counts import FLOAT, PROGRAM, cache_bytes, forward_bytes

CHUNK_POSITIONS = 96
"""Positions at once in the loss; `objectives.chunked.POSITIONS`."""
WATCH_POSITIONS = 256
"""Positions whose whole distributions exist at once when training is watched; `training.watch.POSITIONS`."""
STORED = 48
"""Bytes of a stored entry: an id and two log-probabilities (16), as the file's table, as a target, and as tensors of a row."""


ENTRY_BYTES = 16
"""Bytes of one kept entry of a target: an id and two log-probabilities."""


@dataclass(frozen=True)
class TeacherUse:
    """What the recipe's teacher needs in a training step."""

    copies: int = 0
    """Frozen copies of the whole model: an initial or external teacher's weights."""
    follower: bool = False
    """Whether a following teacher keeps a copy of what is trained."""
    views: int = 0
    """Views made in the step, not counting the student's."""
    rides: bool = False
    """Whether such a view reads the student's keys and values."""
    prefills: bool = False
    """Whether one reads each trace again."""
    dense: bool = False
    """Whether a term needs whole distributions of all scored positions."""
    branch_tokens: int = 16_384


@dataclass(frozen=True)
class Beside:
    """What a run keeps in memory beside the training itself."""

    other_weights: int = 0
    """Bytes of models that earlier stages left loaded."""
    stored: int = 0
    """Kept entries of all targets of the run."""
    watched: int = 0
    """Tokens that are read at once, without gradient, to watch the training."""


@dataclass(frozen=True)
class TrainSetup:
    """How a model is trained, as far as memory goes."""

    trained: int
    """Entries that get a gradient and two moments."""
    weight_bytes: int = FLOAT
    activation_bytes: int = FLOAT
    on_cpu: bool = True
    rank: int = 0
    """Rank of the low-rank adapters; 0 trains all weights."""
    checkpointing: bool = False
    accumulates: bool = False
    """Whether gradients of earlier micro-batches are there while one is read."""
    kinds: int = 2
    """Kinds of slots with a term: hints, anchors."""
    teacher: TeacherUse = field(default_factory=TeacherUse)
    beside: Beside = field(default_factory=Beside)


@dataclass(frozen=True)
class Load:
    """A micro-batch, or anything else that is read at once, tokens."""

    tokens: int
    scored: int
    branch_tokens: int = 0


def layer_floats(shape: ModelShape, rank: int = 0) -> list[int]:
    """Widths of the tensors that one layer keeps per token for its backward pass; see the module's head.

    With adapters (`rank`) the norms' weights are frozen, so that what they multiply is not kept, and each adapted matrix
    keeps its low-rank inside.
    """
    h, a, k, i = shape.hidden, shape.query_width, shape.key_width, shape.intermediate
    kept = [h] * (4 if rank else 6) + [a] * 3 + [k] * 2 + [i] * 4
    if shape.head_norms:
        kept += [a, k] if rank else [a, k] * 2
        kept += [shape.heads + shape.kv_heads]
    return [*kept, shape.heads, 2, *[rank] * (7 if rank else 0)]


def saved_bytes(shape: ModelShape, setup: TrainSetup, load: Load) -> int:
    """Return what the student's pass keeps for the backward pass; with checkpointing, the layer at work included."""
    n, b, h = load.tokens, setup.activation_bytes, shape.hidden
    layer = n * sum(layer_floats(shape, setup.rank)) * b + _cast_bytes(shape, setup, n)
    ends = (n * (2 * h + 2 * shape.head_dim + 1) + load.scored * h) * b
    if setup.checkpointing:
        return shape.layers * n * h * b + layer + ends
    # the last layer's feed-forward block sees scored positions only
    unseen = max(0, n - load.scored) * (4 * shape.intermediate + h) * b
    return shape.layers * layer - unseen + ends


def _cast_bytes(shape: ModelShape, setup: TrainSetup, tokens: int) -> int:
    """In half precision: the norms' float32 copies, and each adapter's float32 copy of what its matrix reads."""
    if setup.activation_bytes == FLOAT:
        return 0
    adapted = 5 * shape.hidden + shape.query_width + shape.intermediate if setup.rank else 0
    return tokens * FLOAT * (4 * shape.hidden + adapted)


def loss_bytes(shape: ModelShape, setup: TrainSetup, load: Load) -> int:
    """Logits, log-probabilities and the head's gradient, at the time the loss is taken."""
    if setup.teacher.dense:
        # logits and log-probabilities of the student, and two more while they are differentiated; one per further view
        return (4 + setup.teacher.views) * load.scored * shape.vocab * FLOAT
    chunk = min(load.scored, CHUNK_POSITIONS) * shape.vocab * FLOAT * (1 + setup.teacher.views)
    return chunk + setup.kinds * _head_gradient(shape, setup)


def _head_gradient(shape: ModelShape, setup: TrainSetup) -> int:
    return 0 if setup.rank else shape.head * FLOAT


def train_peak(shape: ModelShape, setup: TrainSetup, load: Load) -> Peak:
    """Peak of training on micro-batches like `load`: the worst of four moments, beside weights and moments."""
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
    """Return what views made in the step hold before the loss: keys and values, and one call's tensors."""
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
    """Add what the caches of stored targets hold at most: a short measured run is over before they are full.

    Args:
        entries: kept entries of all targets.
        rows: whether training rows are cached too.
    """
    # the data set and the store are imported here, because counting by shape alone needs no torch
    from hintdistill.rescoring.stored import CACHE_BYTES as COLUMNS
    from hintdistill.training.rows import CACHE_BYTES as ROWS

    limits = (COLUMNS, ROWS) if rows else (COLUMNS,)
    return Peak({**peak.parts, "kept targets": sum(min(ENTRY_BYTES * entries, limit) for limit in limits)})
