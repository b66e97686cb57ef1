"""Pixels and ids in, the authors' logits and loss out; and every stage between, where the case holds it."""

import pytest
import torch

from dslight.data.sample import BadSample
from dslight.nn.loss import next_token_loss
from dslight.types import IGNORE

pytestmark = pytest.mark.golden_model


@torch.no_grad()
def test_logits_and_loss_are_the_authors(logits_case, tmp_path, close):
    model = logits_case.load(tmp_path)
    batch, theirs = logits_case.batch(model), logits_case.outputs
    real = batch.attention_mask.bool()
    assert torch.equal(real, theirs["expanded_attention_mask"].bool())
    assert torch.equal(batch.labels, theirs["expanded_labels"])
    logits = model(batch)
    close(logits[real], theirs["logits"][real])
    total, count = next_token_loss(logits, batch.labels)
    assert (total / count).item() == pytest.approx(theirs["loss"].item(), abs=2e-5)


def test_an_image_stands_where_the_authors_lay_it(logits_case):
    mask, theirs = logits_case.batch(logits_case.compose()).visual_mask, logits_case.outputs
    expected = torch.zeros_like(mask)
    for (row, at), length in zip(theirs["image_positions"].tolist(), theirs["image_lengths"].tolist(), strict=True):
        expected[row, at : at + length] = True
    assert torch.equal(mask, expected)


@torch.no_grad()
def test_features_of_the_encoder_are_the_authors(features_case, tmp_path, close):
    model, views = features_case.load(tmp_path), features_case.views()
    if features_case.family == "deepstack_v":
        (ours,) = model.stacking(model.vision_encoder, views)
        ours = ours.flatten(1, 2)
    else:  # base views first, all crops behind; of HD base views and crops first, all fine crops behind
        index = [views.tile_index, views.fine_index] if views.fine else [views.base_index, views.crop_index]
        (ours,) = model.vision_encoder(views.pixels[torch.cat(index)], taps=model.stacking.taps())
    close(ours, features_case.outputs["vision_features"])


@torch.no_grad()
def test_base_tokens_and_stacks_are_the_authors(tokens_case, tmp_path, close):
    model, theirs, views = tokens_case.load(tmp_path), tokens_case.outputs, tokens_case.views()
    slots, images = model.see(views).slots, len(views)
    assert any(name.startswith(("base_tokens", "stack_groups")) for name in theirs)
    if "base_tokens" in theirs:
        close(slots[0].unflatten(0, (images, -1)), theirs["base_tokens"])
    if "stack_groups" in theirs:
        close(slots[1:].unflatten(1, (images, -1)), theirs["stack_groups"])
    for level in range(len(slots)):  # of HD: images of different lengths
        name = f"stack_groups.{level - 1}" if level else "base_tokens"
        if f"{name}.0" in theirs:
            close(slots[level], torch.cat([theirs[f"{name}.{i}"] for i in range(images)]))


@torch.no_grad()
def test_the_projected_base_view_is_the_authors(global_case, tmp_path, close):
    """Also where it is not what the sequence begins with, or is pooled there."""
    model, theirs, views = global_case.load(tmp_path), global_case.outputs["global_tokens"], global_case.views()
    if global_case.family == "deepstack_v":
        close(model.see(views).base.unflatten(0, (len(views), -1)), theirs)
    elif global_case.family == "baseline_scaledown":
        maps = theirs.unflatten(1, model.vision_encoder.grid).permute(0, 3, 1, 2)
        pooled = torch.nn.functional.avg_pool2d(maps, 2).flatten(2).transpose(1, 2)
        close(model.see(views).base.unflatten(0, (len(views), -1)), pooled)
    else:
        (features,) = model.vision_encoder(views.base(), taps=model.stacking.taps())
        close(model.projector.net(features), theirs)


@torch.no_grad()
def test_the_residual_stream_is_the_authors_at_every_layer(stream_case, tmp_path, close):
    """Behind the add of each layer: what its own first norm is given; and behind the last norm."""
    model, seen, embedded = stream_case.load(tmp_path), [], []
    decoder, batch = model.language_model.decoder, stream_case.batch(model)
    decoder.layers[0].register_forward_pre_hook(lambda _, args, kwargs: embedded.append(args[0]), with_kwargs=True)
    for layer in decoder.layers:
        layer.input_layernorm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    decoder.norm.register_forward_hook(lambda _, args, output: seen.append(output))
    model(batch)
    real, theirs = batch.attention_mask.bool(), stream_case.outputs
    if "inputs_embeds" in theirs:  # before any stack
        close(embedded[0][real], theirs["inputs_embeds"][real])
    compared = [index for index in range(len(seen)) if f"hidden_states.{index}" in theirs]
    assert compared
    for index in compared:
        close(seen[index][real], theirs[f"hidden_states.{index}"][real])


@torch.no_grad()
def test_the_encoders_stream_is_the_authors_at_every_layer(encoder_stream_case, tmp_path, close):
    """All views as far as the first site, the base views alone from there on."""
    model, theirs = encoder_stream_case.load(tmp_path), encoder_stream_case.outputs
    seen = [[] for _ in model.vision_encoder.layers]
    for index, layer in enumerate(model.vision_encoder.layers):
        layer.layer_norm1.register_forward_pre_hook(lambda _, args, at=seen[index]: at.append(args[0]))
    model.see(encoder_stream_case.views())
    compared = [index for index, calls in enumerate(seen) if calls and f"vision_hidden_states.{index}" in theirs]
    assert max(compared) > encoder_stream_case.start
    for index in compared:
        ours = torch.cat(seen[index][::-1]) if index < encoder_stream_case.start else seen[index][-1]
        close(ours, theirs[f"vision_hidden_states.{index}"])


@torch.no_grad()
def test_a_cut_sequence_has_the_logits_of_its_beginning(truncated_case, tmp_path, close):
    """The authors cut through an image; attention is causal, so that is where our whole run has to agree."""
    model, theirs, limit = truncated_case.load(tmp_path), truncated_case.outputs, truncated_case.config["max_length"]
    batch = truncated_case.batch(model)
    real = batch.attention_mask[:, :limit].bool()
    assert torch.equal(real, theirs["expanded_attention_mask"].bool())
    assert torch.equal(batch.labels[:, :limit], theirs["expanded_labels"])
    logits = model(batch)[:, :limit]
    close(logits[real], theirs["logits"][real])
    total, count = next_token_loss(logits, batch.labels[:, :limit])
    assert (total / count).item() == pytest.approx(theirs["loss"].item(), abs=2e-5)


@torch.no_grad()
def test_collate_refuses_to_cut_an_image_by_name(truncated_case, tmp_path, close):
    """Rows that lose text only are cut, and have the authors' logits; a row that would lose a part of its image is
    refused, or dropped as one ignored position.
    """
    model, theirs, limit = truncated_case.load(tmp_path), truncated_case.outputs, truncated_case.config["max_length"]
    ends = [int(row.nonzero().max()) + 1 for row in truncated_case.batch(model).visual_mask]
    items = truncated_case.items()
    strict = truncated_case.collate(model, max_length=limit)
    lenient = truncated_case.collate(model, max_length=limit, on_unusable="drop")
    for row, (item, end) in enumerate(zip(items, ends, strict=True)):
        mute = bool((theirs["expanded_labels"][row] == IGNORE).all())
        if end > limit or mute:
            problem = f"max_length {limit} would cut an image" if end > limit else f"first {limit} positions"
            with pytest.raises(BadSample, match=rf"^{item.key}: .* {problem};"):
                strict([item])
            dropped = lenient([item])
            assert dropped.input_ids.shape == (1, 1)
            assert dropped.views is None
        else:
            batch = strict([item])
            close(model(batch)[0], theirs["logits"][row][theirs["expanded_attention_mask"][row].bool()])
