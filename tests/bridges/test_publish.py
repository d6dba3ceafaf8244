"""`hintdistill push --targets`: off by default, scanned for secrets, and a variant without text; against a hub on this machine."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest
from support.command import hintdistill
from support.hub_server import TOKEN, running_hub
from support.peers import the_run

from hintdistill.bridges.hf import HintRows
from hintdistill.bridges.publish import push_targets
from hintdistill.bridges.runs import open_rows
from hintdistill.critics.secrets import SecretError
from hintdistill.injection.rendering import Renderer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    with running_hub(tmp_path / "hub") as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def test_targets_arrive_as_a_data_set_that_trains(hub, tmp_path):
    done = hintdistill("push", str(the_run()), "me/targets", "--targets", "--licence", "mit")
    assert done.stdout.strip().endswith("/me/targets/commit/1")
    assert hub.made["me/targets"]["type"] == "dataset" and hub.made["me/targets"]["visibility"] == "private"
    arrived = tmp_path / "hub" / "me" / "targets"
    assert {p.name for p in arrived.iterdir()} == {"README.md", "card.json", "recipe.json", "rows.parquet"}
    assert (arrived / "README.md").read_text().startswith("---\nlicense: mit\n")
    assert len(HintRows.from_export(arrived)) == len(open_rows(the_run()).rows)


def test_without_the_flag_no_target_leaves(hub):
    # the student is pushed, and this run has none
    assert "no student" in hintdistill("push", str(the_run()), "me/it", expect=3).stderr
    assert (
        "--text-free concerns targets" in hintdistill("push", str(the_run()), "me/it", "--text-free", expect=2).stderr
    )
    assert hub.calls == []


def test_a_secret_in_a_context_stops_it_before_anything_is_sent(hub, monkeypatch):
    key = "sk-" + "proj-" + "abcdefghijklmnop1234"
    plain = Renderer.decode
    monkeypatch.setattr(Renderer, "decode", lambda self, ids: f"{plain(self, ids)} my key is {key}")
    with pytest.raises(SecretError, match=r"trace \S+ contains a secret, and nothing was sent: .*key of a ") as error:
        push_targets(the_run(), "me/targets")
    assert key not in str(error.value) and hub.calls == []


def test_the_variant_without_text_has_no_id_and_no_word(hub, tmp_path):
    hintdistill("push", str(the_run()), "me/numbers", "--targets", "--text-free")
    arrived = tmp_path / "hub" / "me" / "numbers"
    assert {p.name for p in arrived.iterdir()} == {"README.md", "rows.parquet"}
    table = pq.read_table(arrived / "rows.parquet")
    words = {name for name in table.schema.names if str(table.schema.field(name).type) == "string"}
    assert words == {"kind"} and set(table.column("kind").to_pylist()) == {"hint", "anchor", "twin"}
    assert not [n for n in table.schema.names if n.endswith("ids") or n in ("tokens", "hint", "trace_id")]
    found = list(open_rows(the_run()).targets)
    readme = (arrived / "README.md").read_text()
    assert not [t.trace_id for t in found if t.trace_id in readme]
    for row, target in zip(table.to_pylist(), found, strict=True):
        assert row["first_position"] == len(target.context_ids)
        assert row["teacher_sampled"] == target.teacher_sampled.tolist()
        # ranked, so that no order of ids is left
        assert all(list(each) == sorted(each, reverse=True) for each in row["teacher_logprobs"])
