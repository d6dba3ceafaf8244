"""Train the toolworld student from scratch: tokenizer, corpus, model. About twenty minutes on one core.

    python examples/toolworld/build_student.py tokenizer corpus train      # writes student/
    python examples/toolworld/make_traces.py                               # its traces
    python examples/toolworld/make_card.py                                 # its card
    python examples/toolworld/build_student.py corpus train --thoughts --out FOLDER    # a student that reasons, two minutes
    python examples/toolworld/build_student.py corpus train --larger --out FOLDER      # a larger one without the habits: a teacher

The student that reasons says a line before each call; it starts from the shipped one, whose tokenizer it has.

Each stage reads what the one before it wrote, so that one can be repeated alone. The model is a Qwen3 architecture of
0.9 M parameters; its training corpus is what `demonstrator.py` plays. Everything is seeded.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from demonstrator import CORPUS_MIX, RATES, Demonstrator, draw_task  # noqa: E402

from hintdistill.core.types import Message  # noqa: E402

STUDENT = HERE / "student"
CORPUS = "corpus.npz"
SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>", "<tools>", "</tools>", "<tool_call>", "</tool_call>")
EPISODES, THINKING_EPISODES = 40_000, 1_600
VOCAB = 1024
MAX_POSITIONS = 65_536
SEED = 11


def openai(message: Message) -> dict[str, object]:
    """The message as the chat template wants it."""
    calls = [
        {"type": "function", "function": {"name": c.name, "arguments": c.arguments_raw}} for c in message.tool_calls
    ]
    return {"role": message.role, "content": message.content or ""} | ({"tool_calls": calls} if calls else {})


def build_tokenizer() -> None:
    """Byte-level BPE: letter runs merge; spaces, digits and punctuation stay tokens of their own."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rng = random.Random(SEED)
    texts = []
    for _ in range(3000):
        episode = Demonstrator(draw_task(rng), rng).play()
        texts += [m.content or "".join(f"{c.name} {c.arguments_raw}" for c in m.tool_calls) for m in episode.messages]
        texts += [json.dumps(t) for t in episode.task.tools] + ["system user assistant tool", "name arguments"]
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"[A-Za-z]+|[^A-Za-z]"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = (HERE / "chat_template.jinja").read_text(encoding="utf-8").rstrip("\n")
    fast.save_pretrained(STUDENT)
    print(f"tokenizer: {len(fast)} tokens")


def build_corpus(
    folder: Path = HERE, episodes: int = EPISODES, thoughts: bool = False, rates: dict[str, float] | None = None
) -> None:
    """Play the episodes and store token ids, lengths and the mask of assistant tokens.

    Args:
        folder: where `corpus.npz` goes.
        thoughts: with a line of reasoning before each call.
        rates: how often each habit errs; None: the world's own.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(STUDENT)
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    header = tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    rng = random.Random(SEED + 1)
    ids, mask, lengths = [], [], []
    for _ in range(episodes):
        episode = Demonstrator(draw_task(rng, mix=CORPUS_MIX), rng, rates or RATES, thoughts=thoughts).play()
        text = tokenizer.apply_chat_template(
            [openai(m) for m in episode.messages], tools=list(episode.task.tools), tokenize=False
        )
        row = tokenizer(text, add_special_tokens=False)["input_ids"]
        flags, inside, i = [0] * len(row), False, 0
        while i < len(row):
            if row[i] == start:
                inside = row[i : i + len(header)] == header
                i += len(header) if inside else 1
                continue
            flags[i] = int(inside)
            inside = inside and row[i] != end
            i += 1
        ids += row
        mask += flags
        lengths.append(len(row))
    np.savez_compressed(
        folder / CORPUS, ids=np.array(ids, np.int16), mask=np.array(mask, np.int8), lengths=np.array(lengths, np.int32)
    )
    print(f"corpus: {episodes} episodes, {len(ids):,} tokens, {sum(mask):,} by the assistant, longest {max(lengths)}")


def new_model(vocab: int, pad: int, eos: int, larger: bool = False) -> torch.nn.Module:
    """An untrained student; `larger`: about three times its parameters, for a teacher."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    torch.manual_seed(SEED)
    config = Qwen3Config(
        vocab_size=vocab,
        hidden_size=192 if larger else 128,
        num_hidden_layers=6 if larger else 4,
        num_attention_heads=6 if larger else 4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=576 if larger else 384,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        pad_token_id=pad,
        eos_token_id=eos,
        bos_token_id=None,
    )
    return AutoModelForCausalLM.from_config(config)


class Muon(torch.optim.Optimizer):
    """Muon with the step size matched to AdamW's (Jordan et al. 2024; Liu et al. 2025, arXiv 2502.16982, eq. 4).

    `torch.optim.Muon` orthogonalises in bfloat16, which is six times slower than float32 on a CPU without bfloat16
    arithmetic; here matrices of one shape are orthogonalised together, in float32.
    """

    def __init__(self, params: list[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for p in group["params"]:
                by_shape.setdefault(p.shape, []).append(p)
            for params in by_shape.values():
                updates = []
                for p in params:
                    buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    buffer.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(torch.lerp(p.grad, buffer, group["momentum"]))
                for p, u in zip(params, orthogonalise(torch.stack(updates)), strict=True):
                    p.add_(u, alpha=-group["lr"] * 0.2 * math.sqrt(max(p.shape)))


def orthogonalise(g: torch.Tensor) -> torch.Tensor:
    """Newton-Schulz iteration towards the nearest semi-orthogonal matrices; `g` is [N, rows, columns]."""
    tall = g.shape[1] > g.shape[2]
    x = g.mT if tall else g
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return x.mT if tall else x


class Updates:
    """Muon for the matrices, AdamW for embeddings and norms; warm-up, then a cosine to 5 %; gradients clipped to norm 1."""

    def __init__(self, model: torch.nn.Module, lr: float, steps: int, warmup: int) -> None:
        self.model, self.steps, self.warmup, self.done = model, steps, warmup, 0
        named = list(model.named_parameters())
        inner = {n for n, p in named if p.ndim == 2 and "embed" not in n and "lm_head" not in n}
        self.optimizers = [
            Muon([p for n, p in named if n in inner], lr=lr),
            torch.optim.AdamW(
                [p for n, p in named if n not in inner], lr=lr * 1.5, betas=(0.9, 0.98), weight_decay=0.0
            ),
        ]
        self.base = [[g["lr"] for g in o.param_groups] for o in self.optimizers]

    def step(self) -> None:
        """One update from the gradients that are there; clears them."""
        cosine = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * self.done / self.steps))
        scale = min(1.0, (self.done + 1) / self.warmup) * cosine
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, rates in zip(self.optimizers, self.base, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.done += 1


def batches(lengths: np.ndarray, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Shuffled batches of episodes of similar length."""
    order = rng.permutation(len(lengths))
    chunks = [order[i : i + size * 32] for i in range(0, len(order), size * 32)]
    groups = []
    for chunk in chunks:
        chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
        groups += [chunk[i : i + size] for i in range(0, len(chunk), size)]
    return [groups[i] for i in rng.permutation(len(groups))]


def train(minutes: float | None, batch: int, lr: float, folder: Path = HERE, kind: str = "student") -> None:
    """One epoch: Muon for the matrices, AdamW for embeddings and norms, cosine schedule.

    Args:
        minutes: stop after this many.
        folder: where `corpus.npz` is, and `student/` goes.
        kind: `thoughts`: go on from the shipped student, for one that reasons; `larger`: a larger one from nothing.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(STUDENT)
    data = np.load(folder / CORPUS)
    ids, mask, lengths = data["ids"].astype(np.int64), data["mask"], data["lengths"]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    if kind == "thoughts":
        model = AutoModelForCausalLM.from_pretrained(STUDENT, dtype=torch.float32)
    else:
        model = new_model(len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id, kind == "larger")
    print(f"student: {sum(p.numel() for p in model.parameters()):,} parameters")
    plan = batches(lengths, batch, np.random.default_rng(SEED))
    updates = Updates(model, lr, len(plan), warmup=50)
    began, seen, running = time.time(), 0, 0.0
    for step, rows in enumerate(plan):
        width = int(lengths[rows].max())
        x = np.full((len(rows), width), tokenizer.pad_token_id, np.int64)
        w = np.zeros((len(rows), width), np.float32)
        for i, r in enumerate(rows):
            n = lengths[r]
            x[i, :n] = ids[offsets[r] : offsets[r] + n]
            w[i, :n] = np.where(mask[offsets[r] : offsets[r] + n] == 1, 1.0, 0.1)
        x_t, w_t = torch.from_numpy(x), torch.from_numpy(w)[:, 1:]
        logits = model(input_ids=x_t[:, :-1]).logits
        nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), x_t[:, 1:].flatten(), reduction="none").view_as(
            w_t
        )
        loss = (nll * w_t).sum() / w_t.sum()
        loss.backward()
        updates.step()
        seen += int(lengths[rows].sum())
        with torch.no_grad():
            assistant = w_t == 1.0
            running = 0.98 * running + 0.02 * float(nll[assistant].mean()) if step else float(nll[assistant].mean())
        if step % 100 == 0:
            print(
                f"step {step}/{len(plan)} assistant loss {running:.4f} {seen / (time.time() - began):,.0f} tokens/s",
                flush=True,
            )
        if minutes and time.time() - began > 60 * minutes:
            break
    model.to(torch.bfloat16).save_pretrained(folder / "student")
    if kind != "student":
        tokenizer.save_pretrained(folder / "student")
    print(f"trained on {seen:,} tokens in {(time.time() - began) / 60:.1f} minutes, assistant loss {running:.4f}")


STAGES = ("tokenizer", "corpus", "train")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=STAGES)
    parser.add_argument("--minutes", type=float, help="stop training after this many minutes")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument(
        "--thoughts", action="store_true", help="a student that says a line of reasoning before each call"
    )
    parser.add_argument("--larger", action="store_true", help="a larger student without the habits, to be a teacher")
    parser.add_argument("--episodes", type=int, help="of the corpus")
    parser.add_argument("--out", type=Path, help="with --thoughts or --larger: the folder of its corpus and student/")
    args = parser.parse_args()
    if (args.thoughts or args.larger) != (args.out is not None) or (args.thoughts and args.larger):
        parser.error("--out goes with --thoughts or --larger: the shipped student is not written over")
    kind = "thoughts" if args.thoughts else "larger" if args.larger else "student"
    folder = args.out or HERE
    folder.mkdir(parents=True, exist_ok=True)
    for stage in args.stages:
        if stage == "tokenizer":
            if kind != "student":
                parser.error("a student of another kind has the shipped student's tokenizer")
            build_tokenizer()
        elif stage == "corpus":
            episodes = args.episodes or (THINKING_EPISODES if args.thoughts else EPISODES)
            build_corpus(folder, episodes, args.thoughts, dict.fromkeys(RATES, 0.0) if args.larger else None)
        else:
            train(args.minutes, args.batch, args.lr, folder, kind)


if __name__ == "__main__":
    main()
