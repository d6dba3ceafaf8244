"""The model card of a student: its data, recipe, controls, measured effect, and use. It contains no trace text.

It is made from the report document (`docs/report.md`), so that card and report cannot disagree: first at the end of
training with the values known then, and again with the report. Missing measurements are marked as not measured. Names
of local folders are left out, because a card may be published.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hintdistill.config import OUTPUT_KEYS, InjectSection, RescoreSection, Section, TrainSection
from hintdistill.core.extensions import HINT_SOURCES
from hintdistill.core.paths import PathMark, map_paths, recipe_paths
from hintdistill.core.storage import write_atomic
from hintdistill.recipes import Recipe
from hintdistill.recipes.changes import changes, rollouts
from hintdistill.recipes.describe import CONFIDENCE, settings
from hintdistill.training.card_controls import hint_levels, placebo_share
from hintdistill.training.card_method import lowers, pulled, was_read

if TYPE_CHECKING:
    from hintdistill.training.students import Arrived

NOT = "not measured"
LICENSE_KEYS = ("license", "license_name", "license_link")
LOCAL_KEYS = frozenset({"base_url", "allow_hosts", "api_key_env", "model", "recipe"})
"""Settings that name this machine or its network, or that the card mentions elsewhere."""


def write_card(student: Path, document: Mapping[str, Any], formats: Mapping[str, int], initial: Path) -> None:
    """Write README.md into the student's folder.

    Args:
        document: the report document; values missing from it are marked as not measured.
        formats: number of traces by format.
        initial: the folder of the initial model, whose own card may name a licence.
    """
    text = card_text(document, formats, adapter=(student / "adapter").is_dir(), license_of=front_matter(initial))
    write_atomic(student / "README.md", text)


def card_text(
    document: Mapping[str, Any], formats: Mapping[str, int], *, adapter: bool, license_of: Mapping[str, Any]
) -> str:
    """Return the whole card, front matter included; equal documents give equal cards."""
    train = TrainSection.model_validate(document["run"]["config"]["train"])
    facts = document["train"] or {}
    bases = [b for b in _bases(document) if b]
    head: dict[str, Any] = {"base_model": bases[0], "base_model_relation": "finetune"} if bases else {}
    head |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    head |= {k: license_of[k] for k in LICENSE_KEYS if isinstance(license_of.get(k), str)}
    # a method that was changed in what defines it is not tagged as that method
    named = [] if _changed(document, train) else [train.effective_recipe.name]
    head["tags"] = ["hintdistill", "self-distillation", *named]
    name = train.push.split("/")[-1] if train.push else "Corrected student"
    parts = [
        f"# {name}",
        _opening(document, bases, facts),
        "## Data\n\n" + _data(document, formats),
        "## Recipe\n\n" + _recipe(document, train, facts),
        "## Controls\n\n" + _controls(document),
        "## Measured effect\n\n" + _effect(document),
        "## Loading it\n\n" + _loading(train, facts, adapter, bases),
    ]
    return f"---\n{_yaml(head)}---\n\n" + "\n\n".join(parts) + "\n"


def adapter_card(base: str, arrived: Arrived | None) -> str:
    """Return README.md for the folder that contains only the adapter."""
    known = hub_name(base)
    head: dict[str, Any] = {"base_model": known, "base_model_relation": "adapter"} if known else {}
    head |= {"library_name": "peft", "tags": ["hintdistill", "lora"]}
    lines = ["The adapter that was trained. The parent folder contains the merged model and the model card."]
    if arrived is not None and arrived.handling == "merged":
        lines.append(
            "Its base model is `initial/`: the adapter that the student came as, merged into its own base model."
        )
    if arrived is not None and arrived.handling == "beside":
        lines.append("It is one of two: the student is the base model with this adapter and the one in `arrived/`.")
    return f"---\n{_yaml(head)}---\n\n" + "\n".join(lines) + "\n"


def _without_place(key: str, mark: PathMark, value: str) -> str:
    """Return the publishable form of a path: a model's name on the hub, the name of a shipped recipe, or else only that
    it is local."""
    if mark.kind == "recipe":
        return "a local file" if Path(value).is_absolute() else value
    return hub_name(value) or "a local folder"


def hub_name(name: str, folder: Path | None = None) -> str | None:
    """Return the hub's name of a model given by name or folder; None for a folder that did not come from the hub."""
    path = Path(name).expanduser()
    path = path if path.is_dir() or folder is None else folder
    if path.is_dir():
        cached = re.search(r"models--([\w.-]+?)--([\w.-]+)/snapshots/", f"{path.absolute()}/")
        return f"{cached[1]}/{cached[2]}" if cached else None
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith(".") else None


def front_matter(folder: Path) -> dict[str, Any]:
    """Return the YAML at the head of a model folder's own card; empty if there is none or it cannot be read."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
        found = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
        data = yaml.safe_load(found[1]) if found else {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return data if isinstance(data, dict) else {}


def _bases(document: Mapping[str, Any]) -> list[str | None]:
    """Return the hub models that the student started from; for a student that arrived as an adapter, that adapter and
    its base."""
    run, arrived = document["run"]["config"]["run"], (document["train"] or {}).get("arrived")
    first = run.get("initial") or run["model"]
    return [hub_name(first), hub_name(arrived["base"]) if arrived else None]


def _opening(document: Mapping[str, Any], bases: Sequence[str], facts: Mapping[str, Any]) -> str:
    origin = f"`{bases[0]}`" if bases else "A local model"
    text = (
        f"{origin} after hint distillation: errors in recorded traces were located, "
        f"{was_read(document, facts)}, and the model that reads no hint was trained on "
        f"{pulled(document, facts)}.{lowers(document)} {_held(facts)}"
    )
    if rewarded := facts.get("outcome_rows"):
        text += (
            f" It was also trained on the outcomes of its rollouts: a policy gradient on {rewarded} "
            "sampled steps, weighted according to the recipe's coupling."
        )
    if control := HINT_SOURCES.get(document["run"]["hint"]).control:
        source = document["run"]["hint"]
        text += f"\n\n**This student is a control:** it was trained on {control} (`inject.hint: {source}`)."
    if "round" in document:
        text += (
            f"\n\nIt is the result of round {document['round']} of an on-policy loop. Data, recipe and "
            "controls below are those of that round; success in the environment and off-target "
            "movement are measured against the policy that the loop began with."
        )
    arrived = facts.get("arrived")
    if arrived:
        kept = "merged into its base model" if arrived["handling"] == "merged" else "kept frozen beside the new one"
        text += f"\n\nIt arrived as an adapter, which was {kept}."
    return text


HELD_ROWS = {
    "anchor_rows": "clean steps of the same traces",
    "hold_rows": "steps of hold traces",
    "twin_rows": "erring steps in changed contexts in which they are right",
}
"""The counts in a summary of a training run other than hints, with their descriptions."""


def _held(facts: Mapping[str, Any]) -> str:
    """Return a sentence about the other rows that kept the student in place during training, or their absence."""
    if not facts:
        return "Nothing was trained."
    held = [f"{facts[key]} {words}" for key, words in HELD_ROWS.items() if facts.get(key)]
    if not held:
        return "No other step was held in place."
    return f"Held at the initial model's distribution: {', '.join(held)}. No other step was held."


def _data(document: Mapping[str, Any], formats: Mapping[str, int]) -> str:
    read, critique, inject, rescore, train = (
        document["funnel"][k] for k in ("read", "critique", "inject", "rescore", "train")
    )
    rows = [
        ("traces", f"{read['traces']} ({_counts(read['split'])}), {read['steps']} steps"),
        ("formats", _counts(formats) if formats else "not recorded"),
        ("records that are not traces", _counts(read["failed"])),
        ("critics", ", ".join(document["run"]["critics"])),
        ("findings", f"{critique['findings']} ({_counts(critique['by_class'])})"),
        ("not injected", _counts({**inject["skipped"], **inject["failed"]})),
        ("hints accepted", f"{rescore['accepted']} of {rescore['scored']} scored"),
        ("hints by level, scored and accepted", hint_levels(rescore)),
        ("hints rejected, by reason", _counts(rescore["reasons"])),
        *_twins(document),
        *_hold_rows(document["funnel"].get("hold")),
        (
            "trained on",
            _counts({name: train[name] for name in ("hints", "anchors", "holds", "twins") if train.get(name)}),
        ),
        ("accepted but left out", _counts(train["left_out"])),
        ("fidelity of the steps", _counts(inject["fidelity"])),
    ]
    by_class = [(c, e["n"], e["accepted"], e["n"] - e["accepted"]) for c, e in document["effects"]["by_class"].items()]
    return (
        _table(("", ""), rows)
        + "\n\n"
        + _table(("error class", "hints scored", "accepted", "rejected"), by_class)
        + "\n\nA hint can be rejected for several reasons. A hint of level 0 states a principle, level 1 narrows the "
        "choice, level 2 contains a word of the right step, and level 3 contains something that the student could not "
        "have known. This card contains no trace text."
    )


def _twins(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return rows about erring steps that are held in contexts where they are right; empty without twins."""
    twins = document.get("twins")
    if twins is None:
        return []
    covered = ", ".join(f"{x['covered']} of {x['findings']} {name}" for name, x in twins["by_class"].items())
    said = f"{twins['all']['trained']} twins (erring steps held in the changed context in which they are right)"
    return [
        ("held where it is right", said),
        ("findings with a twin", covered),
        (
            "probability of the step in the contexts of held-out twins",
            " → ".join(_percent(twins["by_split"]["holdout"]["probability"][when]) for when in ("here", "after")),
        ),
    ]


def _hold_rows(holds: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return the row of the data table that counts hold traces; empty if there is no hold section."""
    if holds is None:
        return []
    failed = f"; failed: {_counts(holds['failed'])}" if holds["failed"] else ""
    return [("hold traces (never critiqued, never hinted)", f"{holds['traces']}{failed}")]


def _recipe(document: Mapping[str, Any], train: TrainSection, facts: Mapping[str, Any]) -> str:
    recipe: Recipe = train.effective_recipe
    steps = (
        f"{facts['steps']} optimiser steps on {facts['trainable_parameters']:,} of {facts['parameters']:,} parameters"
        if facts
        else "not trained"
    )
    rows = [
        ("recipe", f"`{recipe.name}`: {recipe.title}"),
        *([("changed, so this is not that method", "; ".join(found))] if (found := _changed(document, train)) else []),
        ("formula" + (" before the changes" if found else ""), recipe.formula),
        ("rollouts", rollouts(recipe)),
        ("source", recipe.source),
        ("confidence in the source", CONFIDENCE[recipe.confidence]),
        ("teacher", f"`{recipe.teacher.update}`, targets `{train.target_source}`"),
        ("training", steps),
        ("versions", ", ".join(f"{k} {v}" for k, v in document["run"]["versions"].items())),
    ]
    config = document["run"]["config"]
    changed = {"run.seed": config["run"]["seed"], "run.dtype": config["run"]["dtype"]}
    sections: tuple[tuple[str, type[Section]], ...] = (
        ("train", TrainSection),
        ("inject", InjectSection),
        ("rescore", RescoreSection),
    )
    for name, section in sections:
        given = section.model_validate(config[name]).model_dump(mode="json", exclude_defaults=True)
        changed |= {f"{name}.{k}": v for k, v in _flat(map_paths(given, section, _without_place))}
    own = recipe_paths(settings(recipe), "", _without_place)
    return (
        _table(("", ""), rows)
        + "\n\nSeed, precision, and every setting of training, injection and rescoring that differs "
        "from its default:\n\n"
        + _table(
            ("setting", "value"), [(f"`{k}`", f"`{json.dumps(v, ensure_ascii=False)}`") for k, v in changed.items()]
        )
        + (f"\n\nThe recipe, key by key:\n\n```yaml\n{_yaml(own)}```" if own else "")
    )


def _changed(document: Mapping[str, Any], train: TrainSection) -> tuple[str, ...]:
    inject = document["run"]["config"]["inject"]
    return changes(train.effective_recipe, inject["hint"], inject.get("steps"))


def _controls(document: Mapping[str, Any]) -> str:
    gate, accepted = document["gate"], document["effects"]["accepted"]
    share = placebo_share(document["findings"])
    rows = [
        (
            "placebos that the gate would accept",
            f"{_percent(gate['null_pass_rate'])} (bound {_percent(gate['bound'])})",
        ),
        ("mean odds of accepted hints beyond the placebos", _nats(accepted.get("odds_over_placebos_mean_nats"))),
        (
            "mean specificity of accepted hints (below 0: specific to the error)",
            _nats(accepted["specificity_mean_nats"]),
        ),
        ("mean effect of accepted hints at the decision token", _nats(accepted["decision_effect_mean_nats"])),
        ("effect of placebos in the same place, as a share of that effect", _percent(share)),
        ("mean gap per token between the traces and these weights", _nats(document["weights"]["recorded_gap_nats"])),
        ("mean KL per token between rescoring and training", _nats(document["weights"]["engine_floor_nats"])),
        ("warnings in the report", str(len(document["warnings"]))),
    ]
    note = "" if gate["enabled"] else "\n\n**The gate was off:** every scored hint was accepted."
    return _table(("", ""), rows) + note


def _effect(document: Mapping[str, Any]) -> str:
    effects = document["effects"]
    groups = [("accepted hints", effects["accepted"]), ("held-out traces", effects["by_split"]["holdout"])]
    groups += list(effects["by_class"].items())
    rows = [
        (name, e["n"], *(_percent(e["error_probability"][when]) for when in ("before", "hinted", "after")))
        for name, e in groups
        if e["n"]
    ]
    parts = [
        "Probability of the sampled error at its decision token: before training, before training "
        "under the hint, and after training without the hint:\n\n"
        + _table(("findings", "n", "before", "under the hint", "after"), rows)
    ]
    played = document["environment"]["splits"] if document["environment"] else {}
    parts.append(
        "In the environment:\n\n"
        + _table(
            ("split", "", "episodes", "success", "with an error"),
            [
                (split, when, e["episodes"], _percent(e["success_rate"]), _percent(e["error_rate"]))
                for split, by in played.items()
                for when, e in by.items()
            ],
        )
        if played
        else f"Success in an environment: {NOT}."
    )
    moved = document["off_target"]
    parts.append(
        "Movement on steps that no loss touched: KL(initial ‖ student) in nats, and the share of "
        "tokens whose most likely continuation changed:\n\n"
        + _table(
            ("set", "steps", "tokens", "KL per token", "KL per step", "99th percentile", "flips"),
            [
                (
                    name,
                    m["steps"],
                    m["tokens"],
                    _short(m["kl_per_token"]),
                    _short(m["kl_per_step"]),
                    _short(m["kl_p99"]),
                    _percent(m["top1_flip_rate"]),
                )
                for name, m in moved.items()
            ],
        )
        if moved
        else f"Off-target KL and flip rate: {NOT}."
    )
    return "\n\n".join(parts)


def _loading(train: TrainSection, facts: Mapping[str, Any], adapter: bool, bases: Sequence[str]) -> str:
    here = train.push or "path/to/student"
    text = (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{here}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{here}")\n```\n\n```shell\nvllm serve {here}\n```'
    )
    if train.lora is not None and train.save == "adapter":
        return text.partition("\n\n```shell")[0] + "\n\nThis is an adapter; peft must be installed."
    if not adapter or train.lora is None:
        return text
    arrived = facts.get("arrived")
    if arrived and arrived["handling"] == "beside":
        return text + (
            "\n\nThe model above is complete. To load it as two active adapters on the base model (vLLM accepts one adapter "
            "per request, so serve the complete model there):\n\n```python\nfrom peft import AutoPeftModelForCausalLM\n\n"
            'model = AutoPeftModelForCausalLM.from_pretrained("path/to/student/arrived", adapter_name="initial")\n'
            'model.load_adapter("path/to/student/adapter", "corrected")\n'
            'model.base_model.set_adapter(["initial", "corrected"])\n```'
        )
    base = "path/to/student/initial" if arrived else bases[0] if bases else "path/to/the/initial/model"
    return text + (
        "\n\nThe model above is complete. To load only the adapter:\n\n```python\nfrom peft import AutoPeftModelForCausalLM\n\n"
        'model = AutoPeftModelForCausalLM.from_pretrained("path/to/student/adapter")\n```\n\n```shell\n'
        f"vllm serve {base} --enable-lora --max-lora-rank {max(8, train.lora.rank)} "
        "--lora-modules corrected=path/to/student/adapter\n```"
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for key, value in values.items():
        if key in LOCAL_KEYS or (not prefix and key in OUTPUT_KEYS):
            continue
        out += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return out


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(_cell(c) for c in row) + " |" for row in rows])


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {name}" for name, n in counts.items()) or "none"


def _percent(value: float | None) -> str:
    return NOT if value is None else f"{100 * value:.3g} %"


def _nats(value: float | None) -> str:
    return NOT if value is None else f"{value:.3g} nats"


def _short(value: float) -> str:
    return f"{value:.2g}"


def _yaml(value: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True, width=110)
