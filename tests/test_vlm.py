"""The composed model: what holds for every scheduler, and what Lightning's Trainer makes of it.

That its logits, gradients and answers are those of the authors' code is in ``golden_model``.
"""

import copy
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from dslight.components import (
    ChannelConcat,
    ConditionedGate,
    CrossAttention,
    DeepStack,
    DeepStackHD,
    DeepStackL,
    DeepStackTaps,
    DeepStackV,
    GatedAdd,
    HFCausalLM,
    LowResolution,
    MLPProjector,
    SequenceConcat,
    Stack,
)
from dslight.metrics.answers import ExactMatch
from dslight.metrics.base import Answer, Verdict
from dslight.nn.loss import next_token_loss
from dslight.train.optim import PartTraining, Stage
from dslight.types import IGNORE, Batch, Question
from dslight.vlm import VLM

SCHEDULERS = {
    "LowResolution": LowResolution,
    "DeepStackL": partial(DeepStackL, num_stacks=3, start=1),
    "DeepStackV": partial(DeepStackV, num_stacks=3, start=1),
    "SequenceConcat": SequenceConcat,
    "SequenceConcat with newlines": partial(SequenceConcat, newline=True),
    "ChannelConcat": partial(ChannelConcat, num_crops=3),
    "DeepStackHD": partial(DeepStackHD, start=0),
    "DeepStackTaps": partial(DeepStackTaps, taps=[1, 2]),
    "CrossAttention": partial(CrossAttention, num_layers=2, num_crops=3, heads=2, head_dim=8, init=0.5),
    "stacks alone": lambda: DeepStack([Stack([1], "base", "identity"), Stack([2, 3, 3], "crops")], base="zero"),
    "both sides": lambda: DeepStack([Stack([1, 2, 3])], [Stack([1, 2, 3])]),
    "gated": partial(DeepStackL, num_stacks=3, operation=partial(GatedAdd, init=0.5)),
    "gated by the decoder": partial(DeepStackL, num_stacks=3, operation=partial(ConditionedGate, init=0.5)),
}
PER_LEVEL = partial(MLPProjector, per_level=True)


# --- every scheduler ------------------------------------------------------------------------------------------------


@pytest.fixture
def make_vlm(tiny_encoder, tiny_lm):
    def make(name, projector=MLPProjector):
        return VLM(tiny_encoder(), projector, SCHEDULERS[name](), tiny_lm())

    return make


def make_batch(vlm, make_views, images=((1, 2), (0, 0)), seed=0):
    """Row 0 has all the images, row 1 is text only; left-padded."""
    layout = vlm.stacking.slot_layout(vlm.vision_encoder, vlm.projector)
    slots = sum(layout(grid) for grid in images)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 64, (2, slots + 8), generator=generator)
    mask, attention = torch.zeros_like(ids, dtype=torch.bool), torch.ones_like(ids)
    mask[0, 2 : 2 + slots] = True
    attention[1, :3] = 0
    labels = torch.where(torch.arange(ids.shape[1]) >= slots + 3, ids, IGNORE)
    return Batch(
        ids,
        attention,
        mask,
        labels,
        make_views(list(images), fine=vlm.stacking.fine) if images else None,
        keys=["a", "b"],
    )


@pytest.mark.parametrize("projector", [MLPProjector, PER_LEVEL])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_gradient_reaches_every_parameter(make_vlm, make_views, name, projector):
    vlm = make_vlm(name, projector).train()
    batch = make_batch(vlm, make_views, images=[(1, 3), (1, 2)])
    next_token_loss(vlm(batch), batch.labels)[0].backward()
    without = [n for n, p in vlm.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_batch_of_text_has_zero_gradients_and_not_none(make_vlm, make_views, name):
    vlm = make_vlm(name, PER_LEVEL).train()
    batch = make_batch(vlm, make_views, images=())
    loss, _ = next_token_loss(vlm(batch), batch.labels)
    loss.backward()
    for part in (vlm.vision_encoder, vlm.projector, vlm.stacking):
        assert all(p.grad is not None and not p.grad.any() for p in part.parameters())
    assert all(p.grad is not None for p in vlm.language_model.parameters())


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_batch_of_text_has_transformers_own_loss(make_vlm, make_views, name):
    vlm = make_vlm(name)
    batch = make_batch(vlm, make_views, images=())
    total, count = next_token_loss(vlm(batch), batch.labels)
    positions = (batch.attention_mask.cumsum(-1) - 1).clamp(min=0)
    theirs = vlm.language_model.model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=positions, labels=batch.labels
    )
    torch.testing.assert_close(total / count, theirs.loss)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_only_the_row_of_an_image_sees_it(make_vlm, make_views, name):
    vlm = make_vlm(name)
    batch = make_batch(vlm, make_views)
    other = copy.copy(batch)
    other.views = make_views(batch.views.grids, seed=9, fine=vlm.stacking.fine)
    difference = (vlm(batch) - vlm(other)).abs().amax(-1)
    assert not difference[1].any()
    assert not difference[0, :2].any()  # before the image: causal
    assert (difference[0, 2:] > 1e-4).all()


@pytest.mark.parametrize("projector", [MLPProjector, PER_LEVEL])
def test_a_stack_without_a_crop_adds_nothing(make_vlm, make_views, projector):
    """The authors pad with zeros behind the projector; its biases would make a constant of a zero before it."""
    vlm = make_vlm("DeepStackL", projector)
    tokens = vlm.see(make_views([(1, 3), (1, 2), (0, 0)])).slots.unflatten(1, (-1, 16))
    assert tokens.abs().amax((2, 3)).bool().tolist() == [
        [True, True, True],
        [True, True, False],
        [True, True, False],
        [True, False, False],
    ]


@pytest.mark.parametrize("name", ["DeepStackL", "DeepStackV", "SequenceConcat"])
def test_the_crops_change_the_answer_and_the_baseline_does_not_look(make_vlm, make_views, name):
    for vlm, looks in ((make_vlm(name), True), (make_vlm("LowResolution"), False)):
        batch = make_batch(vlm, make_views, images=[(1, 2)])
        before = vlm(batch)
        batch.views.pixels[1:] = 255 - batch.views.pixels[1:]
        assert bool((vlm(batch) - before).abs().max() > 1e-3) == looks


def test_parts_that_do_not_fit_are_refused_with_the_key(tiny_encoder, tiny_lm):
    message = r"^stacking\.start: 4 stacks at layers 1, 2, 3, 4 need 5 layers; the language model has 4$"
    with pytest.raises(ValueError, match=message):
        VLM(tiny_encoder(), MLPProjector, DeepStackL(num_stacks=4), tiny_lm())


def test_slots_and_placeholders_that_disagree_are_refused(make_vlm, make_views):
    vlm = make_vlm("DeepStackL")
    batch = make_batch(vlm, make_views)
    batch.visual_mask[0, 2] = False
    with pytest.raises(ValueError, match="stacks has 32 visual tokens, the sequence has 31 visual slots"):
        vlm(batch)


# --- under Lightning ------------------------------------------------------------------------------------------------

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


def fit(vlm, batches, train, steps, optimizer=torch.optim.AdamW):
    train = {name: PartTraining(lr) for name, lr in train.items()}
    vlm.stage = Stage(train, optimizer, schedule="constant")
    vlm.stage.freeze(vlm.parts())
    trainer = pl.Trainer(max_steps=steps, accelerator="cpu", **QUIET)
    trainer.fit(vlm, DataLoader(batches, batch_size=None))
    return trainer


@pytest.mark.parametrize("name", SCHEDULERS)
def test_training_lowers_the_loss_and_leaves_frozen_parts_alone(make_vlm, make_views, name):
    vlm = make_vlm(name).train()
    batches = [make_batch(vlm, make_views)] * 30
    before = {n: p.clone() for n, p in vlm.named_parameters()}
    with torch.no_grad():
        first, count = next_token_loss(vlm(batches[0]), batches[0].labels)
    trainer = fit(vlm, batches, {"projector": 1e-2, "language_model": 1e-2}, steps=30)
    last = float(trainer.callback_metrics["train/loss"])
    assert last < 0.5 * float(first / count)
    changed = {n.split(".")[0] for n, p in vlm.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"projector", "language_model"}
    assert not vlm.vision_encoder.model.blocks[0].training
    assert vlm.language_model.training


def test_one_step_is_the_step_of_torchs_mean_loss(make_vlm, make_views):
    vlm = make_vlm("DeepStackL").train()
    reference, batch = copy.deepcopy(vlm), make_batch(vlm, make_views)
    trainer = fit(vlm, [batch], {"projector": 1e-2}, steps=1, optimizer=torch.optim.SGD)  # Adam would hide the scale
    logits = reference(batch)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten())
    loss.backward()
    torch.optim.SGD(reference.projector.parameters(), lr=1e-2).step()
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(loss.item(), rel=1e-5)
    for ours, theirs in zip(vlm.projector.parameters(), reference.projector.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_without_a_stage_it_says_what_to_name(make_vlm):
    with pytest.raises(RuntimeError, match=r"nothing trains yet.*model\.train_with"):
        make_vlm("DeepStackL").configure_optimizers()


class Letters:
    """The two calls that the validation loop makes of a tokenizer, every id a letter."""

    pad_token_id, eos_token_id = 0, 2

    def batch_decode(self, ids, skip_special_tokens):
        assert skip_special_tokens
        return [" " + "".join(chr(0x0430 + i) for i in row) + " " for row in ids.tolist()]


def test_validation_generates_answers_and_lets_the_metric_judge(make_vlm, make_views):
    vlm = make_vlm("DeepStackL")
    batch = make_batch(vlm, make_views)
    batch.labels = None
    right = Letters().batch_decode(vlm.generate(batch, max_new_tokens=3, pad_token_id=0), True)[0].strip()
    assert len(right) == 3
    batch.questions = [
        Question("1", "what?", (right,), key="a"),
        Question("2", "what?", ("no",), key="b"),
    ]
    padded = copy.copy(batch)
    padded.questions = [Question("3", "what?", ("no",)), Question("3", "what?", ("no",), valid=False)]
    vlm.judge(Letters(), {"pages": ExactMatch()}, {"pages": {"max_new_tokens": 3}})
    trainer = pl.Trainer(accelerator="cpu", **QUIET)
    trainer.validate(vlm, [DataLoader([batch, padded], batch_size=None)], verbose=False)
    scores = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert [answer.question.question_id for answer in vlm.answers["pages"]] == ["1", "2", "3"]
    assert vlm.answers["pages"][0] == Answer(batch.questions[0], right, Verdict(1.0))
    assert [answer.verdict.score for answer in vlm.answers["pages"]] == [1.0, 0.0, 0.0]
    assert scores["speed/pages/questions_per_second"] == pytest.approx(3 / vlm.seconds["pages"])
    assert scores[f"val/pages/{vlm.metrics['pages'].headline}"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("owner", ["model", "language model", "its ids"])
def test_validation_answers_as_a_subclass_does(make_vlm, make_views, owner):
    class Lower(VLM):
        def answer_batch(self, batch, **options):
            return ["mine" for _ in super().answer_batch(batch, **options)]

    class Silent(HFCausalLM):
        def generate(self, *args, **options):
            return torch.zeros_like(super().generate(*args, **options))

    class Ids(HFCausalLM):
        def generate_ids(self, *args, **options):
            return torch.zeros_like(super().generate_ids(*args, **options))

    vlm = make_vlm("DeepStackL")
    if owner == "model":
        vlm.__class__ = Lower
    else:
        vlm.language_model.__class__ = Silent if owner == "language model" else Ids
    batch = make_batch(vlm, make_views)
    batch.labels = None
    said = "mine" if owner == "model" else Letters().batch_decode(torch.zeros(1, 3, dtype=torch.int64), True)[0].strip()
    batch.questions = [Question("1", "what?", (said,)), Question("2", "what?", (said,))]
    vlm.judge(Letters(), {"pages": ExactMatch()}, {"pages": {"max_new_tokens": 3}})
    trainer = pl.Trainer(accelerator="cpu", **QUIET)
    trainer.validate(vlm, [DataLoader([batch], batch_size=None)], verbose=False)
    assert [answer.prediction for answer in vlm.answers["pages"]] == [said, said]


def test_batches_that_wait_are_answered_with_the_options_that_they_were_asked_with(make_vlm, make_views):
    vlm = make_vlm("DeepStackL")
    batch = make_batch(vlm, make_views)
    batch.labels = None
    batch.questions = [Question("1", "what?", ("no",)), Question("2", "what?", ("no",))]

    class Longer(pl.Callback):
        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            pl_module.generation["pages"]["max_new_tokens"] = batch_idx + 1

    vlm.judge(Letters(), {"pages": ExactMatch()}, {"pages": {"max_new_tokens": 3}})
    trainer = pl.Trainer(accelerator="cpu", callbacks=[Longer()], **QUIET)
    trainer.validate(vlm, [DataLoader([batch] * 3, batch_size=None)], verbose=False)
    assert [len(answer.prediction) for answer in vlm.answers["pages"]] == [1, 1, 2, 2, 3, 3]
