"""The models behind the page: each answers in a thread of its own, piece by piece, with its stacks as switched."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from dslight.components import HFCausalLM
from dslight.diagnostics.draw import overlaid
from dslight.diagnostics.groups import Groups
from dslight.nn.intervention import intervene
from dslight.pictures.look import act_of, look, titles
from dslight.texts import printable


@dataclass(frozen=True)
class Switches:
    """How a model's stacks are switched on the page.

    Attributes:
        off: numbers of the stacks that are left out.
        swapped: every stack goes to the site of another.
    """

    off: tuple[int, ...] = ()
    swapped: bool = False


@dataclass
class Talker:
    """One model of the page.

    Attributes:
        name: what it is called there.
        model: a :class:`dslight.VLM` that can be asked.
    """

    name: str
    model: Any
    groups: Groups = field(init=False)
    _busy: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        self.groups = Groups(self.model)

    def facts(self) -> dict[str, Any]:
        """What the page shows of it."""
        parts = {name: type(part).__name__ for name, part in self.model.parts().items()}
        stacks = [
            {"number": g.number, "part": g.part.replace("_", " "), "layer": g.layer, "what": g.what}
            for g in self.groups
        ]
        count = sum(parameter.numel() for parameter in self.model.parameters())
        return {"name": self.name, "parts": parts, "parameters": count, "stacks": stacks}

    def answer(
        self, question: str, images: Sequence[bytes], switches: Switches, longest: int, stop: threading.Event
    ) -> Iterator[dict[str, Any]]:
        """Pieces of the answer as they come, then the whole of it.

        Args:
            question: as asked.
            images: encoded pictures.
            switches: of the stacks.
            longest: tokens of the answer at most.
            stop: set by whoever wants no more of it.
        """
        with self._busy:
            began = time.perf_counter()
            if not isinstance(self.model.language_model, HFCausalLM):  # it gives its answer as a whole
                said = self._said(question, images, switches, {"max_new_tokens": longest})
            else:
                pieces = TextIteratorStreamer(self.model.tokenizer, skip_prompt=True, skip_special_tokens=True)
                criteria = StoppingCriteriaList([_Stopped(stop)])
                options = {"max_new_tokens": longest, "streamer": pieces, "stopping_criteria": criteria}
                done: list[Any] = []

                def run() -> None:
                    try:
                        done.append(self._said(question, images, switches, options))
                    except Exception as error:  # told on the page
                        done.append(error)
                    finally:
                        pieces.end()

                thread = threading.Thread(target=run, daemon=True)
                thread.start()
                for piece in pieces:
                    if piece:
                        yield {"text": printable(piece)}
                thread.join()
                if isinstance(done[0], Exception):
                    raise done[0]
                said = done[0]
            yield {"answer": printable(said), "seconds": time.perf_counter() - began}

    def look(self, question: str, images: Sequence[bytes], switches: Switches, answer: str | None) -> dict[str, Any]:
        """Views, tokens, norms and heat maps of a question and its answer, for the page.

        Switches are as they were when the answer was given; a stack that is off has no norm and no map.
        """
        with self._busy:
            act = act_of(self.groups, switches.off, switches.swapped)
            seen = look(self.model, question, list(images), answer, act=act)
        named = titles(self.groups)
        off = set(switches.off)
        norms = [
            {
                "stack": named(norm.group.number), "relative": norm.relative, "cosine": norm.cosine,
                "added": norm.added, "stream": norm.stream, "filled": norm.filled,
            }
            for norm in seen.norms
            if norm.group.number not in off
        ]  # fmt: skip
        maps = [
            {
                "title": named(panel.slot),
                "sum": float(panel.heat.sum()),
                "size": float(panel.heat.abs().sum()),
                "picture": _address(overlaid(panel)),
            }
            for each in seen.panels
            for panel in each
            if panel.slot not in off
        ]
        views = [] if seen.views is None else [_address(_image(pixels)) for pixels in seen.views.stills]
        grids = [] if seen.views is None else [list(grid) for grid in seen.views.grids]
        tokens = [printable(token) if isinstance(token, str) else token for token in seen.tokens]
        return {
            "views": views, "grids": grids, "tokens": tokens, "norms": norms, "maps": maps, "note": seen.note,
            "log_likelihood": seen.log_likelihood, "answer": printable(seen.answer),
        }  # fmt: skip

    def _said(self, question: str, images: Sequence[bytes], switches: Switches, options: dict[str, Any]) -> str:
        act = act_of(self.groups, switches.off, switches.swapped)
        with intervene(act) if act is not None else nullcontext():  # of this thread alone
            return self.model.answer(question, list(images) or None, **options)


class _Stopped(StoppingCriteria):
    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        return torch.full((len(input_ids),), self.event.is_set(), dtype=torch.bool, device=input_ids.device)


def _image(pixels: Any) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _address(picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
