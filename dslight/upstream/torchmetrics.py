"""torchmetrics, without what its ``__init__`` imports beside the two classes that Lightning asks it for.

That file imports every metric there is, and with them torchvision, scipy and transformers' models, and the class of a
metric imports matplotlib to be able to plot: together more than torch itself takes. Here the modules are there at once,
and their files are run when something is asked for that needs it, so whoever uses torchmetrics finds it as it is.
"""

from __future__ import annotations

import logging
import sys
from functools import partial
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from threading import RLock
from types import ModuleType
from typing import Any, cast

NAME = "torchmetrics"
HOMES = {"Metric": f"{NAME}.metric", "MetricCollection": f"{NAME}.collections"}
"""What Lightning imports from the package, and where it is."""


PLOT = f"{NAME}.utilities.plot"


def wait_for_metrics() -> None:
    """From now on ``import torchmetrics`` imports neither its metrics nor matplotlib; they come when asked for.

    For a command line, whose process is its own. Where torchmetrics is there already, nothing happens.
    """
    if NAME not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds these two modules alone, and each once."""

    def __init__(self) -> None:
        self.waiting: dict[str, type[_Later]] = {NAME: _Package, PLOT: _Plot}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        kind = self.waiting.pop(name, None)
        if kind is None:
            return None
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Leaves(spec.loader, kind)
        return spec


class _Leaves(Loader):
    """Leaves a module's file unread until something of it is asked for."""

    def __init__(self, loader: Loader, kind: type[_Later]) -> None:
        self.loader, self.kind = loader, kind

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)  # what gives sources, data files, ...

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__class__ = self.kind
        cast(_Later, module).begin()


_ONE_AT_A_TIME = RLock()


class _Later(ModuleType):
    """A module whose file has not been run."""

    def begin(self) -> None:
        """What is there from the beginning."""

    def early(self, name: str) -> Any:
        """A name that needs no run, else ``None``."""

    def __getattr__(self, name: str) -> Any:
        with _ONE_AT_A_TIME:
            if name in vars(self):
                return vars(self)[name]
            if (value := self.early(name)) is not None:
                vars(self)[name] = value
                return value
            if name.startswith("__") and name != "__all__":
                raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
            self.run()
            return getattr(self, name)

    def run(self) -> None:
        """Run the module's own file, and be an ordinary module."""
        kind, module = type(self), cast(Any, self)
        module.__class__ = ModuleType
        try:
            module.__spec__.loader.loader.exec_module(self)
        except BaseException:
            module.__class__ = kind
            raise


class _Package(_Later):
    """torchmetrics."""

    def begin(self) -> None:
        about = import_module(f"{NAME}.__about__")
        vars(self).update({name: getattr(about, name) for name in about.__all__})

    def early(self, name: str) -> Any:
        if name == "_logger":  # as the file sets it up: its submodules write to it
            logger = logging.getLogger(NAME)
            logger.addHandler(logging.StreamHandler())
            logger.setLevel(logging.INFO)
            return logger
        if name in HOMES:
            import_module(f"{NAME}.utilities")  # first, as in the file: the two import each other
            return getattr(import_module(HOMES[name]), name)
        return None

    def run(self) -> None:
        if (logger := vars(self).pop("_logger", None)) is not None:
            logger.handlers.clear()  # the file adds its own
        super().run()


class _Plot(_Later):
    """What draws a metric: the types of its annotations are what they are without matplotlib."""

    def early(self, name: str) -> Any:
        if name in ("_AX_TYPE", "_CMAP_TYPE"):
            return object
        if name == "_PLOT_OUT_TYPE":
            return tuple[object, object]
        if name.startswith("plot_"):
            return partial(self._draw, name)
        return None

    def _draw(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        if type(self) is _Plot:
            self.run()
        return vars(self)[name](*args, **kwargs)
