"""`hintdistill export`: each format says what it loses and keeps to it; what it cannot hold is refused, and a wrong file is found."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT
from support.command import hintdistill
from support.exported import scored_run
from support.flat_recipe import train_section
from support.peers import the_model, the_run

from hintdistill.bridges import check as checking
from hintdistill.bridges.axolotl import CONFIG, weight_constant
from hintdistill.bridges.export import ExportSettings, export
from hintdistill.bridges.flat import FlatRow, flat_rows
from hintdistill.bridges.formats import FORMATS, Checked, format_named
from hintdistill.bridges.runs import open_rows
from hintdistill.bridges.trl import columns, copies_of, require_whole_weights
from hintdistill.core.errors import ConfigError, InputError
from hintdistill.core.models import model_key

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run():
    return the_run()


@pytest.fixture(autouse=True)
def one_model(monkeypatch):
    """The check's model is loaded once."""

    def load(found):
        assert model_key(found.ctx.model_folder) == found.ctx.model_key
        model = the_model()

        def logprobs(ids, start):
            import torch

            with torch.no_grad():
                wide = model(torch.from_numpy(ids[None, :-1])).logits[0, start - 1 :]
            return (wide.double() / checking.SOFTENED).log_softmax(-1).numpy()

        return logprobs

    monkeypatch.setattr(checking, "load_student", load)


def row_of(weights, kind="hint", key="abc") -> FlatRow:
    """A row of two kept ids per token."""
    n = len(weights)
    teacher = np.log(np.full((n, 2), 0.4))
    ids = np.arange(n + 3)
    return FlatRow(
        key, kind, ids, 3, np.array(weights, float), np.tile([3, 4], (n, 1)), teacher, np.log(np.full(n, 0.2))
    )


@pytest.mark.parametrize("form", [f.name for f in FORMATS])
def test_every_format_writes_checks_and_says_what_it_loses(run, tmp_path, form):
    out = tmp_path / form
    done = hintdistill("export", str(run), "--to", form, "--check", "--out", str(out), "--licence", "cc-by-4.0")
    assert f"rows by {form}'s formula" in done.stdout and "loses" in done.stdout
    card = json.loads((out / "card.json").read_text())
    found = open_rows(run)
    kinds = {h.kind for h in found.targets.heads}
    assert kinds == {"hint", "anchor", "twin"} == set(card["steps"]) and card["check"]["rows"] == 20
    weighed = sum(len(r.slots) for r in found.rows)
    assert sum(card["steps"].values()) == weighed
    assert sum(card["steps"].values()) + sum(card["without_weight"].values()) == len(found.targets)
    assert card["licence"] == "cc-by-4.0" and card["versions"]["weights"] == [found.ctx.model_key.weights]
    readme = (out / "README.md").read_text()
    head = yaml.safe_load(readme.split("---")[1])
    assert head["license"] == "cc-by-4.0" and all(f"- {what}" in readme for what in card["loses"])
    rows = pq.ParquetFile(out / "rows.parquet").metadata.num_rows
    assert rows == (len(found.rows) if form == "hf" else weighed) == card["written"]["rows"]
    if form == "hf":
        assert "exact: at most 1e-05 relative" in done.stdout and card["check"]["worst_relative"] <= 1e-5
    else:
        assert "the mass that is not kept allows" in done.stdout
        assert any("jsd becomes forward KL" in what for what in card["loses"])


@pytest.mark.parametrize(("form", "overrides"), [("hf", ["k=6"]), ("trl", ["k=6"]), ("tinker", ["k=3", "tail=drop"])])
def test_with_fewer_ids_the_sampled_one_stays(run, tmp_path, form, overrides):
    _, card = export(run, form, ExportSettings.parse(overrides), out=tmp_path / "out", checked=True)
    table = pq.read_table(tmp_path / "out" / "rows.parquet").to_pylist()
    assert 0 < card["check"]["worst_nats"] <= card["check"]["bound_nats"] + 1e-5
    for row in table[::5]:
        for slot in row["slots"] if form == "hf" else [row]:
            start = slot["start"]
            ids = slot[{"hf": "support_ids", "trl": "topk_ids", "tinker": "target_tokens"}[form]]
            weighed = {"hf": lambda t: True, "trl": lambda t: True, "tinker": lambda t: any(slot["weights"][t])}[form]  # noqa: B023
            for t, kept in enumerate(ids):
                assert len(kept) <= card["k"]
                assert not weighed(t) or row["input_ids"][start + t] in kept


def test_a_file_that_was_changed_is_found_and_nothing_replaces_what_was_there(run, tmp_path, monkeypatch):
    folder, _ = export(run, "trl", out=tmp_path / "out")
    before = (folder / "card.json").read_bytes()
    writer = format_named("trl").writer()
    kept = writer.columns

    def wrong(row, copies):
        out = kept(row, copies)
        return out | {"topk_ids": [list(reversed(ids)) for ids in out["topk_ids"]]}

    monkeypatch.setattr(writer, "columns", wrong)
    done = hintdistill("export", str(run), "--to", "trl", "--check", "--out", str(folder), expect=3)
    assert "trl's formula gives" in done.stderr and "exceeds the allowed difference" in done.stderr
    assert (folder / "card.json").read_bytes() == before and not folder.with_name("out.writing").exists()


def test_a_row_beyond_its_bound_is_an_error_that_names_it():
    form = format_named("tinker")
    checking.require_close([Checked("fine", 1.0, 1.000005, 0.0), Checked("lossy", 1.2, 1.0, 0.3)], form)
    with pytest.raises(InputError, match=r"row off: tinker.s formula gives 1\.2"):
        checking.require_close([Checked("off", 1.2, 1.0, 0.1)], form)
    with pytest.raises(InputError, match="row none"):
        checking.require_close([Checked("none", float("nan"), 1.0, 5.0)], form)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--to", "hff"], "unknown format 'hff' (did you mean"),
        (["--to", "trl", "tail=drop"], "trl does not support tail=drop: its trainer computes the rest itself"),
        (["--to", "axolotl", "tail=keep"], "axolotl does not support tail=keep"),
        (["k=0"], "k=0 is not a number of ids"),
        (["kk=3"], "export takes k=… and tail=…, not 'kk=3'"),
    ],
)
def test_what_a_format_does_not_have_is_refused_by_name(run, tmp_path, args, said):
    done = hintdistill("export", str(run), "--out", str(tmp_path / "out"), *args, expect=2)
    assert said.replace(" (did you mean", "") in done.stderr and not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(run, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="contains something that is not an export"):
        export(run, "hf", out=tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_run_without_targets_is_said(run, tmp_path):
    empty = tmp_path / "run"
    empty.mkdir()
    for name in ("manifest.json", "config.yaml"):
        shutil.copy(run / name, empty / name)
    with pytest.raises(InputError, match="its rescore stage has not finished"):
        export(empty, "hf")


def test_a_recipe_that_stored_targets_cannot_train_says_so(run, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(run, other, ignore=shutil.ignore_patterns("export", ".lock"))
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["config"]["train"]["recipe"] = "sdft"
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="sdft computes its targets in the training step"):
        export(other, "hf")
    _, card = export(other, "tinker", ExportSettings(8), out=tmp_path / "t")
    assert any(what.startswith("the teacher of the training step") for what in card["loses"])


def test_trl_takes_masks_and_whole_copies_and_refuses_the_rest_by_name():
    require_whole_weights(row_of([0.0, 0.5, 0.5]))
    with pytest.raises(ConfigError, match=r"row abc: its tokens have weights in the ratio 0\.25 to 1"):
        columns(row_of([0.2, 0.05]), 1)
    recipe = train_section(anchor={"weight": 1.5}).effective_recipe
    assert copies_of(recipe, ["hint", "anchor"]) == {"hint": 2, "anchor": 3}
    with pytest.raises(ConfigError, match=r"rows of anchor have 1\.12346 times the weight"):
        copies_of(train_section(anchor={"weight": 1.123456789}).effective_recipe, ["hint", "anchor"])


def test_axolotl_rows_are_shifted_and_hold_their_weights(run, tmp_path):
    folder, _ = export(run, "axolotl", ExportSettings(8), out=tmp_path / "out")
    found = open_rows(run, 8, "renormalise")
    table = pq.read_table(folder / "rows.parquet").to_pylist()
    for row, flat in zip(table, flat_rows(found.rows, found.section.effective_recipe), strict=True):
        assert len({len(v) for v in row.values()}) == 1, "every column is as long as the sequence"
        assert sum(label != -100 for label in row["labels"]) == 1
        places = [i for i, ids in enumerate(row["target_token_ids"]) if ids]
        assert places == [flat.start - 1 + t for t in flat.carried]
        for t in flat.carried:
            at = flat.start - 1 + t
            assert row["input_ids"][at + 1] in row["target_token_ids"][at]
            assert np.exp(row["target_logprobs"][at]).sum() == pytest.approx(flat.weights[t], rel=1e-5)
    assert yaml.safe_load((folder / CONFIG).read_text())["kd_ce_alpha"] == 0.0
    one = row_of([1.0, 1.0])
    assert weight_constant(one) == 0.0 and weight_constant(replace(one, weights=np.array([0.5, 0.5]))) < 0


@pytest.mark.slow
def test_holds_are_exported_with_their_weight(tmp_path):
    held = scored_run(
        tmp_path / "run", "train.hold.path=examples/toolworld/near_misses.jsonl", "train.hold.weight=3", limit=24
    )
    _, card = export(held, "trl", out=tmp_path / "out")
    assert card["steps"]["hold"] > 0 and card["written"]["copies"]["hold"] == 3 * card["written"]["copies"]["hint"]


def test_importing_the_toolkit_or_a_bridge_imports_no_peer():
    code = (
        "import hintdistill, hintdistill.cli.main, hintdistill.bridges.trl, hintdistill.bridges.tinker, hintdistill.bridges.verl\n"
        "import hintdistill.bridges.grpo, hintdistill.bridges.axolotl, hintdistill.bridges.export, hintdistill.bridges.hf, sys\n"
        "loaded = {'trl', 'tinker', 'axolotl', 'verl', 'ray', 'datasets', 'liger_kernel'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
