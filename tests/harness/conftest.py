"""A run to put under a harness, and somebody else's documents."""

import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from dslight.data.sample import parse_sample
from dslight.data.shards import ShardReader
from dslight.recipe.build import build
from dslight.recipe.compose import compose, to_yaml

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart" / "deepstack_l.yaml"


@pytest.fixture(scope="module")
def run(pages, tmp_path_factory) -> Path:
    """A run's folder as a training leaves it, with random weights of which all answers differ."""
    folder = tmp_path_factory.mktemp("harness") / "run"
    recipe = compose(
        QUICKSTART,
        [
            f"data.train=[{pages / 'train'}]", f"data.val.pages.root={pages / 'val'}", f"run_dir={folder}",
            f"model.language_model.init_args.tokenizer={pages / 'tokenizer'}",
        ],
    )  # fmt: skip
    del recipe["weights"]
    torch.manual_seed(0)
    model = build(recipe).model
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.3)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(to_yaml(recipe))
    torch.save({"state_dict": model.state_dict()}, folder / "checkpoints" / "step-00000001.ckpt")
    return folder


@pytest.fixture(scope="module")
def docs(pages):
    """The validation questions as the documents of somebody else's task."""
    reader = ShardReader(pages / "val")
    found = []
    for i in range(len(reader)):
        sample = parse_sample(str(i), reader.read(i))
        picture = Image.open(io.BytesIO(sample.images[0]))
        found += [{"q": q.text, "a": q.references, "picture": picture, "id": q.question_id} for q in sample.questions]
    assert len(found) == 24
    return found


@pytest.fixture(scope="module")
def validated(run) -> dict[str, str]:
    """The replies of the validation loop by question."""
    from dslight.run.evaluate import trained

    experiment = trained(compose(run / "recipe.yaml", []))
    experiment.data.setup("validate")
    model = experiment.model.eval()
    (source,) = model.generation
    replies = {}
    with torch.inference_mode():
        for batch in experiment.data.val_dataloader()[0]:
            found = model.answer_batch(batch, **model.generation[source])
            replies |= {q.question_id: reply for q, reply in zip(batch.questions, found, strict=True)}
    return replies
