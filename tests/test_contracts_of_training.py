"""The contracts of models, data and schedules: ours keep them, and a broken promise is named."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import count

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from data_prep.digits import png
from dslight import VLM, Data
from dslight.data.shards import ShardWriter
from dslight.testing import DataContract, ModelContract, ScheduleContract, tiny_model


class Scaled(VLM):
    def __init__(self, *args, scale: float = 1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.scale = scale

    def loss(self, batch, visual=None):
        loss, number = super().loss(batch, visual)
        return loss * self.scale, number


class TestScaled(ModelContract):
    def make(self):
        return tiny_model(Scaled, scale=2.0)


class MeanLoss(VLM):
    def loss(self, batch, visual=None):
        loss, number = super().loss(batch, visual)
        return loss / number, number


class CountsRows(VLM):
    def loss(self, batch, visual=None):
        return super().loss(batch, visual)[0], torch.tensor(len(batch.input_ids))


class WeightsOfItsOwn(VLM):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.ones(()))


class LearntElsewhere(VLM):
    instances = count(1)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain = next(self.instances)

    def loss(self, batch, visual=None):
        loss, number = super().loss(batch, visual)
        return loss * self.gain, number


class Deaf(VLM):
    def see(self, views):
        with torch.no_grad():
            return super().see(views)


class TextAlone(VLM):
    def loss(self, batch, visual=None):
        return super().loss(batch, visual) if batch.views is not None else (torch.tensor(torch.nan), torch.tensor(0))


class Moody(VLM):
    said = count()

    def answer_batch(self, batch, **options):
        return [f"{next(self.said)}" for _ in super().answer_batch(batch, **options)]


@pytest.mark.parametrize(
    ("kind", "clause", "message"),
    [
        (nn.Linear, "it_is_a_model", "must subclass dslight.VLM"),
        (MeanLoss, "its_loss_is_a_sum_over_the_supervised_tokens_and_their_number", "return the sum, no mean"),
        (CountsRows, "its_loss_is_a_sum_over_the_supervised_tokens_and_their_number", r"counts 2 tokens, \d+ are"),
        (WeightsOfItsOwn, "all_that_it_learns_is_of_a_part", "gain: of no part"),
        (LearntElsewhere, "its_weights_are_all_that_it_has_learnt", "keep what it has learnt in buffers"),
        (Deaf, "every_part_learns", "no gradient reaches vision_encoder, projector"),
        (TextAlone, "text_without_an_image_is_trained_on_too", "a text alone has the loss nan"),
        (Moody, "it_answers_the_same_each_time", "be random in training alone"),
        (type("OfANotebook", (VLM,), {}), "a_recipe_can_name_it", "could not name OfANotebook"),
    ],
)
def test_a_model_that_breaks_a_promise_is_told_so(kind, clause, message):
    class Contract(ModelContract):
        def make(self):
            return nn.Linear(2, 2) if kind is nn.Linear else tiny_model(kind)

    with pytest.raises(AssertionError, match=message):
        getattr(Contract(), f"test_{clause}")()


def halving(optimizer, num_warmup_steps, every=10):
    return LambdaLR(optimizer, lambda step: min(1, (step + 1) / (num_warmup_steps + 1)) * 0.5 ** (step // every))


class TestHalving(ScheduleContract):
    def make(self):
        return {"name": f"{__name__}.halving", "every": 5}


def keeps_count(optimizer):
    steps = count()
    return LambdaLR(optimizer, lambda step: 1 / (1 + next(steps)))


@pytest.mark.parametrize(
    ("made", "clause", "message"),
    [
        (torch.optim.lr_scheduler.ExponentialLR, "it_is_a_schedule", "missing"),
        (lambda optimizer: LambdaLR(optimizer, lambda step: 1.0), "a_recipe_can_name_it", "keep the function in a"),
        (lambda optimizer: LambdaLR(optimizer, lambda step: -0.5), "every_step_has_a_rate", r"step 0 is -0\.5"),
        (lambda optimizer: LambdaLR(optimizer, lambda step: 3.0), "no_rate_is_above_that_of_the_part", "factor is 3"),
        (keeps_count, "the_rate_follows_from_the_step_alone", "asked in another order"),
        (
            lambda optimizer: LambdaLR(
                optimizer, [lambda _, i=i: 1 / (1 + i) for i in range(len(optimizer.param_groups))]
            ),
            "all_parts_follow_it_alike",
            "schedules of their own",
        ),
    ],
)
def test_a_schedule_that_breaks_a_promise_is_told_so(made, clause, message):
    class Contract(ScheduleContract):
        def make(self):
            return made

    with pytest.raises((AssertionError, ValueError), match=message):
        getattr(Contract(), f"test_{clause}")()


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("records")
    with ShardWriter(root) as writer:
        for i in range(6):
            picture = png(rng.integers(0, 255, (24, 40, 3), dtype=np.uint8))
            turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": f"Number {i}."}]
            writer.write(f"m{i}", [picture], {"conversations": turns})
    return str(root)


class ForgetsItsPlace(Data):
    def train_dataloader(self):
        loader = super().train_dataloader()
        loader.epoch, loader.consumed, loader.load_state_dict = 0, 0, lambda state: None
        return loader


class ShuffledByChance(Data):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed = int(torch.randint(1000, ()))


class Unlearnt(Data):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        batch.labels[1] = -100
        return batch


@pytest.mark.parametrize(
    ("kind", "clause", "message"),
    [
        (Data, "it_is_a_data_module", None),
        (Data, "a_model_trains_on_it", None),
        (Data, "a_run_goes_on_where_it_stopped", None),
        (Data, "batches_are_the_same_each_time", None),
        (Unlearnt, "a_model_trains_on_it", r"the rows \[1\] have nothing to learn"),
        (ForgetsItsPlace, "a_run_goes_on_where_it_stopped", "has to say the position"),
        (ShuffledByChance, "batches_are_the_same_each_time", "shuffle by a seed"),
    ],
)
def test_data_keep_their_contract_or_are_told_what_breaks_it(kind, clause, message, records):
    class Contract(DataContract):
        steps = 2

        def make(self):
            return kind(train=[records], global_batch_size=2)

    with pytest.raises(AssertionError, match=message) if message else nullcontext():
        getattr(Contract(), f"test_{clause}")()


@pytest.mark.parametrize("contract", [ModelContract, DataContract, ScheduleContract])
def test_a_contract_without_make_says_so(contract):
    with pytest.raises(NotImplementedError, match="define make"):
        contract().make()
