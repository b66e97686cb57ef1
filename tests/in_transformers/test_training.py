"""An exported model trains in transformers as it does here: a step of its Trainer, and of peft."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments

from dslight.types import Batch


@pytest.fixture
def batch(opened) -> Batch:
    """Two conversations of training, one with a picture."""
    import io

    from dslight.data.sample import Sample, Turn

    held = io.BytesIO()
    opened.picture.save(held, "PNG")
    shown = Sample("a", "a", (held.getvalue(),), (Turn("human", "<image>\nB2"), Turn("gpt", "7")))
    blind = Sample("b", "b", (), (Turn("human", "A1"), Turn("gpt", "3 4")))
    processor = opened.ours.processor
    return processor.collate([processor.rows.train(each) for each in (shown, blind)])


def ours_after_a_step(opened: Any, batch: Batch) -> dict[str, torch.Tensor]:
    model = copy.deepcopy(opened.ours).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    loss, count = model.loss(batch)
    (loss / count).backward()
    optimizer.step()
    return model.state_dict()


class Rows(torch.utils.data.Dataset):
    def __init__(self, given: Any) -> None:
        self.given = given

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        return self.given


def test_a_step_of_transformers_trainer_is_ours(opened, batch, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(opened.folder)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=1, learning_rate=1e-3, weight_decay=0.1,
        max_grad_norm=0.0, lr_scheduler_type="constant", report_to=[], use_cpu=True, save_strategy="no",
        remove_unused_columns=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Rows(opened.processor.of_batch(batch)),
        data_collator=lambda rows: dict(rows[0]),
    )
    decayed = set(trainer.get_decay_parameter_names(model))
    trainer.train()
    ours, before = ours_after_a_step(opened, batch), opened.ours.state_dict()
    moved = 0
    for name, tensor in model.state_dict().items():
        if name in decayed:  # the others are not decayed there
            torch.testing.assert_close(tensor, ours[name.removeprefix("vlm.")], atol=1e-6, rtol=0)
            moved += not torch.equal(tensor, before[name.removeprefix("vlm.")])
    assert moved > 30


def test_gradients_of_pefts_adapters_are_ours(opened, batch):
    peft = pytest.importorskip("peft")
    model: Any = AutoModelForImageTextToText.from_pretrained(opened.folder)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=4))
    adapted(**opened.processor.of_batch(batch)).loss.backward()
    theirs = {name: p.grad.clone() for name, p in adapted.named_parameters() if p.grad is not None}
    adapted.zero_grad()
    loss, count = model.vlm.loss(batch)
    (loss / count).backward()
    ours = {name: p.grad for name, p in adapted.named_parameters() if p.grad is not None}
    assert len(theirs) == 24
    assert all("lora" in name for name in theirs)
    for name, gradient in theirs.items():
        torch.testing.assert_close(gradient, ours[name], atol=1e-6, rtol=1e-5)
    assert torch.equal(
        adapted.generate(**opened.given, max_new_tokens=4), opened.model.generate(**opened.given, max_new_tokens=4)
    )


def test_the_loss_is_divided_by_what_the_trainer_says(opened, batch):
    given = opened.processor.of_batch(batch)
    with torch.no_grad():
        loss, count = opened.ours.loss(batch)
        torch.testing.assert_close(opened.model(**given).loss, loss / count)
        torch.testing.assert_close(opened.model(**given, num_items_in_batch=7).loss, loss / 7)


@torch.no_grad()
def test_the_loss_of_a_prompt_that_is_seen_in_both_directions_is_ours(opened, batch):
    """Which does not see the answer before it has to give it."""
    ours, theirs = copy.deepcopy(opened.ours), copy.deepcopy(opened.model)
    ours.language_model.bidirectional = theirs.vlm.language_model.bidirectional = "prompt"
    loss, count = ours.loss(batch)
    given = opened.processor.of_batch(batch)
    for options in ({}, {"use_cache": True}):
        assert theirs(**given, **options).loss.item() == pytest.approx(float(loss / count), rel=1e-5)
