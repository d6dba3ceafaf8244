"""The model card: a head that hub parsers take, the report's numbers, no word of a trace, and what was not measured said so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import ROOT, STUDENT
from support.hub_server import card_errors

from hintdistill.config.file import load_config
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.run import report_only, run
from hintdistill.pipeline.store import RunDir
from hintdistill.training.card import NOT, adapter_card, card_text, front_matter, hub_name
from hintdistill.training.card_controls import placebo_share
from hintdistill.training.students import Arrived

SETTINGS = [
    "critic.use=[rules,recorded]",
    "traces.limit=40",
    "traces.holdout=0.4",
    "train.epochs=1",
    "train.lora={rank: 4, alpha: 8}",
    "rollout.splits=[validation]",
    "rollout.limit=4",
    "report.html=false",
    "report.off_target={}",
    "run.threads=1",
]


@pytest.fixture(scope="module")
def cards(tmp_path_factory) -> tuple[Path, str, str]:
    """A run, its card when the training was done, and its card after the report."""
    folder = tmp_path_factory.mktemp("card") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        config = load_config("configs/quickstart.yaml", [*SETTINGS, f"run.dir={folder}"])
        run(config, folder, until="train", console=Console(quiet=True))
        first = (folder / "student" / "README.md").read_text()
        report_only(folder, Console(quiet=True))
    return folder, first, (folder / "student" / "README.md").read_text()


@pytest.fixture
def document(cards) -> dict:
    return json.loads((cards[0] / "report.json").read_text())


def row(card: str, name: str) -> str:
    """The rest of the table row that begins with `name`."""
    return next(line.split("|", 2)[2].strip(" |") for line in card.splitlines() if line.startswith(f"| {name} |"))


def test_before_the_report_what_is_not_measured_is_said(cards):
    _, first, after = cards
    assert f"Success in an environment: {NOT}." in first and f"Off-target KL and flip rate: {NOT}." in first
    assert row(first, "accepted hints").endswith(NOT)
    assert NOT not in after and "In the environment:" in after and "Movement on steps that no loss touched" in after


def test_the_numbers_are_the_reports(cards, document):
    card = cards[2]
    probability = document["effects"]["accepted"]["error_probability"]
    assert row(card, "accepted hints").split(" | ")[1:] == [
        f"{100 * probability[w]:.3g} %" for w in ("before", "hinted", "after")
    ]
    for when in ("before", "after"):
        e = document["environment"]["splits"]["validation"][when]
        assert f"| validation | {when} | 4 | {100 * e['success_rate']:.3g} % | {100 * e['error_rate']:.3g} % |" in card
    for name, moved in document["off_target"].items():
        assert row(card, name).startswith(f"{moved['steps']} | {moved['tokens']} | {moved['kl_per_token']:.2g} |")
    funnel = document["funnel"]
    assert row(card, "traces").startswith("40 (") and row(card, "formats") == "40 native"
    assert row(card, "hints accepted") == f"{funnel['rescore']['accepted']} of {funnel['rescore']['scored']} scored"
    assert f"{funnel['train']['hints']} hints, {funnel['train']['anchors']} anchors" in card
    for error_class, e in document["effects"]["by_class"].items():
        assert f"| {error_class} | {e['n']} | {e['accepted']} | {e['n'] - e['accepted']} |" in card
    assert row(card, "placebos that the gate would accept").startswith(
        f"{100 * document['gate']['null_pass_rate']:.3g} %"
    )
    assert row(card, "`train.lora.rank`") == "`4`" and row(card, "`train.epochs`") == "`1.0`"
    assert f"{document['train']['trainable_parameters']:,} of" in card


def test_placebo_share_is_of_the_hints_effect(document):
    found = [f for f in document["findings"] if f["accepted"] and f["decision"]]
    share = placebo_share(document["findings"])
    placebos = [p["effect_nats"] for f in found for p in f["placebos"]]
    hints = [f["decision"]["effect_nats"] for f in found]
    assert share == pytest.approx((sum(placebos) / len(placebos)) / (sum(hints) / len(hints)))
    assert placebo_share([]) is None


def test_no_word_of_a_trace_and_no_local_folder(cards, document):
    folder, _, card = cards
    said = {f["quote"] for f in document["findings"]} | {f["hint"] for f in document["findings"]}
    said |= {f["trace"] for f in document["findings"]}
    for line in (folder / "traces.jsonl").read_text().splitlines():
        said |= {m.get("content") for m in json.loads(line)["trace"]["messages"] if m["role"] != "system"}
    words = {w for w in said if w and len(w) > 3}
    assert len(words) > 50 and not [w for w in words if w in card]
    assert str(folder) not in card and str(STUDENT.parent) not in card and "examples/toolworld" not in card


def test_the_head_is_one_that_hubs_take(cards, document):
    from huggingface_hub import ModelCard

    for card in cards[1:]:
        data = ModelCard(card).data
        assert data.library_name == "transformers" and data.pipeline_tag == "text-generation"
        assert data.tags == ["hintdistill", "self-distillation", "targeted"]
        assert data.license == front_matter(STUDENT)["license"] and data.base_model is None
        assert card_errors(card) == []
    document["run"]["config"]["run"]["model"] = "org/initial"
    document["run"]["config"]["train"]["push"] = "me/corrected"
    card = card_text(document, {}, adapter=True, license_of={})
    data = ModelCard(card).data
    assert (
        data.base_model == "org/initial"
        and data.to_dict()["base_model_relation"] == "finetune"
        and data.license is None
    )
    assert (
        "# corrected\n" in card and 'from_pretrained("me/corrected")' in card and row(card, "formats") == "not recorded"
    )
    assert "vllm serve org/initial --enable-lora --max-lora-rank 8 --lora-modules" in card
    assert card_errors(card) == [] and card_errors(adapter_card("org/initial", None)) == []
    assert "base_model" not in adapter_card("/home/me/model", None)


def test_controls_and_arrivals_are_named(document):
    document["run"]["hint"], document["gate"]["enabled"] = "placebo", False
    document["train"]["arrived"] = {"adapter": "/x", "base": "org/base", "handling": "beside"}
    card = card_text(document, {}, adapter=True, license_of={"license": "mit", "license_link": 3})
    assert "**This student is a control:**" in card and "**The gate was off:**" in card
    assert "kept frozen beside the new one" in card and 'set_adapter(["initial", "corrected"])' in card
    assert "base_model: org/base" in card and "license: mit" in card and "license_link" not in card
    document["train"]["arrived"]["handling"] = "merged"
    assert "merged into its base model" in card_text(document, {}, adapter=True, license_of={})
    assert "`initial/`" in adapter_card("/x/initial", Arrived("/x", "org/base", "merged"))
    assert "one of two" in adapter_card("org/base", Arrived("/x", "org/base", "beside"))


def test_the_card_of_equal_runs_is_equal_and_the_report_writes_it_again(cards):
    folder, _, after = cards
    path = folder / "student" / "README.md"
    path.write_text("something else")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        report_only(folder, Console(quiet=True))
    assert path.read_text() == after
    assert RunDir(folder).manifest()["formats"] == {"native": 40}


@pytest.mark.parametrize(
    ("name", "known"),
    [("org/name", "org/name"), ("./org/name", None), ("name", None), ("a/b/c", None), ("/abs/name", None)],
)
def test_hub_names(name, known):
    assert hub_name(name) == known


def test_a_folder_of_the_hubs_cache_has_its_name(tmp_path):
    folder = tmp_path / "models--org--the-model" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    assert hub_name(str(folder)) == "org/the-model" == hub_name("org/the-model", folder)
    assert hub_name(str(tmp_path)) is None
    (folder / "README.md").write_text("---\nlicense: [broken\n---\n")
    assert front_matter(folder) == {} == front_matter(tmp_path)
    assert not re.search(r"\d{4}-\d\d-\d\d", adapter_card("org/x", None)), "a card holds no date"


def test_the_card_names_no_folder_of_this_machine(cards, tmp_path):
    """Also where a teacher and a recipe are named by their paths, which a run folder holds absolute."""
    folder, _, text = cards
    assert str(ROOT) not in text and str(folder) not in text
    document = json.loads((folder / "report.json").read_text())
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("preset: targeted\n")
    teacher = {"update": "external", "model": str(tmp_path / "teacher")}
    document["run"]["config"]["train"]["recipe"] = {"preset": str(recipe), "teacher": teacher}
    text = card_text(document, {}, adapter=False, license_of={})
    assert str(tmp_path) not in text and "a local folder" in text
    document["run"]["config"]["train"]["recipe"]["teacher"]["model"] = "owner/Teacher-7B"
    assert "owner/Teacher-7B" in card_text(document, {}, adapter=False, license_of={})


def said(document: dict, recipe: str | dict, **facts) -> str:
    """The card's first paragraph for another recipe and other counts of what was trained on."""
    config = json.loads(json.dumps(document["run"]["config"]))
    config["train"]["recipe"] = recipe
    changed = document | {"run": document["run"] | {"config": config}, "train": document["train"] | facts}
    return card_text(changed, {}, adapter=False, license_of={}).split("\n\n")[2]


def test_no_sentence_claims_what_was_not_done(document):
    assert document["train"]["anchor_rows"] > 0
    plain = said(document, "targeted")
    assert (
        f"Held at the initial model's distribution: {document['train']['anchor_rows']} clean steps of the same traces."
        in plain
    )
    assert (
        "(loss: `fkl` over the whole step)" in plain
        and "the predictions of the model itself there under the hint" in plain
    )
    alone = said(document, "targeted", anchor_rows=0, hold_rows=0)
    assert "No other step was held in place." in alone and "Held at" not in alone
    both = said(document, "targeted", hold_rows=3)
    assert "clean steps of the same traces, 3 steps of hold traces. No other step was held." in both
    other = said(document, {"preset": "targeted_jsd", "terms": {"distill": {"span": "quote"}}})
    assert "(loss: `jsd` over the quoted words)" in other and "fkl" not in other
    external = said(document, {"preset": "targeted", "teacher": {"update": "external", "model": "some/model"}})
    assert "the predictions of another model there under the hint" in external


def test_a_changed_method_is_called_changed_and_no_context_is_claimed_that_no_row_had(document):
    changed = json.loads(json.dumps(document))
    changed["run"]["config"]["train"]["recipe"] = {"preset": "opsd", "data": {"hint": {"kind": "feedback"}}}
    text = card_text(changed, {}, adapter=False, license_of={})
    assert "the teacher reads critic, not solution" in row(text, "changed, so this is not that method")
    assert "formula before the changes" in text and "- opsd" not in text.split("---")[1]
    rows = document["train"]["hint_rows"]
    assert f"a teacher read an additional context (`inject.hint: critic`) on {rows} of {rows} steps" in " ".join(
        text.split()
    )
    changed["train"]["contexts"] = {"hint": 0, "wrong": 3}
    text = " ".join(card_text(changed, {}, adapter=False, license_of={}).split())
    assert f"`wrong` on 3 of {rows} steps" in text and f"on {rows} of {rows} steps" not in text
    changed["train"]["contexts"] = {"hint": 0}
    assert "the teacher read the same contexts as the student" in card_text(changed, {}, adapter=False, license_of={})
    assert document["run"]["recipe"] == {
        "name": "targeted",
        "called": "targeted",
        "lowers_error": document["run"]["recipe"]["lowers_error"],
    }
    changed["run"]["config"]["train"]["recipe"] = "rlsd"
    text = " ".join(card_text(changed, {}, adapter=False, license_of={}).split())
    assert "a sampled token that the teacher lowers: not caused by the teacher (the verifier gives the sign" in text


def test_a_card_of_a_run_without_a_gate_says_so_and_one_with_it_does_not(document):
    off = document | {"gate": document["gate"] | {"enabled": False}}
    assert "**The gate was off:**" in card_text(off, {}, adapter=False, license_of={})
    assert "gate was off" not in card_text(document, {}, adapter=False, license_of={})
