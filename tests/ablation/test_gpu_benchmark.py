"""benchmarks/gpu.py: a section that runs, what is owed, and the pack that goes to a machine without a network."""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu
import gpu_pack
import gpu_sections

pytestmark = pytest.mark.usefixtures("one_thread")


def asked(out: Path, **more) -> argparse.Namespace:
    plain = {"out": out, "only": None, "again": False, "rehearse": True, "minutes": None, "pack": None}
    return argparse.Namespace(**{**plain, **more})


def test_exactness_and_the_loss_run_here_as_they_would_on_a_gpu(tmp_path):
    """Tiny, in this process; the other sections are run by `gpu.py --rehearse`, below."""
    work = gpu.Work("cpu", True, tmp_path, 60)
    found = gpu.one("exact", work)
    assert "failure" not in found, found
    figures = found["figures"]
    assert figures["float32_calls_of_64"]["shared_to_separate"] <= 1e-5
    assert figures["float32_calls_of_64"]["twice_the_same"] == 0
    assert figures["gradient_rel_err"] <= 1e-5 and figures["float32_way"] == "shared_prefix"
    assert found["facts"]["rehearsal"] and found["facts"]["gpu"] is None
    variants = gpu.one("loss", work)["figures"]["variants"]
    assert variants["dense"]["loss"] == pytest.approx(variants["chunked"]["loss"], rel=1e-4)


def test_a_section_that_fails_is_a_failure_and_not_a_figure(tmp_path, monkeypatch):
    def broken(work):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setitem(gpu_sections.SECTIONS, "loss", broken)
    found = gpu.one("loss", gpu.Work("cpu", True, tmp_path, 60))
    assert found["failure"] == "RuntimeError: CUDA error: out of memory" and "figures" not in found


def test_what_is_done_is_not_done_again_and_what_has_no_time_left_is_owed(tmp_path, monkeypatch, capsys):
    begun = []

    def apart(name, args, seconds):
        begun.append(name)
        return {"section": name, "seconds": 1.0, **({"failure": "x"} if name == "loss" else {"figures": {"n": 1}})}

    monkeypatch.setattr(gpu, "apart", apart)
    assert gpu.measure(asked(tmp_path, rehearse=False, minutes=0.7)) == 1
    assert begun == ["exact", "loss", "long"]  # what fits into 42 seconds, most valuable first
    document = json.loads((tmp_path / "gpu.json").read_text())
    assert document["failed"] == {"loss": "x"}
    assert gpu.owed(asked(tmp_path)) == [n for n in gpu.ESTIMATES if n not in begun]
    assert "loss" in gpu.owed(asked(tmp_path, again=True))
    assert document["sections"] == {"exact": {"n": 1}, "long": {"n": 1}} and "rescore" in document["owed"]
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == document


def test_the_order_is_by_value_and_every_section_is_there():
    assert list(gpu.ESTIMATES) == list(gpu_sections.SECTIONS)
    said = [line.split()[0] for line in gpu.__doc__.splitlines() if line.startswith("  ") and line[2] != " "]
    assert {n.strip(",") for line in said for n in line.split()} >= set(gpu.ESTIMATES) - {"step8"}


def test_a_pack_is_cut_and_put_together(tmp_path):
    wheel = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("thing/__init__.py", "value = 7\n" * 200)
        archive.writestr("thing-1.0.data/purelib/other.py", "x = 1\n")
        archive.writestr("thing-1.0.dist-info/METADATA", "Name: thing\nVersion: 1.0\n")
    folder, weights = tmp_path / "pack", tmp_path / "weights.whl"
    weights.write_bytes(bytes(range(256)) * 10)
    pieces = tmp_path / "pieces"
    pieces.mkdir()
    whole = gpu_pack.split(wheel, pieces, 100)
    assert len(whole["pieces"]) > 1 and all((pieces / p).stat().st_size <= 100 for p in whole["pieces"])
    assert gpu_pack.join(whole, pieces, tmp_path / "to").read_bytes() == wheel.read_bytes()
    gpu_pack.pack(folder, [wheel], weights)
    site = gpu_pack.unpack(folder, tmp_path / "unpacked")
    assert (site / "thing" / "__init__.py").is_file() and (site / "other.py").is_file()
    assert (tmp_path / "unpacked" / "weights" / "weights.whl").read_bytes() == weights.read_bytes()
    piece = folder / "thing-1.0-py3-none-any.whl.000"
    piece.write_bytes(piece.read_bytes()[:-1] + b"?")
    with pytest.raises(gpu_pack.PackError, match="not the file that was packed"):
        gpu_pack.unpack(folder, tmp_path / "again")
    piece.unlink()
    with pytest.raises(gpu_pack.PackError, match="is missing"):
        gpu_pack.unpack(folder, tmp_path / "once more")


def test_the_pack_has_what_torch_and_transformers_do_not_bring():
    names = {line.partition("==")[0] for line in gpu_pack.wanted()}
    assert {"accelerate", "peft", "pyarrow", "msgspec", "gguf"} <= names
    assert not names & {"torch", "transformers", "tokenizers", "numpy", "safetensors", "hintdistill"}


@pytest.mark.slow
def test_every_section_is_rehearsed(tmp_path):
    """All of it as on a GPU, each section a process: the run that is killed twice, the plan, the long context."""
    import subprocess

    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--rehearse", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    document = json.loads(done.stdout.splitlines()[-1])
    assert not document["failed"] and not document["owed"]
    run = document["sections"]["end_to_end"]
    assert run["killed in rescore"] and run["killed in train"] and run["verified"] and not run["targets_twice"]
    assert document["sections"]["long"]["kept"]["same"] and document["sections"]["long"]["offloaded"]["same"]
