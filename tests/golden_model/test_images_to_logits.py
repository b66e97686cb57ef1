"""From the picture to the logits: grid, resizing, normalisation, encoder, stacking, language model."""

from math import isqrt

import pytest
import torch

from dslight.components import HFVisionEncoder
from dslight.data.collate import Item
from dslight.data.images import AspectGridViews, HDViews, SingleView
from dslight.nn.loss import next_token_loss

pytestmark = pytest.mark.golden_model


def policy(case):
    if case.family.startswith("baseline"):
        return SingleView()
    if case.family == "deepstack_l_hd":
        crops = case.config["num_crops"]
        return HDViews(crops, up=isqrt(crops))
    return AspectGridViews(case.config["num_crops"])


@torch.no_grad()
def test_images_become_the_authors_logits(images_case, tmp_path, close):
    model = images_case.load(tmp_path, encoder=HFVisionEncoder)
    images = images_case.tensors(images_case.config["images_file"])
    items, size = [], model.vision_encoder.image_size
    labels = images_case.inputs["labels"]
    for row, image in enumerate(images_case.config["images"]):
        picture = images[f"image.{image['image']}"].numpy()
        pixels, grid = policy(images_case)(picture, size)
        assert pixels.dtype == torch.uint8
        if f"pixel_values.{row}" in images_case.inputs:  # they are those of the authors' processor
            close(model.vision_encoder.normalise(pixels), images_case.inputs[f"pixel_values.{row}"], atol=1e-5)
        ids = images_case.ids[row]
        items.append(Item(f"image {row}", ids, labels[row][: len(ids)].tolist(), [pixels], [grid], [picture.shape[:2]]))
    assert [item.grids[0] for item in items] == images_case.grids
    batch, theirs = images_case.collate(model)(items), images_case.outputs
    logits, real = model(batch), batch.attention_mask.bool()
    close(logits[real], theirs["logits"][real])
    total, count = next_token_loss(logits, batch.labels)
    assert (total / count).item() == pytest.approx(theirs["loss"].item(), abs=2e-5)
