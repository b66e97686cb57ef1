"""What a model promises that is a subclass of ``dslight.VLM``: a loss that batches and processes may add up, parts that
learn and are kept, and answers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dslight.types import IGNORE, Batch
from dslight.vlm import VLM
from dslight.written import unwritten, written


class ModelContract:
    """The promises of a subclass of :class:`~dslight.VLM`; subclass this and define :meth:`make`.

    Attributes:
        rtol: largest relative difference between losses that ought to be equal.
    """

    rtol = 1e-4

    def make(self) -> VLM:
        """A new model that has a tokenizer, the same with each call, its arguments named
        (``dslight.testing.tiny_model(MyVLM, scale=2.0)``).
        """
        raise NotImplementedError(f"{type(self).__name__}: define make(self), which returns the model to test")

    def test_it_is_a_model(self) -> None:
        model = self.make()
        assert isinstance(model, VLM), f"{type(model).__name__} must subclass dslight.VLM"

    def test_a_recipe_can_name_it(self) -> None:
        model = self.make()
        lost = ", ".join(at.removeprefix("init_args.") or what for at, what in unwritten(written(model)).items())
        assert not lost, (
            f"{type(model).__name__}: a recipe could not name {lost}: name the arguments, and keep classes in modules"
        )

    def test_its_loss_is_a_sum_over_the_supervised_tokens_and_their_number(self) -> None:
        model = self.make().eval()
        rows = [self._batch(model, [i]) for i in range(2)]
        apart = [model.loss(row) for row in rows]
        loss, count = model.loss(self._batch(model, [0, 1]))
        assert loss.shape == (), f"the loss has the shape {tuple(loss.shape)}: one number"
        supervised = sum(int((row.labels != IGNORE).sum()) for row in rows if row.labels is not None)
        assert int(count) == supervised, f"loss() counts {float(count):g} tokens, {supervised} are supervised"
        torch.testing.assert_close(
            loss,
            apart[0][0] + apart[1][0],
            rtol=self.rtol,
            atol=0.0,
            msg=lambda said: f"two rows have another loss than each by itself: return the sum, no mean ({said})",
        )

    def test_every_part_learns(self) -> None:
        model = self.make().train()
        parts = [name for name, part in model.parts().items() if any(True for _ in part.parameters())]
        model.train_with(dict.fromkeys(parts, 1e-3))
        model.loss(self._batch(model, [0, 1]))[0].backward()
        still = [name for name in parts if not any(_moves(p.grad) for p in model.parts()[name].parameters())]
        assert not still, f"no gradient reaches {', '.join(still)}: do not detach"

    def test_text_without_an_image_is_trained_on_too(self) -> None:
        model = self.make().eval()
        loss, count = model.loss(self._batch(model, [None]))
        assert bool(torch.isfinite(loss)), f"a text alone has the loss {loss}"
        assert int(count) > 0, "of a text alone, no token is counted"

    def test_all_that_it_learns_is_of_a_part(self) -> None:
        model = self.make()
        parts = {id(p) for part in model.parts().values() for p in part.parameters()}
        lost = [name for name, p in model.named_parameters() if id(p) not in parts]
        assert not lost, f"{', '.join(lost)}: of no part, so no stage trains it; let a part own it"

    def test_its_weights_are_all_that_it_has_learnt(self) -> None:
        model, again = self.make().eval(), self.make().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.9)
        again.load_state_dict(model.state_dict())
        batch = self._batch(model, [0])
        torch.testing.assert_close(
            again.loss(batch)[0],
            model.loss(batch)[0],
            rtol=self.rtol,
            atol=0.0,
            msg=lambda said: f"a model with its state_dict is another one: keep what it has learnt in buffers ({said})",
        )

    def test_it_answers_the_same_each_time(self) -> None:
        model = self.make()
        said = [model.answer("What?", _picture(0), max_new_tokens=4) for _ in range(2)]
        assert isinstance(said[0], str), f"answer() gives {said[0]!r}, no text"
        assert said[0] == said[1], f"asked twice, it says {said[0]!r} and {said[1]!r}: be random in training alone"

    def _batch(self, model: VLM, shown: list[int | None]) -> Batch:
        """A row for each picture, by number; ``None``: without one."""
        processor: Any = model.processor
        pictures = [[] if number is None else [_picture(number)] for number in shown]
        rows = [processor.rows.taught("What?", f"It is {len(p)}{n}.", p) for n, p in zip(shown, pictures, strict=True)]
        return processor.collate(rows)


def _picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (24, 40, 3), dtype=np.uint8)


def _moves(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(gradient.abs().sum() > 0)
