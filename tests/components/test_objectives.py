"""Dense pre-training of a vision encoder alone, through Lightning's Trainer."""

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from dslight.components import PatchClassification
from dslight.train.optim import PartTraining, Stage
from dslight.types import DenseBatch, Views


def bright_patches(make_views, grids, seed):
    """Which quarter of the brightness range a patch lies in: a target that the pixels do hold."""
    views = make_views(grids, seed)
    level = torch.randint(0, 4, (len(views.pixels), 4, 4), generator=torch.Generator().manual_seed(seed))
    plane = F.interpolate(level[:, None].float(), scale_factor=4)  # nearest
    views.pixels.copy_((plane * 64 + 16).expand(-1, 3, -1, -1))
    return DenseBatch(views, level.flatten(1), ["page"] * len(views), torch.ones(len(views), dtype=torch.bool))


def test_loss_and_accuracies_are_torchs_over_each_kind_of_view(tiny_encoder, make_views):
    encoder, objective = tiny_encoder(), PatchClassification(16, 4)
    batch = bright_patches(make_views, [(2, 2), (1, 2)], 0)
    scores = objective(encoder, batch)
    features, base = encoder(batch.views.pixels)[0], torch.tensor([0, 5])
    crop = torch.tensor([1, 2, 3, 4, 6, 7])
    losses = []
    for name, head, index in (("base", objective.base_head, base), ("crop", objective.crop_head, crop)):
        logits, targets = head(features[index]), batch.targets[index]
        losses.append(F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
        torch.testing.assert_close(scores[f"{name}_accuracy"], (logits.argmax(-1) == targets).float().mean())
    torch.testing.assert_close(scores["loss"], (losses[0] + losses[1]) / 2)


def test_without_crops_the_loss_is_that_of_the_base_views_and_every_head_has_a_gradient(tiny_encoder, make_views):
    encoder, objective = tiny_encoder(), PatchClassification(16, 4)
    batch = bright_patches(make_views, [(0, 0)] * 3, 0)
    scores = objective(encoder, batch)
    logits = objective.base_head(encoder(batch.views.pixels)[0]).flatten(0, 1)
    torch.testing.assert_close(scores["loss"], F.cross_entropy(logits, batch.targets.flatten()))
    scores["loss"].backward()
    assert objective.crop_head.weight.grad is not None
    assert not objective.crop_head.weight.grad.any()


def test_a_base_patch_may_also_name_the_classes_of_the_crops_patches_at_its_place(tiny_encoder, make_views):
    encoder, objective = tiny_encoder(), PatchClassification(16, 4, parts=(2, 2))
    batch = bright_patches(make_views, [(2, 2)] * 2, 0)
    scores = objective(encoder, batch)
    features = encoder(batch.views.pixels)[0][[0, 5]]
    logits = objective.part_heads(features).view(2, 4, 4, 4, 4)  # image, row, column, part, class
    expected = torch.zeros(())
    for image in range(2):
        crops = batch.targets.view(2, 5, 4, 4)[image, 1:]
        for row in range(4):
            for column in range(4):
                for part in range(4):
                    y, x = 2 * row + part // 2, 2 * column + part % 2
                    target = crops[y // 4 * 2 + x // 4, y % 4, x % 4]
                    expected = expected + F.cross_entropy(logits[image, row, column, part], target) / 128
    without = PatchClassification(16, 4)
    without.load_state_dict(objective.state_dict(), strict=False)
    torch.testing.assert_close(scores["loss"], without(encoder, batch)["loss"] + expected / 2)
    assert 0 < scores["part_accuracy"] < 1


def test_one_head_may_read_both_kinds_of_view(tiny_encoder, make_views):
    encoder, objective = tiny_encoder(), PatchClassification(16, 4, one_head=True)
    batch = bright_patches(make_views, [(2, 2)], 0)
    same = PatchClassification(16, 4)
    same.base_head = same.crop_head = objective.base_head
    torch.testing.assert_close(objective(encoder, batch), same(encoder, batch))
    assert len(list(objective.parameters())) == 2


def test_without_crops_no_crop_passes_the_encoder_and_their_classes_still_serve(tiny_encoder, make_views):
    encoder, objective = tiny_encoder(), PatchClassification(16, 4, crops=False, parts=(2, 2))
    batch = bright_patches(make_views, [(2, 2)] * 2, 0)
    seen = []
    encoder.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    scores = objective(encoder, batch)
    assert seen == [2]
    assert set(scores) == {"loss", "base_accuracy", "part_accuracy"}


def test_an_image_with_another_grid_than_that_of_parts_is_refused(tiny_encoder, make_views):
    batch = bright_patches(make_views, [(2, 2), (1, 2)], 0)
    with pytest.raises(ValueError, match=r"objective.parts: \(2, 2\), but page has a grid of \(1, 2\) crops"):
        PatchClassification(16, 4, parts=(2, 2))(tiny_encoder(), batch)
    with pytest.raises(ValueError, match="parts: "):
        PatchClassification(16, 4, parts=(0, 2))


QUIET = {
    "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
    "enable_checkpointing": False,
}  # fmt: skip


def test_repeats_that_pad_a_rank_do_not_count_in_validation(tiny_encoder, make_views):
    encoder = tiny_encoder()
    encoder.objective = PatchClassification(16, 4)
    whole = bright_patches(make_views, [(1, 2)] * 5, 0)
    views = [3 * image + view for image in (0, 1, 2, 3, 4, 0, 1, 0) for view in range(3)]
    padded = [
        DenseBatch(
            Views(whole.views.pixels[views[i : i + 6]], [(1, 2)] * 2), whole.targets[views[i : i + 6]], [], valid
        )
        for i, valid in zip(range(0, 24, 6), torch.arange(8).view(4, 2) < 5, strict=True)
    ]
    trainer = pl.Trainer(**QUIET)
    (found,) = trainer.validate(encoder, DataLoader(padded, batch_size=None), verbose=False)
    expected = encoder.objective(encoder, whole)
    assert found == {f"val/{name}": pytest.approx(float(value.detach()), abs=1e-5) for name, value in expected.items()}


def test_several_validation_sources_are_scored_one_by_one(tiny_encoder, make_views):
    encoder = tiny_encoder()
    encoder.objective = PatchClassification(16, 4)
    batches = [bright_patches(make_views, [(1, 2)] * 2, seed) for seed in range(2)]
    loaders = [DataLoader([batch], batch_size=None) for batch in batches]
    found = pl.Trainer(**QUIET).validate(encoder, loaders, verbose=False)
    for i, batch in enumerate(batches):
        expected = float(encoder.objective(encoder, batch)["loss"].detach())
        assert found[i][f"val/loss/dataloader_idx_{i}"] == pytest.approx(expected, abs=1e-5)


def test_an_encoder_fitted_alone_learns(tiny_encoder, make_views):
    pl.seed_everything(0, verbose=False)
    encoder = tiny_encoder()
    encoder.objective = PatchClassification(16, 4)
    encoder.stage = Stage({"vision_encoder": PartTraining(3e-3), "objective": PartTraining(3e-3)}, schedule="constant")
    encoder.stage.freeze(encoder.parts())
    batches = [bright_patches(make_views, [(2, 2)] * 4, seed) for seed in range(61)]
    train, held_out = (DataLoader(part, batch_size=None) for part in (batches[:60], batches[60:]))
    trainer = pl.Trainer(max_epochs=1, **QUIET)
    trainer.fit(encoder, train, held_out)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert set(metrics) >= {"train/loss", "val/loss", "val/base_accuracy", "val/crop_accuracy"}
    assert metrics["val/crop_accuracy"] > 0.6  # chance: 0.25
