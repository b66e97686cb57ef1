"""peft, without its adapters: transformers imports it beside its schedules, to ask whether a model is one of peft's."""

from __future__ import annotations

from typing import Any

from dslight.upstream.later import Later


class _Package(Later):
    """peft."""

    alone = ()

    def early(self, name: str) -> Any:
        return self.stand_in(name) if name in ("PeftModel", "PeftMixedModel") else None


KINDS: dict[str, type[Later]] = {"peft": _Package}
