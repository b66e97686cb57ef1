"""The tests with the oldest, the newest or the locked versions of what dslight needs, and a row of docs/versions.md.

    python .ci/versions.py oldest|newest|locked [--row] [ARGUMENTS OF PYTEST]

oldest  .venv-oldest: the lower ends of the ranges in pyproject.toml
newest  .venv-newest: the newest releases that go together, as if the ranges had no upper ends
locked  the environment that runs this script, which has to be that of requirements.lock
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "versions.md"
KINDS = ("oldest", "locked", "newest")
SHOWN = ("torch", "torchvision", "lightning", "timm", "transformers", "torchmetrics", "peft", "jsonargparse", "numpy")
SHOWN += ("pillow",)


def needed(pyproject: str) -> list[Requirement]:
    """What a ``pyproject.toml`` asks for, with all of its extras."""
    project = tomllib.loads(pyproject)["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    return [need for need in map(Requirement, texts) if need.name != project["name"]]


def without_upper_ends(needs: Iterable[Requirement]) -> list[Requirement]:
    """The same, but for the ends of ranges."""
    found = [Requirement(str(need)) for need in needs]
    for need in found:
        need.specifier = SpecifierSet(",".join(str(one) for one in need.specifier if not one.operator.startswith("<")))
    return found


def false_lower_ends(needs: Iterable[Requirement], chosen: str) -> list[str]:
    """Lower ends of ranges with which nothing else goes, so that the oldest versions that go together are newer."""
    pins = {canonicalize_name(pin.name): str(pin.specifier)[2:] for pin in map(Requirement, chosen.splitlines())}
    ends = [
        (canonicalize_name(need.name), one.version) for need in needs for one in need.specifier if one.operator == ">="
    ]
    return [
        f"{name}>={end}: the oldest that goes with the others is {pins[name]}"
        for name, end in ends
        if Version(pins[name]) > Version(end) and not f"{pins[name]}.".startswith(f"{end}.")
    ]


def differing(lock: str, installed: dict[str, str]) -> list[str]:
    """What a lock names, for this Python and system, and is installed otherwise, or not at all."""
    pins = [Requirement(line) for line in lock.splitlines() if line.strip() and not line.startswith("#")]
    here = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    versions = {pin: installed.get(canonicalize_name(pin.name)) for pin in here}
    return [
        f"{pin.name} is {version or 'not installed'}, locked: {pin.specifier}"
        for pin, version in versions.items()
        if version is None or not pin.specifier.contains(version, prereleases=True)
    ]


def counted(junit: str) -> str:
    """The outcome of a run of pytest, from its JUnit XML: ``2 failed, 40 passed, 3 skipped``."""
    cases = list(ET.fromstring(junit).iter("testcase"))
    found = {
        "failed": sum(case.find("failure") is not None or case.find("error") is not None for case in cases),
        "skipped": sum(case.find("skipped") is not None for case in cases),
    }
    found["passed"] = len(cases) - sum(found.values())
    return ", ".join(f"{found[how]} {how}" for how in ("failed", "passed", "skipped") if found[how] or how == "passed")


def with_row(page: str, kind: str, cells: dict[str, str]) -> str:
    """A page whose one table has a row for these versions: that of the same kind and Python is replaced."""
    lines = page.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("| versions |"))
    last = next((i for i in range(first, len(lines)) if not lines[i].startswith("|")), len(lines))
    head = ["versions", *cells]
    rows = {}
    for line in [*lines[first + 2 : last], f"| {' | '.join([kind, *cells.values()])} |"]:
        row = [cell.strip() for cell in line.strip("|").split("|")]
        rows[KINDS.index(row[0]), row[1]] = row
    table = [head, ["---"] * len(head), *(rows[key] for key in sorted(rows))]
    lines[first:last] = [f"| {' | '.join(row)} |" for row in table]
    return "\n".join(lines) + "\n"


def make(kind: str, python: Path) -> None:
    """Make the environment anew, or bring it up to date."""
    needs = needed((ROOT / "pyproject.toml").read_text())
    oldest = kind == "oldest"
    asked = "\n".join(map(str, needs if oldest else without_upper_ends(needs)))
    home = python.parents[1]
    chosen = home.with_suffix(".txt")
    how = ["--resolution", "lowest-direct" if oldest else "highest", "--python", sys.executable, "--upgrade"]
    uv("pip", "compile", "-", "--no-annotate", "--no-header", *how, "--output-file", chosen, text=asked)
    if oldest and (wrong := false_lower_ends(needs, chosen.read_text())):
        sys.exit("lower ends in pyproject.toml that cannot be installed:\n  " + "\n  ".join(wrong))
    if not python.exists():
        uv("venv", "--python", sys.executable, home)
    uv("pip", "sync", "--python", python, chosen)
    uv("pip", "install", "--python", python, "--no-deps", "--editable", ".")


def uv(*arguments: str | Path, text: str | None = None) -> None:
    """Run uv."""
    command = [sys.executable, "-m", "uv", arguments[0], "--quiet", *arguments[1:]]
    subprocess.run([str(one) for one in command], cwd=ROOT, check=True, input=text, text=True)


def versions_in(python: Path) -> dict[str, str]:
    """What an environment holds."""
    ask = "import json, importlib.metadata as m; print(json.dumps([(d.name, d.version) for d in m.distributions()]))"
    done = subprocess.run([str(python), "-c", ask], check=True, capture_output=True, text=True, cwd=ROOT.parent)
    return {canonicalize_name(name): version for name, version in reversed(json.loads(done.stdout))}


def main(kind: str, *arguments: str) -> int:
    """Returns pytest's exit code."""
    row = "--row" in arguments
    python = Path(sys.executable) if kind == "locked" else ROOT / f".venv-{kind}" / "bin" / "python"
    if kind != "locked":
        make(kind, python)
    versions = versions_in(python)
    if kind == "locked" and (wrong := differing((ROOT / "requirements.lock").read_text(), versions)):
        print("not what requirements.lock says; make install:", *wrong, sep="\n  ", file=sys.stderr)
        return 2
    report = ROOT / f".venv-{kind}.xml"
    command = [str(python), "-m", "pytest", f"--junitxml={report}", *(one for one in arguments if one != "--row")]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    code = subprocess.run(command, cwd=ROOT, env=os.environ | threads, check=False).returncode
    cells = {"Python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    cells |= {name: versions.get(name, "") for name in SHOWN}
    cells |= {"result": counted(report.read_text()), "date": datetime.now(UTC).date().isoformat()}
    if row:
        TABLE.write_text(with_row(TABLE.read_text(), kind, cells))
    print(f"{kind}:", ", ".join(f"{name} {value}" if name in SHOWN else value for name, value in cells.items()))
    return code


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in KINDS:
        sys.exit(main(*sys.argv[1:]))
    sys.exit(f"usage: python .ci/versions.py {'|'.join(KINDS)} [--row] [ARGUMENTS OF PYTEST]")
