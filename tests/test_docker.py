"""The Dockerfile, linted: it parses, names what is there, pins what it starts from, and runs as a user without rights."""

from __future__ import annotations

import json
import re
import tomllib

from conftest import ROOT

KNOWN = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT", "CMD"}


def instructions() -> list[tuple[str, str]]:
    """(instruction, rest) of the file, comments left out and continued lines joined."""
    out, text = [], (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    assert not any(re.search(r"\\\s+$", line) for line in lines), "a space after a backslash ends the line"
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            out.append((name, " ".join(rest.split())))
    return out


def stages() -> dict[str, list[tuple[str, str]]]:
    """Stage → its instructions, the FROM first."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for word, rest in instructions():
        if word == "FROM":
            match = re.fullmatch(r"(\S+) AS ([a-z]+)", rest)
            assert match, f"FROM {rest}: a stage has a name"
            name = match[2]
        if name:
            found.setdefault(name, []).append((word, rest))
    return found


def test_every_instruction_is_one_and_every_image_is_pinned():
    assert {name for name, _ in instructions()} <= KNOWN
    arguments = dict(rest.split("=", 1) for name, rest in instructions() if name == "ARG")
    known = set(stages())
    for name, rest in instructions():
        if name == "FROM":
            image = re.sub(r"\$\{(\w+)\}", lambda m: arguments[m[1]], rest.split()[0])
            assert image in known or (":" in image and not image.endswith(":latest")), image
        if name == "COPY" and (source := re.search(r"--from=(\S+)", rest)):
            assert source[1] in known
    used = set(re.findall(r"\$\{(\w+)\}", (ROOT / "Dockerfile").read_text(encoding="utf-8")))
    assert used == set(arguments)


def test_targets_end_alike_without_rights_and_with_a_command_that_is_there():
    found = stages()
    assert list(found) == ["wheel", "base", "cpu", "cuda"]
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for target in ("cpu", "cuda"):
        words = dict(found["base"]) | dict(found[target])
        assert found[target][0][1] == f"base AS {target}"
        assert words["USER"] == "hint" and words["WORKDIR"] == "/data"
        assert json.loads(words["ENTRYPOINT"])[0] in scripts and json.loads(words["CMD"]) == ["--help"]
        order = [name for name, _ in found[target]]
        assert order.index("RUN") < order.index("USER"), "packages are installed before rights are given up"
        extras = re.search(r"\[([a-z,]+)\]", words["RUN"])
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert extras and set(extras[1].split(",")) <= set(known)


def test_the_cpu_image_has_the_torch_that_is_tested():
    pinned = dict(line.split("==") for line in (ROOT / "constraints-cpu.txt").read_text().split())
    versions = {rest.partition("=")[2] for name, rest in instructions() if name == "ARG" and rest.startswith("TORCH=")}
    assert versions == {pinned["torch"]}


def test_pip_leaves_no_cache_and_what_is_copied_is_there_and_let_through():
    def covered(path: str, by: list[str]) -> bool:
        return any(path == a or path.startswith(f"{a}/") for a in by)

    allowed = [x[1:] for x in (ROOT / ".dockerignore").read_text().splitlines() if x.startswith("!")]
    copied: list[str] = []
    for name, rest in instructions():
        if name == "RUN":
            calls = [part for part in rest.split("&&") if "pip " in part]
            assert all("--no-cache-dir" in part for part in calls)
        if name == "COPY" and "--from" not in rest:
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists() and covered(source, allowed), source
            copied += rest.split()[:-1]
    # what the wheel is built of, as pyproject.toml says it
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = {build["project"]["readme"], *build["project"]["license-files"]}
    wanted |= {*build["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"], "hintdistill", "pyproject.toml"}
    assert [w for w in sorted(wanted) if not covered(w, allowed) or not covered(w, copied)] == []
