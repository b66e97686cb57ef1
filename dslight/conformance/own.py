"""dslight under the kit's protocol: its decoder read from a family's folder, its positions, its injector.

The language path is asked with the kit's slots, the vision path by itself (the case ``vision``), where dslight's parts
compose the family's encoder and projector: so a miss of one does not hide the other.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from dslight.components.decoders.causal_lm import HFCausalLM
from dslight.conformance.kit import Array, Batch, Family, Request
from dslight.conformance.protocol import NotOffered
from dslight.conformance.seen import seeing
from dslight.places import TokenGrid
from dslight.types import VisualTokens


class Dslight:
    """Adapter of dslight itself."""

    def __init__(self) -> None:
        from importlib.metadata import version

        self.name = f"dslight {version('dslight')}"

    def load(self, family: Family, dtype: str = "float32") -> DslightModel:
        """See :class:`~dslight.conformance.protocol.Adapter`."""
        return DslightModel(family, decoder(family, dtype))


class Decoder(HFCausalLM):
    """A decoder that is also asked for a part of a sequence, behind a cache, as a server would."""

    def passed(
        self, ids: Tensor, attention: Tensor, mask: Tensor, visual: VisualTokens, columns: slice, cache: Any
    ) -> Tensor:
        """Logits ``[B, t, vocabulary]`` of some columns of ``[B, T]``; ``cache`` holds those in front."""
        known = inspect.signature(self.model.forward).parameters
        given: dict[str, Any] = {"cache" if "cache" in known else "past_key_values": cache}
        given["position_ids"] = (attention.cumsum(-1) - 1).clamp(min=0)[:, columns]  # of text: axes are put instead
        with self._injecting(mask, visual, attention):
            ids, seen = self.standing_for(ids, mask)[:, columns], attention[:, : columns.stop]
            return self.model(input_ids=ids, attention_mask=seen, use_cache=True, **given).logits


def decoder(family: Family, dtype: str) -> Decoder:
    """The family's language model. Granite 4 Vision's is read as the Granite that it is; its own class takes no tokens
    without a text model of its own.
    """
    if family.name != "granite4_vision":
        return Decoder(str(family.folder), dtype=dtype).eval()
    settings = json.loads((family.folder / "config.json").read_text())["text_config"]
    made = Decoder(config={**settings, "model_type": "granite"}, dtype=dtype).eval()
    weights = load_file(family.folder / "model.safetensors")
    names = {name.replace("model.", "model.language_model.", 1): name for name in made.model.state_dict()}
    made.model.load_state_dict({mine: weights[name] for name, mine in names.items()})
    return made


class DslightModel:
    """A family's decoder, and its vision path where dslight has the parts of it."""

    def __init__(self, family: Family, lm: Decoder) -> None:
        self.family, self.lm = family, lm.requires_grad_(False)

    @cached_property
    def seeing(self) -> Callable[[Request], Tensor] | None:
        """From a request to its slots; ``None`` where dslight has not all parts."""
        return seeing(self.family)

    def see(self, request: Request) -> Array:
        """See :class:`~dslight.conformance.protocol.Model`."""
        if self.seeing is None:
            raise NotOffered("dslight has not all parts of its encoder and projector")
        with torch.no_grad():
            return self.seeing(request).numpy()

    def open(self, batch: Batch, after: Any = None) -> DslightSession:
        """See :class:`~dslight.conformance.protocol.Model`."""
        return DslightSession(self, batch, after)

    def generate(self, batch: Batch, new: int, beams: int = 1, chunk: int | None = None) -> Array:
        """See :class:`~dslight.conformance.protocol.Model`."""
        options = {"num_beams": beams} | ({"prefill_chunk_size": chunk} if chunk else {})
        ids, attention, mask = (one[:, : batch.prompt] for one in self.rows(batch))
        options |= {"max_new_tokens": new, "pad_token_id": 0}
        with torch.no_grad():
            return self.lm.generate(ids, attention, mask, self.tokens(batch), **options).numpy()

    def packed(self, requests: Sequence[Request]) -> Sequence[Array]:
        """See :class:`~dslight.conformance.protocol.Model`."""
        lengths = [len(request.ids) for request in requests]
        ids = torch.from_numpy(np.concatenate([request.ids for request in requests]))[None]
        mask = torch.from_numpy(np.concatenate([request.visual for request in requests]))[None]
        segments = torch.repeat_interleave(torch.arange(len(lengths)) + 1, torch.tensor(lengths))[None]
        with torch.no_grad():
            logits = self.lm(ids, torch.ones_like(ids), mask, self.tokens(Batch(tuple(requests))), segments)
        return [one.float().numpy() for one in logits[0].split(lengths)]

    def gradients(self, request: Request, checkpointing: bool) -> tuple[float, Array]:
        """See :class:`~dslight.conformance.protocol.Model`."""
        batch = Batch((request,))
        visual = self.tokens(batch)
        visual.slots.requires_grad_(True)
        self.lm.model.train()
        if checkpointing:
            self.lm.model.gradient_checkpointing_enable({"use_reentrant": False})
        try:
            logits = self.lm(*self.rows(batch), visual)[0, len(request.prompt) - 1 : -1]
            loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(request.answer))
            loss.backward()
        finally:
            self.lm.model.eval()
            if checkpointing:
                self.lm.model.gradient_checkpointing_disable()
        assert visual.slots.grad is not None
        return loss.item(), visual.slots.grad.numpy()

    def tokens(self, batch: Batch) -> VisualTokens:
        """The kit's slots of a batch, with what is done to them and the grids that they form."""
        first, *others = batch.requests
        assert all((one.sites, one.gates) == (first.sites, first.gates) for one in others)
        gates = first.gates

        def gated(stack: int, hidden: Tensor, values: Tensor) -> Tensor:
            return values if gates is None else gates[stack] * values

        grids = tuple(grid for request in batch.requests for one in request.pixels for grid in self.grids(one))
        return VisualTokens(torch.from_numpy(batch.slots), first.sites, None if gates is None else gated, grids=grids)

    def rows(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, attention mask and visual mask of a batch, ``[B, T]`` each."""
        return torch.from_numpy(batch.ids), torch.from_numpy(batch.attention), torch.from_numpy(batch.visual)

    def grids(self, pixels: Any) -> list[TokenGrid]:
        """Of an image or a video in patches, 2 x 2 of them a token; none where positions have one axis."""
        if self.lm.axes == 1:
            return []
        kind = "image" if "image_grid_thw" in pixels else "video"
        time, rows, columns = pixels[f"{kind}_grid_thw"][0].tolist()
        if self.family.facts["video"] == "whole":
            pace = self.lm.model.config.position_id_per_seconds
            step = float(pixels["video_second_per_grid"][0]) * pace if kind == "video" else 1.0
            return [TokenGrid(time, rows // 2, columns // 2, step)]
        return [TokenGrid(1, rows // 2, columns // 2)] * time


class DslightSession:
    """A batch that is computed piece by piece."""

    def __init__(self, model: DslightModel, batch: Batch, after: DslightSession | None) -> None:
        from transformers import DynamicCache

        self.model, self.batch, self.visual = model, batch, model.tokens(batch)
        self.done = 0 if after is None else after.done
        self.cache = DynamicCache(config=model.lm.model.config) if after is None else copy.deepcopy(after.cache)

    def feed(self, count: int) -> Array:
        """See :class:`~dslight.conformance.protocol.Session`."""
        columns = slice(self.done, self.done + count)
        with torch.no_grad():
            logits = self.model.lm.passed(*self.model.rows(self.batch), self.visual, columns, self.cache)
        self.done += count
        return logits.float().numpy()
