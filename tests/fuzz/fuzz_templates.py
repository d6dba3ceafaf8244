"""Random talks under every chat template of the trl wheel and of the tests, for some minutes; what breaks is shrunk and written down.

    python tests/fuzz/fuzz_templates.py [--seconds 900] [--finds DIR] [--seed 0]

A find is a JSON file with template, step and talk; it goes to tests/injection/replay, where the suite tries it again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from conftest import TEMPLATES, published_templates  # noqa: E402
from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from support.template_matrix import renderers, templates_in  # noqa: E402
from support.template_talks import talks, wrong_of  # noqa: E402

from hintdistill.core.types import Trace  # noqa: E402
from hintdistill.injection.rendering import Renderer  # noqa: E402

BATCH = 40
"""Examples of one template before the next one has its turn."""


def attempt(renderer: Renderer, number: int) -> tuple[int, dict[str, Any] | None]:
    """Try one batch of talks under a template: how many, and the smallest that breaks anything, with the reason."""
    tried, last = [0], dict[str, Any]()

    @seed(number)
    @settings(
        max_examples=BATCH,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(talks(), st.data())
    def one(trace: Trace, data: st.DataObject) -> None:
        step = data.draw(st.integers(0, len(trace.step_indices) - 1))
        tried[0] += 1
        last.update(step=step, trace=trace.model_dump(mode="json", exclude_defaults=True))
        if wrong := wrong_of(trace, step, renderer):
            raise AssertionError("; ".join(wrong))

    try:
        one()
    except Exception as error:
        return tried[0], {"why": f"{type(error).__name__}: {error}".splitlines()[0][:300], **last}
    return tried[0], None


def main() -> None:
    """Fuzz until the time is over. Ends the process with 1 where anything broke."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--finds", type=Path, default=ROOT / "build" / "template_finds")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    texts = {p.stem: p.read_text(encoding="utf-8") for p in published_templates()} | templates_in(TEMPLATES)
    left, total, tried, turn = dict(renderers(texts)), len(texts), 0, 0
    end = time.monotonic() + arguments.seconds
    while time.monotonic() < end and left:
        name = list(left)[turn % len(left)]
        count, find = attempt(left[name], arguments.seed + turn)
        tried, turn = tried + count, turn + 1
        if find is not None:
            del left[name]
            arguments.finds.mkdir(parents=True, exist_ok=True)
            (arguments.finds / f"{name}.json").write_text(
                json.dumps({"template": name, **find}, indent=1, ensure_ascii=False) + "\n"
            )
            print(f"{name}: {find['why']}", flush=True)
    print(f"{tried} talks under {total} templates, {total - len(left)} with a find")
    sys.exit(len(left) < total)


if __name__ == "__main__":
    main()
