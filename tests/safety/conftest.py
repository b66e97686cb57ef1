"""A tiny run of the quickstart's task, as a recipe file."""

from __future__ import annotations

from pathlib import Path

import pytest

from dslight.recipe.compose import compose, to_yaml

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart" / "deepstack_l.yaml"


@pytest.fixture(scope="session")
def recipe(pages, tmp_path_factory) -> Path:
    """A recipe file of three steps that saves after each."""
    values = compose(
        QUICKSTART,
        [
            f"data.train=[{pages / 'train'}]", f"data.val.pages.root={pages / 'val'}", "data.val_batch_size=8",
            "data.global_batch_size=8", "data.micro_batch_size=8", "checkpoint_every=1", "stage.warmup_steps=1",
            f"model.language_model.init_args.tokenizer={pages / 'tokenizer'}", "trainer.max_steps=3",
            "trainer.log_every_n_steps=1", "trainer.enable_progress_bar=false",
        ],
    )  # fmt: skip
    del values["weights"]
    file = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    file.write_text(to_yaml(values))
    return file
