"""What a decoder promises: stacks come in where they should, padding changes nothing, and answers are its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dslight.components.language_model import LanguageModel
from dslight.types import VisualTokens


class LanguageModelContract:
    """The promises of :class:`~dslight.components.LanguageModel`; subclass it and define :meth:`make`.

    Attributes:
        atol: largest difference between values that ought to be equal, in float32.
    """

    atol = 1e-4

    def make(self) -> LanguageModel:
        """A new decoder, the same at every call (seed it), as small as it can be made."""
        raise NotImplementedError(f"{type(self).__name__}: define make(self), which returns the decoder to test")

    def test_it_is_a_language_model_whose_facts_are_set(self) -> None:
        lm = self.make()
        assert isinstance(lm, LanguageModel), f"{type(lm).__name__} must subclass dslight.components.LanguageModel"
        for name in ("width", "vocabulary"):
            assert isinstance(getattr(lm, name, None), int), f"set self.{name} in __init__"
        assert lm.depth > 0, "layers is empty; it must list the decoder's layers in order"

    def test_logits_are_of_every_position(self) -> None:
        lm, (ids, mask) = self._eval(), self._prompt()
        assert lm.logits(ids, mask).shape == (2, ids.shape[1], lm.vocabulary), "logits must be [B, T, vocabulary]"

    def test_no_position_looks_ahead(self) -> None:
        lm, (ids, mask) = self._eval(), self._prompt()
        other = ids.clone()
        other[:, -1] = (other[:, -1] + 1) % lm.vocabulary
        assert torch.allclose(lm.logits(ids, mask)[:, :-1], lm.logits(other, mask)[:, :-1], atol=self.atol), (
            "the last token changes earlier logits: attention must be causal"
        )

    def test_base_tokens_take_the_place_of_ids(self) -> None:
        lm, (ids, mask) = self._eval(), self._prompt()
        visual_mask, visual = self._visual(lm, sites=())
        other = ids.masked_fill(visual_mask, 0)
        first, second = (lm(x, mask, visual_mask, visual) for x in (ids, other))
        assert torch.allclose(first, second, atol=self.atol), (
            "an id at a visual position matters: slot 0 must replace all that `embedding` gives there"
        )

    def test_zero_stacks_change_nothing(self) -> None:
        lm, (ids, mask) = self._eval(), self._prompt()
        sites = tuple(range(lm.depth))
        visual_mask, visual = self._visual(lm, sites)
        visual.slots[1:] = 0
        plain = lm(ids, mask, visual_mask, VisualTokens(visual.slots[:1]))
        assert torch.equal(lm(ids, mask, visual_mask, visual), plain), "stacks of zeros change the logits"

    def test_a_stack_at_any_layer_changes_its_columns_and_those_behind(self) -> None:
        lm, (ids, mask) = self._eval(), self._prompt()
        for site in range(lm.depth):
            visual_mask, visual = self._visual(lm, (site,))
            plain = lm(ids, mask, visual_mask, VisualTokens(visual.slots[:1]))
            change = (lm(ids, mask, visual_mask, visual) - plain).abs().amax(dim=(0, 2))
            first = int(visual_mask.any(0).nonzero()[0])
            assert change[:first].max() <= self.atol, f"a stack at layer {site} changes columns before its image"
            assert change[first:].max() > self.atol, (
                f"a stack at layer {site} does not change the logits: the decoder must call layers[{site}] as a "
                f"module, with its hidden states [B, T, D] as first argument"
            )

    def test_left_padding_changes_nothing(self) -> None:
        lm, (ids, mask) = self._eval(), self._prompt()
        padded = torch.cat([ids[:1, :3] * 0, ids[:1]], dim=1), torch.cat([mask[:1, :3] * 0, mask[:1]], dim=1)
        assert torch.allclose(lm.logits(*padded)[:, 3:], lm.logits(ids[:1], mask[:1]), atol=self.atol), (
            "a row behind left padding has other logits: mask padding, and count positions over real tokens"
        )

    def test_answers_are_the_likeliest_tokens_of_whole_passes(self) -> None:
        lm, (ids, mask) = self._eval(), self._prompt()
        sites = (0, lm.depth - 1) if lm.depth > 1 else (0,)
        visual_mask, visual = self._visual(lm, sites)
        got = lm.generate(ids, mask, visual_mask, visual, max_new_tokens=3)
        for step in range(got.shape[1]):
            logits = lm(ids, mask, visual_mask, visual)[:, -1]
            assert torch.equal(logits.argmax(-1), got[:, step]), (
                f"new token {step} is not the likeliest of a pass over the whole sequence: look at the cache"
            )
            ids = torch.cat([ids, got[:, step : step + 1]], dim=1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            visual_mask = torch.cat([visual_mask, torch.zeros_like(visual_mask[:, :1])], dim=1)

    def test_gradients_reach_every_slot(self) -> None:
        lm, (ids, mask) = self.make(), self._prompt()
        visual_mask, visual = self._visual(lm, tuple(range(lm.depth)))
        slots = visual.slots.requires_grad_(True)
        lm(ids, mask, visual_mask, VisualTokens(slots, visual.sites)).square().sum().backward()
        assert slots.grad is not None, "no gradient reaches the visual tokens"
        idle = [index for index, gradient in enumerate(slots.grad) if not gradient.abs().sum() > 0]
        assert not idle, f"no gradient reaches slot {idle[0]}: do not detach, nor run under no_grad"

    def test_it_is_built_without_memory_on_the_meta_device(self) -> None:
        with torch.device("meta"):
            shadow = self.make()
        real = [name for name, parameter in shadow.named_parameters() if not parameter.is_meta]
        assert not real, f"under torch.device('meta') {', '.join(real[:8])} have memory: name no device in __init__"

    def _eval(self) -> LanguageModel:
        return self.make().requires_grad_(False).eval()

    def _prompt(self) -> tuple[Tensor, Tensor]:
        ids = torch.randint(1, self.make().vocabulary, (2, 8), generator=torch.Generator().manual_seed(0))
        return ids, torch.ones_like(ids)

    def _visual(self, lm: Any, sites: tuple[int, ...]) -> tuple[Tensor, VisualTokens]:
        """Four visual tokens in each row, behind two of text."""
        mask = torch.zeros(2, 8, dtype=torch.bool)
        mask[:, 2:6] = True
        slots = torch.randn(1 + len(sites), 8, lm.width, generator=torch.Generator().manual_seed(1))
        return mask, VisualTokens(slots, sites)
