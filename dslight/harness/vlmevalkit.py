"""VLMEvalKit (open-compass): its data sets, prompts and scores for a trained dslight model.

In a script of one's own, beside VLMEvalKit's ``run.py``::

    from dslight.harness.vlmevalkit import register
    register("my_arm", recipe="runs/my_arm")          # then --model my_arm is known to run.main()

Decided here: the kit's own prompts are asked (no suffix of ours), with the template and the views of the recipe; a
picture stands where the message has it; a video is shown as frames in one picture or several, to encoders with temporal
patches, too; answers are greedy. Importing this module does not need the kit; making a model does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dslight.harness.shown import shown

if TYPE_CHECKING:
    _Base: type = object
else:
    try:
        from vlmeval.vlm.base import BaseModel as _Base
    except ImportError:
        _Base = object


def register(name: str, recipe: str, **options: Any) -> None:
    """Make ``name`` a model of the kit; ``options`` as of :class:`DSLight`."""
    _need_the_kit()
    from vlmeval.config import supported_VLM  # type: ignore[import-not-found]

    supported_VLM[name] = partial(DSLight, recipe=recipe, **options)


class DSLight(_Base):
    """A model of dslight as the kit's ``BaseModel``.

    Args:
        recipe: a recipe's file, or a run's folder.
        ckpt: a checkpoint of the run, weights that ``dslight.checkpoints`` reads, or ``latest``.
        max_new_tokens: the longest answer.
        device: e.g. ``cuda:0``; default: a GPU where there is one.
        frames, tile: what is made of a video, see :meth:`dslight.data.video.Sampling.of`.

    Raises:
        ImportError: the kit is not installed.
        RecipeError: as ``dslight predict``.
    """

    INSTALL_REQ = False
    INTERLEAVE = True
    VIDEO_LLM = True

    def __init__(
        self,
        recipe: str,
        ckpt: str = "latest",
        max_new_tokens: int = 1024,
        device: str | None = None,
        frames: int | None = None,
        tile: str | None = None,
    ) -> None:
        from dslight.data.video import Sampling
        from dslight.recipe.compose import compose
        from dslight.run.evaluate import trained

        _need_the_kit()
        super().__init__()
        self.sampling = Sampling.of(frames, tile)
        file = Path(recipe)
        experiment = trained(compose(file / "recipe.yaml" if file.is_dir() else file, []), ckpt, device)
        self.vlm, self.max_new_tokens = cast(Any, experiment.model), max_new_tokens
        self.processor = self.vlm.processor

    def use_custom_prompt(self, dataset: str) -> bool:
        """The kit builds the prompts."""
        return False

    def generate_inner(self, message: Sequence[Mapping[str, Any]], dataset: str | None = None) -> str:
        """The answer to a message: ``{"type": "text" | "image" | "video", "value": ...}`` in their order."""
        from dslight.data.sample import IMAGE_TOKEN, Sample
        from dslight.types import Question

        key, text, images = dataset or "message", "", []
        for part in message:
            if part["type"] == "text":
                text += part["value"].replace(IMAGE_TOKEN, "")
            elif part["type"] in ("image", "video"):
                found = shown(part["value"], key, self.sampling)
                text += (IMAGE_TOKEN + "\n") * len(found)
                images += found
            else:
                raise TypeError(f"{key}: a part of type {part['type']!r}; dslight takes text, pictures and videos")
        sample = Sample(key=key, id=key, images=tuple(images))
        item = self.processor.rows.ask(sample, Question(key, text, references=()), valid=True)
        with self.vlm.evaluating():
            (reply,) = self.vlm.answer_batch(
                self.processor.collate([item]).to(self.vlm.device),
                eos_token_id=self.processor.stop_ids,
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
            )
        return reply


def _need_the_kit() -> None:
    if _Base is object:
        raise ImportError("VLMEvalKit is not installed: pip install vlmeval")
