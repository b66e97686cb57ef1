"""Transformers learns of our classes from ``import dslight`` alone, in either order, and nothing heavy is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

OPEN = "AutoConfig.from_pretrained({folder!r}); AutoProcessor.from_pretrained({folder!r})"
LIGHT = (
    "import sys, dslight; assert not {{'torch', 'transformers', 'numpy'}} & set(sys.modules), 'heavy'; "
    "from transformers import AutoConfig, AutoProcessor; "
)

LATE = """
from transformers import AutoConfig, AutoProcessor
try:
    {open}
except ValueError as error:
    print(error)
import dslight
{open}
print("opened")
"""


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (LIGHT + OPEN + "; assert 'lightning' not in sys.modules; print('opened')", ["opened"]),
        (LATE.format(open=OPEN), ["model type `dslight`", "opened"]),
    ],
    ids=["dslight first", "transformers first, which knows of none until then"],
)
def test_a_folder_opens_once_dslight_is_imported(opened, code, said):
    done = subprocess.run(
        [sys.executable, "-c", code.format(folder=str(opened.folder))], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert [part for part in said if part in done.stdout] == said
