"""Pictures and questions of a run's own validation, to begin a talk with."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dslight.data.sample import parse_sample
from dslight.data.shards import ShardReader


class Examples:
    """Questions about a picture, one by one and around again.

    Args:
        recipe: of the run.
    """

    def __init__(self, recipe: Mapping[str, Any]) -> None:
        self._reader: ShardReader | None = None
        sources = (recipe.get("data") or {}).get("val") or {}
        for source in sources.values():
            root = source.get("root") if isinstance(source, Mapping) else source
            if isinstance(root, str) and Path(root).is_dir():
                self._reader = ShardReader(Path(root))
                break

    def __len__(self) -> int:
        return 0 if self._reader is None else len(self._reader)

    def __call__(self, number: int) -> dict[str, Any]:
        """The picture as an address, a question about it, and what people answered.

        Raises:
            ValueError: a record that is none.
        """
        assert self._reader is not None
        at = number % len(self)
        sample = parse_sample(self._reader.locate(at)[1], self._reader.read(at))
        if not sample.questions:
            raise ValueError(f"{sample.key}: has no question")
        question = sample.questions[number // len(self) % len(sample.questions)]
        pictures = [f"data:image;base64,{base64.b64encode(image).decode()}" for image in sample.pictures]
        return {"pictures": pictures, "question": question.text, "references": list(question.references)}
