"""The faults of ``.ci/faults.py`` are still lines of the code."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
spec = spec_from_file_location("faults_tried", ROOT / ".ci" / "faults.py")
faults = module_from_spec(spec)
spec.loader.exec_module(faults)


@pytest.mark.parametrize(("file", "was", "fault", "tests"), faults.FAULTS, ids=range(len(faults.FAULTS)))
def test_a_fault_can_be_put_in(file, was, fault, tests):
    assert (ROOT / "dslight" / file).read_text().count(was) == 1
    assert fault != was
    assert all((ROOT / "tests" / one).exists() for one in tests.split())
