"""scipy, without its optimizers: transformers imports them with every model, for the losses of detectors."""

from __future__ import annotations

from functools import partial
from typing import Any

from dslight.upstream.later import Later


class _Optimize(Later):
    """``scipy.optimize``: of which transformers asks for one function."""

    alone = ()

    def early(self, name: str) -> Any:
        return partial(self.call, name) if name == "linear_sum_assignment" else None


KINDS: dict[str, type[Later]] = {"scipy.optimize": _Optimize}
