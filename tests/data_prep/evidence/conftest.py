"""A few of the evidence's pages, as shards."""

from pathlib import Path

import pytest

SEED = 3
FEW = ["--train-pages", "12", "--val-pages", "6", "--align-pages", "8", "--letter-sheets", "6", "--seed"]


@pytest.fixture(scope="session")
def evidence(tmp_path_factory) -> Path:
    from data_prep.evidence.pages import main

    folder = tmp_path_factory.mktemp("evidence")
    main(["--out", str(folder), *FEW, str(SEED)])
    return folder
