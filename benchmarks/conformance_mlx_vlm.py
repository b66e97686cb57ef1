"""mlx-vlm under the conformance kit: ``dslight conformance --of benchmarks.conformance_mlx_vlm:MlxVlm``, in an
environment with mlx-vlm (``pip install "mlx[cpu]" mlx-vlm`` on Linux), from the root of this repository.

Sessions do what its ``generate_step`` does: embeddings of the whole prompt once, pieces of them with everything that it
computed for the prompt, and decode steps with the token alone.
"""

from __future__ import annotations

import copy
from importlib.metadata import version
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_vlm.generate.ar import generate_step
from mlx_vlm.models import cache as caches
from mlx_vlm.utils import load_model

from dslight.conformance import Array, Batch, Family, NotOffered, Request

mx.set_default_device(mx.cpu)


class MlxVlm:
    """Adapter."""

    def __init__(self) -> None:
        self.name = f"mlx-vlm {version('mlx-vlm')} (mlx {version('mlx')}, CPU)"

    def load(self, family: Family, dtype: str = "float32") -> MlxModel:
        """See dslight.conformance.Adapter."""
        try:
            model = load_model(family.folder)
        except ValueError as error:
            if "not supported" in str(error):
                raise NotOffered("mlx-vlm has no such model") from error
            raise
        model.set_dtype(getattr(mx, dtype))
        mx.eval(model.parameters())
        return MlxModel(family, model)


class MlxModel:
    """A model of mlx-vlm."""

    def __init__(self, family: Family, model: Any) -> None:
        self.family, self.model = family, model

    def see(self, request: Request) -> Array:
        """See dslight.conformance.Model."""
        if not hasattr(self.model, "vision_tower") or self.family.facts["pixels"] != "patches":
            raise NotOffered("its image features are not asked here")
        if any("video_grid_thw" in one for one in request.pixels):
            raise NotOffered("images alone")
        given = self.visual(Batch((request,)))
        base, stacks = self.model.vision_tower(given["pixel_values"], given["image_grid_thw"])[:2]
        return np.stack([np.array(one.astype(mx.float32)) for one in (base, *stacks)])

    def open(self, batch: Batch, after: Any = None) -> MlxSession:
        """See dslight.conformance.Model."""
        return MlxSession(self, batch, after)

    def generate(self, batch: Batch, new: int, beams: int = 1, chunk: int | None = None) -> Array:
        """See dslight.conformance.Model."""
        if beams > 1 or len(batch.requests) > 1:
            raise NotOffered("generate_step answers one request, without beams")
        given = self.visual(batch)
        steps = generate_step(
            mx.array(batch.ids[:, : batch.prompt]), self.model, given.pop("pixel_values", None), None,
            max_tokens=new, temperature=0.0, prefill_step_size=chunk, **given,
        )  # fmt: skip
        return np.array([[token for token, _ in steps]])

    def visual(self, batch: Batch) -> dict[str, mx.array]:
        """Images and videos in the arguments' names."""
        made: dict[str, list[Array]] = {}
        for one in batch.pixels:
            video = "video_grid_thw" in one
            for name, value in one.items():
                key = "pixel_values_videos" if video and name == "pixel_values" else name
                made.setdefault(key, []).append(value)
        if self.family.facts["pixels"] == "anyres" and made:
            most = max(map(len, made["pixel_values"]))
            made["pixel_values"] = [np.pad(p, [(0, most - len(p)), *[(0, 0)] * 3])[None] for p in made["pixel_values"]]
        return {name: mx.array(np.concatenate(values)) for name, values in made.items()}


class MlxSession:
    """A request that is computed piece by piece."""

    def __init__(self, model: MlxModel, batch: Batch, after: MlxSession | None) -> None:
        if len(batch.requests) > 1:
            raise NotOffered("batches are asked of its server alone")
        if batch.requests[0].streamed:
            raise NotOffered("it takes no slots")
        self.model, self.batch = model.model, batch
        self.done = 0 if after is None else after.done
        self.cache = (
            caches.make_prompt_cache(self.model.language_model) if after is None else copy.deepcopy(after.cache)
        )
        given = model.visual(batch)
        self.ids = mx.array(batch.ids)
        pixels = given.pop("pixel_values", None)
        made = self.model.get_input_embeddings(self.ids, pixels, mask=None, **given).to_dict()
        self.embedded = made.pop("inputs_embeds")
        self.more = {**given, **{name: value for name, value in made.items() if value is not None}}

    def feed(self, count: int) -> Array:
        """See dslight.conformance.Session."""
        columns = slice(self.done, self.done + count)
        if self.done < self.batch.prompt:
            out = self.model.language_model(
                self.ids[:, columns], inputs_embeds=self.embedded[:, columns], cache=self.cache, **self.more
            )
        else:
            out = self.model.language_model(self.ids[:, columns], cache=self.cache)
        self.done += count
        return np.array(out.logits.astype(mx.float32))
