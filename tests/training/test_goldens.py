"""Losses and gradients stay what they were when the goldens were written, to 1e-12.

`python tests/training/test_goldens.py --write` writes `goldens/objectives.json` anew; it takes a reason, and the reason a changelog line.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from support.exact_rows import Doubled
from support.golden_values import (
    BATCHES,
    Golden,
    computed,
    dense,
    from_hidden,
    in_double,
    in_trainer,
    objectives,
    of_actions,
    stored_targets,
    trained,
)

from hintdistill.recipes import load_recipe

FILE = Path(__file__).parent.parent / "goldens" / "objectives.json"
RELATIVE, ABSOLUTE = 1e-12, 1e-14

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def goldens() -> Golden:
    return json.loads(FILE.read_text(encoding="utf-8"))


def apart(found: float, golden: float, scale: float = 0.0) -> bool:
    """Whether two numbers differ; a product of vectors is as exact as its factors are long."""
    if math.isfinite(golden):
        return not abs(found - golden) <= RELATIVE * max(abs(golden), scale) + ABSOLUTE
    return repr(found) != repr(golden)


def differences(found: Golden, golden: Golden, where: str = "", scale: float = 0.0) -> Iterator[str]:
    """Every place at which two trees of numbers are apart."""
    if found.keys() != golden.keys():
        yield f"{where}: {sorted(found)} instead of {sorted(golden)}"
        return
    for key, value in golden.items():
        mine, place = found[key], f"{where}/{key}"
        if isinstance(value, dict):
            yield from differences(mine, value, place, value.get("norm", 0.0))
        elif isinstance(value, list):
            yield from (f"{place}: {a!r}, was {b!r}" for a, b in zip(mine, value, strict=True) if apart(a, b, scale))
        elif isinstance(value, str):
            if mine != value:
                yield f"{place}: {mine}, was {value}"
        elif apart(mine, value):
            yield f"{place}: {mine!r}, was {value!r}"


@pytest.fixture(scope="module")
def tiny_and_targets():
    with Doubled():
        model = in_double()
        return model, stored_targets(model)


@pytest.mark.parametrize(("name", "source"), trained())
def test_loss_and_gradient_in_the_trainer(name, source, goldens, tiny_and_targets, tmp_path):
    for batch in BATCHES:
        key = f"{name}/{source}/{batch}"
        with Doubled():
            found = in_trainer(name, source, batch, *tiny_and_targets, tmp_path)
        assert not list(differences(found, goldens["trainer"][key], key))


def test_a_loss_that_leaves_reasoning_out(goldens, tiny_and_targets, tmp_path):
    with Doubled():
        found = of_actions(*tiny_and_targets, tmp_path)
    assert not list(differences(found, goldens["spans"]["action"]))
    assert apart(found["loss"], goldens["trainer"]["targeted/stored/mixed"]["loss"])


def test_every_term_on_whole_distributions(goldens):
    found = {n: dense(load_recipe(n)) for n in objectives()}
    assert not list(differences(found, goldens["dense"]))


def test_every_term_from_hidden_states(goldens):
    found = {n: made for n in objectives() if (made := from_hidden(load_recipe(n)))}
    assert not list(differences(found, goldens["hidden"]))


def test_the_goldens_are_of_these_recipes_and_say_something(goldens):
    assert set(goldens["trainer"]) == {f"{n}/{s}/{b}" for n, s in trained() for b in BATCHES}
    assert all(math.isfinite(golden["loss"]) for golden in goldens["trainer"].values())
    # advantages of mean zero under one importance ratio for the whole row: a row alone has no gradient; nor has a row that failed in
    # TRACE, which distils what was done right
    flat = [key for key, golden in goldens["trainer"].items() if golden["gradient"]["norm"] == 0]
    assert sorted(flat) == ["gndpo/in_step/alone", "trace/in_step/alone"]


def test_a_difference_is_seen(goldens):
    key = "targeted/stored/mixed"
    golden = goldens["trainer"][key]
    for changed in (
        golden | {"loss": golden["loss"] * (1 + 1e-11)},
        golden | {"terms": {}},
        golden | {"gradient": golden["gradient"] | {"products": [0.0, *golden["gradient"]["products"][1:]]}},
    ):
        assert len(list(differences(changed, golden))) == 1


def write() -> None:
    """Compute everything and put it into the file."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = computed(Path(folder))
    # a recipe a line
    parts = {s: ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in own.items()) for s, own in found.items()}
    text = ",\n".join(f" {json.dumps(s)}: {{\n{own}\n }}" for s, own in parts.items())
    FILE.write_text(f"{{\n{text}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/training/test_goldens.py --write")
    write()
