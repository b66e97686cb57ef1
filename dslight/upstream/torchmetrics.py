"""torchmetrics, without what its ``__init__`` imports beside the two classes that Lightning asks it for.

That file imports every metric there is, and with them torchvision, scipy and transformers' models: as much as torch
itself takes to import, and more. Here the package is there at once and its file is run when something is asked for that
needs it, so whoever uses torchmetrics finds it as it is.
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from threading import RLock
from types import ModuleType
from typing import Any

NAME = "torchmetrics"
HOMES = {"Metric": f"{NAME}.metric", "MetricCollection": f"{NAME}.collections"}
"""What Lightning imports from the package, and where it is."""


def wait_for_metrics() -> None:
    """From now on ``import torchmetrics`` does not import its metrics; they come when one is asked for.

    For a command line, whose process is its own. Where torchmetrics is there already, nothing happens.
    """
    if NAME not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds torchmetrics alone, and once."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != NAME:
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Later(spec.loader)
        return spec


class _Later(Loader):
    """Leaves the package's file unread for now."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)  # what gives sources, data files, ...

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        about = import_module(f"{NAME}.__about__")
        vars(module).update({name: getattr(about, name) for name in about.__all__})
        module.__class__ = _Waiting


_ONE_AT_A_TIME = RLock()


class _Waiting(ModuleType):
    """The package, whose file has not been run."""

    def __getattr__(self, name: str) -> Any:
        with _ONE_AT_A_TIME:
            if name in vars(self):
                return vars(self)[name]
            if name in HOMES:
                import_module(f"{NAME}.utilities")  # first, as in the file: the two import each other
                value = getattr(import_module(HOMES[name]), name)
            elif name == "_logger":
                value = _logger()
            elif name.startswith("__") and name != "__all__":
                raise AttributeError(f"module {NAME!r} has no attribute {name!r}")
            else:
                self._run()
                return getattr(self, name)
            vars(self)[name] = value
            return value

    def _run(self) -> None:
        """Run the package's own file, and be an ordinary module."""
        self.__class__ = ModuleType
        if (logger := vars(self).pop("_logger", None)) is not None:
            logger.handlers.clear()  # the file adds its own
        try:
            self.__spec__.loader.loader.exec_module(self)  # type: ignore[union-attr]
        except BaseException:
            self.__class__ = _Waiting
            raise


def _logger() -> logging.Logger:
    """As the package's file sets it up: its submodules write to it."""
    logger = logging.getLogger(NAME)
    logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.INFO)
    return logger
