"""The families' own code: the classes of transformers, under the kit's protocol.

Used as a library's user would: whole models with ``pixel_values``, or with ``mm_encoder_outputs`` where a prompt is
computed in pieces, and its ``generate``.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dslight.conformance.kit import Array, Batch, Family, Request
from dslight.conformance.protocol import NotOffered


class Transformers:
    """Adapter of transformers.

    Args:
        model: a class instead of the family's own.
    """

    def __init__(self, model: str | None = None) -> None:
        import transformers

        self.model = model
        self.name = f"transformers {transformers.__version__}" + (f", {model}" if model else "")

    def load(self, family: Family, dtype: str = "float32") -> TransformersModel:
        """See :class:`~dslight.conformance.protocol.Adapter`."""
        import transformers

        if not hasattr(transformers, name := self.model or family.model):
            raise NotOffered(f"no {name} in this version")
        kind = getattr(transformers, name)
        config = kind.config_class.from_pretrained(family.folder)
        options = {"dtype": getattr(torch, dtype), "attn_implementation": "sdpa"}
        model = kind.from_pretrained(family.folder, config=config, **options)
        return TransformersModel(family, model.eval())


class TransformersModel:
    """A class of transformers, loaded."""

    def __init__(self, family: Family, model: Any) -> None:
        self.family, self.model = family, model.requires_grad_(False)
        self.dtype = next(model.parameters()).dtype

    def see(self, request: Request) -> Array:
        """See :class:`~dslight.conformance.protocol.Model`."""
        with torch.no_grad():
            return slots_of(self.features(Batch((request,))), request.prompt, self.family).float().numpy()

    def open(self, batch: Batch, after: Any = None) -> Any:
        """See :class:`~dslight.conformance.protocol.Model`."""
        if batch.requests[0].streamed:
            return WholePass(self, batch)
        return TransformersSession(self, batch, after)

    def whole(self, batch: Batch) -> Tensor:
        """Logits ``[B, T, vocabulary]`` of prompts and answers in one pass, in the class's own ways."""
        self.forget()
        if batch.requests[0].streamed:
            return self.streams(batch)
        inputs = self.inputs(batch, torch.from_numpy(batch.ids), torch.from_numpy(batch.attention))
        with torch.no_grad():
            return self.model(**inputs, **self.counted(batch), use_cache=False).logits

    def generate(self, batch: Batch, new: int, beams: int = 1, chunk: int | None = None) -> Array:
        """See :class:`~dslight.conformance.protocol.Model`."""
        self.forget()
        ids, attention = (torch.from_numpy(x[:, : batch.prompt].copy()) for x in (batch.ids, batch.attention))
        options = {"prefill_chunk_size": chunk} if chunk else {}
        with torch.no_grad():
            out = self.model.generate(
                **self.inputs(batch, ids, attention), max_new_tokens=new, do_sample=False, num_beams=beams, **options
            )
        return out[:, batch.prompt :].numpy()

    def gradients(self, request: Request, checkpointing: bool) -> tuple[float, Array]:
        """See :class:`~dslight.conformance.protocol.Model`."""
        self.forget()
        batch = Batch((request,))
        ids, attention = torch.from_numpy(batch.ids), torch.from_numpy(batch.attention)
        with torch.no_grad():
            seen = only(self.features(batch)["image"], torch.arange(request.slots.shape[1]))
        levels = [one[1][0] if isinstance(one[0], int) else one[0] for one in seen["deepstack_features"]]
        base = seen.get("pooler_output")
        leaves = [torch.zeros(0) if base is None else base[0], *levels]
        for leaf in leaves:
            leaf.requires_grad_(True)
        inputs = {
            k: v for k, v in self.inputs(batch, ids, attention).items() if k not in ("pixel_values", "image_sizes")
        }
        self.model.train()
        if checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        try:
            out = self.model(**inputs, **self.counted(batch), mm_encoder_outputs={"image": seen}, use_cache=False)
            loss = answer_loss(out.logits[0], request)
            loss.backward()
        finally:
            self.model.eval()
            if checkpointing:
                self.model.gradient_checkpointing_disable()
        found = [torch.full_like(levels[0], torch.nan) if leaf.grad is None else leaf.grad for leaf in leaves]
        return loss.item(), torch.stack(found).float().numpy()

    def streams(self, batch: Batch) -> Tensor:
        """Logits of Granite 4 Vision's text model, which takes any stacks at the inputs of any layers, one for each."""
        visual, slots = torch.from_numpy(batch.visual), torch.from_numpy(batch.slots).to(self.dtype)
        (first, *others) = batch.requests
        assert all((one.sites, one.gates) == (first.sites, first.gates) for one in others)
        features: dict[int, Tensor] = {}
        for site, gate, stack in zip(first.sites, first.gates or [1.0] * len(first.sites), slots[1:], strict=True):
            features[site] = features.get(site, torch.zeros_like(stack)) + gate * stack
        with torch.no_grad():
            embedded = self.model.get_input_embeddings()(torch.from_numpy(batch.ids))
            embedded[visual] = slots[0]
            hidden = self.model.model.language_model(
                inputs_embeds=embedded, attention_mask=torch.from_numpy(batch.attention), vision_mask=visual[..., None],
                position_ids=torch.from_numpy(batch.positions[0]), deepstack_features=features, use_cache=False,
            ).last_hidden_state  # fmt: skip
            return self.model.lm_head(hidden) / self.model.config.text_config.logits_scaling

    def forget(self) -> None:
        """What an earlier call left on the class."""
        if hasattr(self.model.model, "rope_deltas"):
            self.model.model.rope_deltas = None

    def counted(self, batch: Batch) -> dict[str, Any]:
        """Positions of a whole pass, for classes that count one axis and padding too."""
        if len(batch.requests[0].positions) > 1:
            return {}
        return {"position_ids": torch.from_numpy(batch.positions[0])}

    def inputs(self, batch: Batch, ids: Tensor, attention: Tensor) -> dict[str, Any]:
        """What the class is called with."""
        made: dict[str, Any] = {"input_ids": ids, "attention_mask": attention, **self.visual(batch)}
        if "mm_token_type_ids" in inspect.signature(self.model.forward).parameters:
            made["mm_token_type_ids"] = self.types(ids)
        return made

    def types(self, ids: Tensor) -> Tensor:
        """1 for an image's positions, 2 for a video's."""
        image, *video = self.family.facts["placeholders"]
        return (ids == image).int() + sum(2 * (ids == one).int() for one in video)

    def visual(self, batch: Batch) -> dict[str, Tensor]:
        """Its images and videos, in the arguments' names."""
        tensors = [{k: torch.from_numpy(v) for k, v in one.items()} for one in batch.pixels]
        made = MERGED[self.family.facts["pixels"]](tensors, batch)
        known = inspect.signature(self.model.forward).parameters
        return {name: value for name, value in made.items() if name in known}

    def features(self, batch: Batch) -> dict[str, Any]:
        """What the class's encoder makes of images and videos, as its ``mm_encoder_outputs``."""
        given, made = self.visual(batch), {}
        if "pixel_values" in given:
            rest = {k: v for k, v in given.items() if "video" not in k}
            made["image"] = self.model.get_image_features(**rest, return_dict=True)
        if "pixel_values_videos" in given:
            rest = {k: given[k] for k in ("pixel_values_videos", "video_grid_thw")}
            made["video"] = self.model.get_video_features(**rest, return_dict=True)
        return made


class WholePass:
    """A session that can do nothing but the whole in one pass."""

    def __init__(self, model: TransformersModel, batch: Batch) -> None:
        self.model, self.batch = model, batch

    def feed(self, count: int) -> Array:
        """See :class:`~dslight.conformance.protocol.Session`."""
        if count < self.batch.length:
            raise NotOffered("stacks of no image are passed to its text model in one pass")
        return self.model.whole(self.batch).float().numpy()


class TransformersSession:
    """Passes over pieces of a batch with a cache; each piece is handed the features of its own placeholders, as
    transformers' ``generate`` does with ``prefill_chunk_size``, and its positions, as ``generate`` hands them on.
    """

    def __init__(self, model: TransformersModel, batch: Batch, after: TransformersSession | None) -> None:
        from transformers import DynamicCache

        self.model, self.batch = model, batch
        self.done = 0 if after is None else after.done
        self.cache = DynamicCache(config=model.model.config) if after is None else copy.deepcopy(after.cache)
        with torch.no_grad():
            self.features = model.features(batch)

    def feed(self, count: int) -> Array:
        """See :class:`~dslight.conformance.protocol.Session`."""
        start, end = self.done, self.done + count
        whole, attention = torch.from_numpy(self.batch.ids), torch.from_numpy(self.batch.attention)[:, :end]
        positions = torch.from_numpy(self.batch.positions)[..., start:end]
        cut = {}
        for placeholder, (kind, found) in zip(self.model.family.facts["placeholders"], self._kinds(), strict=False):
            stands = whole == placeholder
            rows = (stands.flatten().cumsum(0).view_as(whole) - 1)[:, start:end][stands[:, start:end]]
            if found is not None and len(rows):
                cut[kind] = only(found, rows)
        with torch.no_grad():
            out = self.model.model(
                input_ids=whole[:, start:end],
                attention_mask=attention,
                position_ids=positions[0] if len(positions) == 1 else positions,
                cache=self.cache,
                use_cache=True,
                **({"mm_encoder_outputs": cut} if cut else {}),
            )
        self.done = end
        return out.logits.float().numpy()

    def _kinds(self) -> list[tuple[str, Any]]:
        return [(kind, self.features.get(kind)) for kind in ("image", "video")]


def only(output: Any, rows: Tensor) -> Any:
    """A copy of an encoder's output with some of its tokens."""
    made = copy.copy(output)
    pooled = made.get("pooler_output")
    if pooled is not None:
        made["pooler_output"] = (torch.cat(list(pooled))[rows],)
    levels = made["deepstack_features"]
    if isinstance(levels[0][0], int):  # Granite 4 Vision: (layer, features)
        made["deepstack_features"] = [(layer, [torch.cat(list(one))[rows]]) for layer, one in levels]
    else:
        made["deepstack_features"] = [(torch.cat(list(one))[rows],) for one in levels]
    return made


def slots_of(features: Mapping[str, Any], ids: Array, family: Family) -> Tensor:
    """``[S + 1, N, D]`` in the order of the sequence, of what :meth:`TransformersModel.features` gives."""
    image, *video = family.facts["placeholders"]
    order = ids[np.isin(ids, family.facts["placeholders"])]
    found = {}
    for kind, output in features.items():
        levels = output["deepstack_features"]
        if isinstance(levels[0][0], int):
            stacks = [torch.cat(list(one)) for _, one in levels]
            found[kind] = torch.stack([torch.zeros_like(stacks[0]), *stacks])
        else:
            base = torch.cat(list(output["pooler_output"]))
            found[kind] = torch.stack([base, *(torch.cat(list(one)) for one in levels)])
    some = next(iter(found.values()))
    made = some.new_zeros(len(some), len(order), some.shape[-1])
    for kind, placeholder in (("image", image), *(("video", one) for one in video)):
        if kind in found:
            made[:, torch.from_numpy(order == placeholder)] = found[kind]
    return made


def answer_loss(logits: Tensor, request: Request) -> Tensor:
    """Mean cross entropy of the answer behind the prompt, of logits ``[P + A, vocabulary]``."""
    behind = logits[len(request.prompt) - 1 : -1].float()
    return torch.nn.functional.cross_entropy(behind, torch.from_numpy(request.answer))


def _patches(images: list[dict[str, Tensor]], batch: Batch) -> dict[str, Tensor]:
    """Qwen's towers: patches of all images one after another, and their grids."""
    made: dict[str, Tensor] = {}
    for kind, ending in (("image", ""), ("video", "_videos")):
        if some := [one for one in images if f"{kind}_grid_thw" in one]:
            made[f"pixel_values{ending}"] = torch.cat([one["pixel_values"] for one in some])
            made[f"{kind}_grid_thw"] = torch.cat([one[f"{kind}_grid_thw"] for one in some])
    if seconds := [one["video_second_per_grid"] for one in images if "video_second_per_grid" in one]:
        made["video_second_per_grid"] = torch.cat(seconds)
    return made


def _anyres(images: list[dict[str, Tensor]], batch: Batch) -> dict[str, Tensor]:
    """LLaVA-NeXT's tiles: a row per image, zeros behind."""
    if not images:
        return {}
    most = max(len(one["pixel_values"]) for one in images)
    padded = [torch.nn.functional.pad(p := one["pixel_values"], [0] * 7 + [most - len(p)]) for one in images]
    return {"pixel_values": torch.stack(padded), "image_sizes": torch.cat([one["image_sizes"] for one in images])}


def _tiles(images: list[dict[str, Tensor]], batch: Batch) -> dict[str, Tensor]:
    """Granite Docling's: a row of tiles per row of the batch, zeros behind."""
    if not images:
        return {}
    blank = images[0]["pixel_values"][:0]
    rows = [torch.cat([blank, *(torch.from_numpy(p["pixel_values"]) for p in r.pixels)]) for r in batch.requests]
    most = max(map(len, rows))
    mask = torch.tensor([[i < len(row) for i in range(most)] for row in rows])
    padded = [torch.nn.functional.pad(row, [0] * 7 + [most - len(row)]) for row in rows]
    return {"pixel_values": torch.stack(padded), "pixel_attention_mask": mask}


MERGED = {"patches": _patches, "anyres": _anyres, "tiles": _tiles}
