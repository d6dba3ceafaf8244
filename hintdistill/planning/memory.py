"""Peak memory of a stage, from a model's shape alone: what is alive at the worst moment. Torch-free.

Counted per layer and token, in floats, for a Llama-like layer that trains all its weights (H hidden, A heads × width, K key
heads × width, I feed-forward): the two norms keep input, normalised input and output (6 H); attention keeps queries, keys and
values as it reads them and its output as it leaves and as it is laid out (3 A + 2 K), per-head norms keep queries and keys
before and after (2 A + 2 K); the feed-forward block keeps gate, its activation, the other branch and their product (4 I).
With gradient checkpointing a layer keeps its input, and the layer at work all of the above.

On a CPU, resident memory is more than what is alive: glibc keeps freed blocks below 32 MB in its heap, and what is allocated
between them holds them there. `LOOSE`, `PINNED`, `HEAP`, `KERNELS` and `WRITER` are measured (`benchmarks/plan.py`). Larger
blocks go back at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hintdistill.engines.prefix_tree import Piece, PrefixTree
from hintdistill.planning.shape import ModelShape

FLOAT = 4
PROGRAM = 400_000_000
"""Resident bytes of a process that has imported torch and transformers, before it loads a model. Measured, CPU build."""
MAPPED = 32 << 20
"""Blocks from this size on are mapped by glibc and go back when they are freed."""
LOOSE = {False: 1.4, True: 2.1}
"""Layers' worth of freed activations that stay in the heap; by whether checkpointing is on."""
PINNED = 0.7
"""Share of the gradients whose places cannot be used again by activations."""
CHUNK_POSITIONS = 96
"""Positions at once in the loss; `objectives.chunked.POSITIONS`."""
WATCH_POSITIONS = 256
"""Positions whose whole distributions exist at once when training is watched; `training.watch.POSITIONS`."""
LOGIT_CHUNK = 1 << 24
"""Entries of a chunk of logits in an engine; `engines.forward.CHUNK_ELEMENTS`."""
MASK_ROWS = 256
"""Queries per masked block; `engines.shared_prefix.BLOCK`."""
ENTRY = 100
"""Bytes that a kept entry takes while it is written or read: Python objects of its id and two log-probabilities."""
HEAP = 0.35
"""What the heap holds of freed blocks while an engine scores, as a share of keys, values, masks and activations in blocks below
`MAPPED`. Freed blocks are handed back after each forward call, so it is what one call leaves between its layers."""
STORED = 50
"""Bytes that a stored entry takes in all where targets are read: an id and two log-probabilities, and what reading leaves behind."""
ITEM = 160
"""Bytes per token of an injection or a rendered step while it waits as Python objects."""
STAGE = 25_000_000
"""What loading a model and a stage's own machinery need beside everything that is counted."""


KERNELS = 25_000_000
"""Buffers that torch's CPU kernels take at the first forward pass and keep."""
WRITER = 40_000_000
"""What reading and writing parquet takes once a part has been written."""


@dataclass(frozen=True)
class Peak:
    """What is there at the worst moment of a stage, bytes."""

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.parts.values())

    @property
    def above_model(self) -> int:
        """What the stage itself adds to a process that has loaded its model."""
        return self.total - self.parts.get("program", 0) - self.parts.get("weights", 0)


@dataclass(frozen=True)
class Setup:
    """How a model is trained, as far as memory goes."""

    trained: int
    """Entries that get a gradient and two moments."""
    weight_bytes: int = FLOAT
    activation_bytes: int = FLOAT
    on_cpu: bool = True
    rank: int = 0
    """Of low-rank adapters; 0 trains all weights."""
    checkpointing: bool = False
    accumulates: bool = False
    """Whether gradients of earlier micro-batches are there while one is read."""
    copies: int = 0
    """Frozen copies of the whole model: an initial or external teacher of its own."""
    follower: bool = False
    """A following teacher's copy of what is trained."""
    kinds: int = 2
    """Kinds of slots with a term: hints, anchors."""
    views: int = 0
    """Views made in the step, the student aside."""
    rides: bool = False
    """Whether such a view reads the student's keys and values."""
    prefills: bool = False
    """Whether one reads each trace anew."""
    dense: bool = False
    """Whether a term needs whole distributions of all scored positions."""
    branch_tokens: int = 16_384
    other_weights: int = 0
    """Bytes of models that earlier stages left loaded."""
    stored: int = 0
    """Kept entries of all targets of the run."""
    watched: int = 0
    """Tokens that are read at once, without gradient, to watch the training."""

    @property
    def trains_head(self) -> bool:
        """Whether the output embedding gets a gradient."""
        return self.rank == 0


@dataclass(frozen=True)
class Load:
    """A micro-batch, or anything else that is read at once."""

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


def saved_bytes(shape: ModelShape, setup: Setup, load: Load) -> int:
    """What the student's pass keeps for the backward pass; with checkpointing, the layer at work included."""
    n, b, h = load.tokens, setup.activation_bytes, shape.hidden
    layer = n * sum(layer_floats(shape, setup.rank)) * b + _cast_bytes(shape, setup, n)
    ends = (n * (2 * h + 2 * shape.head_dim + 1) + load.scored * h) * b
    if setup.checkpointing:
        return shape.layers * n * h * b + layer + ends
    # the last layer's feed-forward block sees scored positions only
    unseen = max(0, n - load.scored) * (4 * shape.intermediate + h) * b
    return shape.layers * layer - unseen + ends


def _cast_bytes(shape: ModelShape, setup: Setup, tokens: int) -> int:
    """In half precision: the norms' float32 copies, and each adapter's float32 copy of what its matrix reads."""
    if setup.activation_bytes == FLOAT:
        return 0
    adapted = 5 * shape.hidden + shape.query_width + shape.intermediate if setup.rank else 0
    return tokens * FLOAT * (4 * shape.hidden + adapted)


def forward_bytes(shape: ModelShape, tokens: int, width: int) -> int:
    """What a pass without gradient holds at most beside keys and values: one layer's tensors, `width` bytes each entry."""
    h, a, k, i = shape.hidden, shape.query_width, shape.key_width, shape.intermediate
    return tokens * width * max(2 * h + 3 * i, 2 * h + 4 * a + 3 * k)


def _small(shape: ModelShape, tokens: int, width: int) -> int:
    """Of `forward_bytes`, what is in blocks that the heap keeps."""
    feed = [(2, shape.hidden), (3, shape.intermediate)]
    attention = [(2, shape.hidden), (4, shape.query_width), (3, shape.key_width)]
    worst = max(feed, attention, key=lambda some: sum(n * w for n, w in some))
    return sum(
        n * w * tokens * width
        for n, w in (attention if tokens * shape.intermediate * width >= MAPPED else worst)
        if tokens * w * width < MAPPED
    )


def cache_bytes(shape: ModelShape, tokens: int, width: int) -> int:
    """Keys and values of all layers."""
    return 2 * shape.key_width * shape.layers * tokens * width


def loss_bytes(shape: ModelShape, setup: Setup, load: Load) -> int:
    """Logits, log-probabilities and the head's gradient, at the time the loss is taken."""
    if setup.dense:
        # logits and log-probabilities of the student, and two more while they are differentiated; one per further view
        return (4 + setup.views) * load.scored * shape.vocab * FLOAT
    chunk = min(load.scored, CHUNK_POSITIONS) * shape.vocab * FLOAT * (1 + setup.views)
    return chunk + setup.kinds * _head_gradient(shape, setup)


def _head_gradient(shape: ModelShape, setup: Setup) -> int:
    return shape.head * FLOAT if setup.trains_head else 0


def train_peak(shape: ModelShape, setup: Setup, load: Load) -> Peak:
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
            "loss": loss_bytes(shape, setup, load) if setup.dense else setup.kinds * head,
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
            "activations": forward_bytes(shape, min(setup.watched, setup.branch_tokens), b),
            "loss": 6 * min(setup.watched, WATCH_POSITIONS) * shape.vocab * FLOAT,
        },
    }
    worst = max(moments.values(), key=lambda m: sum(m.values()))
    parts = {
        "program": PROGRAM if setup.on_cpu else 0,
        "weights": shape.parameters * setup.weight_bytes,
        "optimizer moments": 2 * setup.trained * FLOAT,
        "frozen copies": setup.copies * shape.parameters * setup.weight_bytes + (gradients if setup.follower else 0),
        "other models": setup.other_weights,
        "rows": STORED * setup.stored + STAGE,
        **worst,
        "allocator": _loose(shape, setup, load, gradients) if setup.on_cpu else 0,
    }
    return Peak({k: int(v) for k, v in parts.items() if v})


def _loose(shape: ModelShape, setup: Setup, load: Load, gradients: int) -> int:
    """Freed memory that the heap does not give back."""
    small = sum(w for w in layer_floats(shape, setup.rank) if load.tokens * w * setup.activation_bytes < MAPPED)
    heads = shape.head * FLOAT * (1 if shape.tied else 2) if setup.trains_head else 0
    inside = gradients - (heads if shape.head * FLOAT >= MAPPED else 0)
    return round(LOOSE[setup.checkpointing] * load.tokens * small * setup.activation_bytes + PINNED * inside)


def teacher_bytes(shape: ModelShape, setup: Setup, load: Load) -> int:
    """What views made in the step hold before the loss: keys and values, and one call's tensors."""
    out = 0
    if setup.rides:
        out = cache_bytes(shape, load.tokens, setup.activation_bytes)
        out += forward_bytes(shape, min(load.branch_tokens, setup.branch_tokens), setup.activation_bytes)
    if setup.prefills:
        read = load.tokens + load.branch_tokens
        own = cache_bytes(shape, load.tokens, setup.activation_bytes)
        out = max(out, own + forward_bytes(shape, min(read, setup.branch_tokens), setup.activation_bytes))
    return out + setup.views * load.scored * shape.hidden * setup.activation_bytes


def mask_bytes(shape: ModelShape, pieces: Sequence[Piece], wanted: Callable[[Piece], range], width: int) -> int:
    """Masks of one packed call: a block of queries times the keys it may see, kept until the call is done.

    `wanted`: the positions of a piece whose hidden states are asked for; the last layer masks those alone.
    """
    groups = max(1, shape.heads // shape.kv_heads)
    blocks: set[tuple[int, int]] = set()
    for piece in pieces:
        ranges = [wanted(piece)] if piece.start == 0 else [range(piece.start, piece.stop), wanted(piece)]
        for r in ranges:
            blocks |= {(at, min(at + MASK_ROWS, r.stop)) for at in range(r.start, r.stop, MASK_ROWS)}
    return sum(groups * (stop - start) * stop for start, stop in blocks) * width


def kept_tokens(tree: PrefixTree) -> int:
    """Tokens whose keys and values are kept, the room of trunks for what leaves them included."""
    return sum(
        tree.depths[i] if chain.trunk == i else len(chain.ids)
        for i, chain in enumerate(tree.chains)
        if i in tree.parents
    )


def scoring_peak(
    shape: ModelShape,
    *,
    kept: int,
    call: int,
    masks: int,
    together: int,
    weight_bytes: int,
    step: int,
    top_k: int,
    written: int = 0,
    waiting: int = 0,
    other_weights: int = 0,
    on_cpu: bool = True,
) -> Peak:
    """Peak of scoring: keys and values, one call's tensors, masks, a chunk of logits, and the part that is written.

    Args:
        kept: tokens whose keys and values are there at once.
        call: tokens of the largest forward call.
        masks: entries of its masks.
        together: scored positions whose hidden states are there at once.
        step: tokens of the longest step.
        written: kept entries of one parquet part.
        waiting: tokens of all injections and steps that are to be scored.
        other_weights: bytes of another model that is loaded.
    """
    width = weight_bytes
    reads = {
        "keys and values": cache_bytes(shape, kept, width),
        "activations": forward_bytes(shape, call, width),
        "masks": masks * width,
    }
    chunk, rows = min(step * shape.vocab, LOGIT_CHUNK), min(step, max(1, LOGIT_CHUNK // (2 * top_k * shape.hidden)))
    heads = {"logits": 3 * chunk * FLOAT + 2 * rows * 2 * top_k * shape.hidden * width, "targets": written * ENTRY}
    worst = reads if sum(reads.values()) > sum(heads.values()) else heads
    hidden = 3 * together * shape.hidden * width
    # keys and values and masks are many blocks, one layer's tensors are few
    inside = sum(worst.values())
    if worst is reads:
        inside -= reads["activations"] - _small(shape, call, width)
    parts = {
        "program": PROGRAM if on_cpu else 0,
        "weights": shape.parameters * weight_bytes,
        "other models": other_weights,
        **worst,
        "hidden states": hidden,
        "rows": waiting * ITEM + STAGE + (KERNELS + WRITER if on_cpu else WRITER),
        "allocator": HEAP * inside if on_cpu else 0,
    }
    return Peak({k: int(v) for k, v in parts.items() if v})
