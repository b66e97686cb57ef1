"""What is installed is what was tested: ranges, lock, the notice at the start, and the script behind the table."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from dslight import cli, versions

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text()
PYPROJECT = (ROOT / "pyproject.toml").read_text()


@pytest.fixture(scope="module")
def script():
    """The module behind ``make test-oldest`` and its like."""
    spec = importlib.util.spec_from_file_location("ci_versions", ROOT / ".ci" / "versions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pins() -> dict[str, Requirement]:
    found = [Requirement(line) for line in LOCK.splitlines() if line and not line.startswith("#")]
    assert len(found) == len({pin.name for pin in found})  # one version of each, whatever the Python
    return {canonicalize_name(pin.name): pin for pin in found}


def test_every_line_of_the_lock_is_one_exact_version_that_belongs_to_no_index():
    for pin in pins().values():
        assert [one.operator for one in pin.specifier] == ["=="]
        assert pin.url is None
    assert not re.search(r"://|file:|--|@|sha256", LOCK)


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_the_lock_has_all_that_is_asked_for_within_the_ranges(script, python):
    locked = pins()
    here = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux"}
    for need in script.needed(PYPROJECT):
        pin = locked[canonicalize_name(need.name)]
        assert pin.marker is None or pin.marker.evaluate(here)
        assert need.specifier.contains(next(iter(pin.specifier)).version), need


def test_every_range_has_two_ends_and_the_upper_one_is_not_far_from_the_lock(script):
    locked = pins()
    for need in script.needed(PYPROJECT):
        ends = {one.operator: Version(one.version) for one in need.specifier}
        assert ends.keys() == {">=", "<"}, need
        version = Version(next(iter(locked[canonicalize_name(need.name)].specifier)).version)
        assert ends["<"].major <= version.major + 1, need


def test_oldest_and_newest_are_derived_from_the_ranges(script):
    project = """
        [project]
        name = "thing"
        dependencies = ["torch>=2.9,<2.15", "fsspec[http] >= 2024.6, != 2025.1, <= 2027; python_version > '3'"]
        [project.optional-dependencies]
        lora = ["peft~=0.18,>=0.18.1"]
        dev = ["thing[lora]"]
    """
    needs = script.needed(project)
    assert [need.name for need in needs] == ["torch", "fsspec", "peft"]
    assert [str(need.specifier) for need in script.without_upper_ends(needs)][:2] == [">=2.9", "!=2025.1,>=2024.6"]
    assert script.without_upper_ends(needs)[1].extras == {"http"}
    assert str(needs[0].specifier) == "<2.15,>=2.9"


def test_a_lower_end_that_goes_with_nothing_is_told(script):
    needs = [Requirement(text) for text in ("numpy>=1.26,<3", "PyYAML>=6", "torch>=2.9")]
    assert script.false_lower_ends(needs, "numpy==1.26.4\npyyaml==6.0\ntorch==2.9.0+cpu\nother==9\n") == []
    assert script.false_lower_ends(needs, "numpy==2.0.1\npyyaml==6.0\ntorch==2.90.0\n") == [
        "numpy>=1.26: the oldest that goes with the others is 2.0.1",
        "torch>=2.9: the oldest that goes with the others is 2.90.0",
    ]


def test_an_environment_that_is_not_the_locks_is_told_by_name(script):
    lock = "# made by\ntorch==2.14.1\nPyYAML==6.0.4\ncolorama==0.4 ; sys_platform == 'win32'\nuv==0.13"
    same = {"torch": "2.14.1+cpu", "pyyaml": "6.0.4", "uv": "0.13.0"}
    assert script.differing(lock, same) == []
    assert script.differing(lock, {"torch": "2.15.0", "pyyaml": "6.0.4"}) == [
        "torch is 2.15.0, locked: ==2.14.1",
        "uv is not installed, locked: ==0.13",
    ]


def test_the_outcome_is_counted_from_what_pytest_wrote(script, tmp_path):
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_a(): pass\n"
        "def test_b(): pass\n"
        "def test_c(): assert False\n"
        "def test_d(): pytest.skip('no')\n"
        "def test_e(missing): pass\n"
    )
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", "test_some.py"]
    subprocess.run(command, cwd=tmp_path, check=False, capture_output=True)
    assert script.counted(report.read_text()) == "2 failed, 2 passed, 1 skipped"


def test_a_row_replaces_that_of_the_same_kind_and_python_and_leaves_the_page(script):
    page = "# Versions\n\n| versions | Python | torch |\n| --- | --- | --- |\n\nThe end.\n"
    for kind, python, torch in [
        ("newest", "3.11", "2.15"),
        ("oldest", "3.11", "2.8"),
        ("locked", "3.12", "2.14"),
        ("oldest", "3.11", "2.9"),
    ]:
        page = script.with_row(page, kind, {"Python": python, "torch": torch})
    assert page == (
        "# Versions\n\n| versions | Python | torch |\n| --- | --- | --- |\n"
        "| oldest | 3.11 | 2.9 |\n| locked | 3.12 | 2.14 |\n| newest | 3.11 | 2.15 |\n\nThe end.\n"
    )


def test_the_page_has_the_columns_that_the_script_writes(script):
    page = script.TABLE.read_text()
    head = next(line for line in page.splitlines() if line.startswith("| versions"))
    assert [cell.strip() for cell in head.strip("|").split("|")] == [
        "versions", "Python", *script.SHOWN, "result", "date",
    ]  # fmt: skip


@pytest.fixture
def installed(monkeypatch):
    """``installed(needs, versions)``: what the metadata of dslight ask for, and what is there."""

    def pretend(needs: list[str] | None, there: dict[str, str]) -> None:
        def requires(name):
            if needs is None:
                raise metadata.PackageNotFoundError(name)
            return needs

        def version(name):
            if name not in there:
                raise metadata.PackageNotFoundError(name)
            return there[name]

        error = metadata.PackageNotFoundError
        monkeypatch.setattr(
            versions, "metadata", SimpleNamespace(requires=requires, version=version, PackageNotFoundError=error)
        )

    return pretend


NEEDS = ["torch<2.15,>=2.9", "timm<1.1,>=1.0.22", 'peft<0.22,>=0.18; extra == "lora"']


def test_what_is_outside_of_the_tested_range_is_named_with_its_version_and_the_range(installed):
    installed(NEEDS, {"torch": "2.15.0+cu130", "timm": "1.0.30", "peft": "9"})
    assert versions.untested() == ["torch 2.15.0+cu130 (tested: >=2.9, <2.15)"]
    installed(NEEDS, {"torch": "2.8.1"})
    assert versions.untested() == [
        "torch 2.8.1 (tested: >=2.9, <2.15)",
        "timm not installed (tested: >=1.0.22, <1.1)",
    ]


def test_what_is_inside_is_not_mentioned(installed):
    installed(NEEDS, {"torch": "2.9.0+cpu", "timm": "1.0.99"})
    assert versions.untested() == []
    installed(None, {})  # found on a path, without metadata
    assert versions.untested() == []


def test_it_is_said_once_per_process_and_by_the_first_of_several(installed, capsys, monkeypatch):
    installed(NEEDS, {"torch": "2.15.0", "timm": "2.0"})
    for rank, expected in (("1", ""), ("0", "torch 2.15.0 (tested: >=2.9, <2.15), timm 2.0 (tested: >=1.0.22, <1.1)")):
        monkeypatch.setenv("RANK", rank)
        cli._say_untested.cache_clear()
        for _ in range(2):
            assert cli.main(["plan", "no/such/recipe.yaml"]) == 1
        said = [line for line in capsys.readouterr().err.splitlines() if "not tested" in line]
        assert said == ([f"dslight: not tested with {expected}"] if expected else [])
    cli._say_untested.cache_clear()


def test_the_ranges_of_the_notice_are_those_of_pyproject_and_cost_no_heavy_import():
    needs = {str(Requirement(text)) for text in tomllib.loads(PYPROJECT)["project"]["dependencies"]}
    own = {str(Requirement(text)) for text in metadata.requires("dslight") or () if "extra ==" not in text}
    assert own == needs  # else: make install
    program = "import sys, dslight.versions as v; v.untested(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "lightning", "transformers", "numpy", "pydantic"} & set(done.stdout.split())
