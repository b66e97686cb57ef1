"""torch's compiler, which waits until something is compiled.

Lightning, transformers, timm's torchvision and torch's own kernels for the meta device import all of it, to mark
functions for it, to ask whether a model is compiled, and for a class that one kind of attention uses. A plan compiles
nothing. What was marked before the compiler is there it is told of then.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from inspect import isfunction
from typing import Any

from dslight.upstream.later import Later

NAME = "torch._dynamo"
_KEPT = "__dynamo_disable"
"""Where torch keeps, on a function that is never compiled, what it calls instead."""


def uncompiled() -> AbstractContextManager[Any]:
    """Within it, what was compiled runs as it is written."""
    import torch

    if isinstance(sys.modules.get(NAME), Later):
        return nullcontext()  # then nothing was
    return torch.compiler.set_stance("force_eager")


class _Package(Later):
    """``torch._dynamo``."""

    alone = (
        "config",
        "utils",
        "_trace_wrapped_higher_order_op",
        "source",
        "bytecode_transformation",
        "bytecode_analysis",
    )

    def begin(self) -> None:
        self.marked: list[tuple[str, Callable[..., Any]]] = []
        self.disabled: list[Callable[..., Any]] = []

    def early(self, name: str) -> Any:
        if name == "OptimizedModule":
            return self.stand_in(name)
        if name == "disable":
            return self._disable
        return partial(self._mark, name) if name in ("allow_in_graph", "assume_constant_result") else None

    def _mark(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        if not isinstance(self, Later):
            return vars(self)[name](function)
        self.marked.append((name, function))
        return function

    def _disable(
        self, fn: Any = None, recursive: bool = True, *, reason: str | None = None, wrapping: bool = True
    ) -> Any:
        if fn is None:
            return partial(self._disable, recursive=recursive, reason=reason, wrapping=wrapping)
        if not isinstance(self, Later) or not isfunction(fn):
            return self.call("disable", fn, recursive, reason=reason, wrapping=wrapping)
        if wrapping:
            from torch._compile import _disable_dynamo

            return _disable_dynamo(fn, recursive)  # asks as below when it is called
        self.disabled.append(fn)
        return fn

    def run(self) -> None:
        marked, disabled = vars(self).pop("marked"), vars(self).pop("disabled")
        for function in disabled:
            vars(function).pop(_KEPT, None)  # and it asks again
        super().run()
        for name, function in marked:
            vars(self)[name](function)


class _Module(Later):
    """One of its modules, whose file needs that of the package."""

    names: tuple[str, ...] = ()

    def early(self, name: str) -> Any:
        return partial(self.call, name) if name in self.names else None

    def run(self) -> None:
        if isinstance(package := sys.modules[NAME], Later):
            package.run()
        if isinstance(self, Later):
            super().run()


class _Utils(_Module):
    names = ("is_compile_supported", "is_safe_constant")


class _Indices(_Module):
    names = ("TransformGetItemToIndex",)


KINDS: dict[str, type[Later]] = {
    NAME: _Package,
    f"{NAME}.utils": _Utils,
    f"{NAME}._trace_wrapped_higher_order_op": _Indices,
}
