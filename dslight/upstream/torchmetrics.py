"""torchmetrics, without what its ``__init__`` imports beside the two classes that Lightning asks it for.

That file imports every metric there is, and with them torchvision, scipy and transformers' models, and the class of a
metric imports matplotlib to be able to plot: together more than torch itself takes. Here the modules are there at once,
and their files are run when something is asked for that needs it, so whoever uses torchmetrics finds it as it is.
"""

from __future__ import annotations

import logging
from functools import partial
from importlib import import_module
from typing import Any

from dslight.upstream.later import Later

NAME = "torchmetrics"
HOMES = {"Metric": f"{NAME}.metric", "MetricCollection": f"{NAME}.collections"}
"""What Lightning imports from the package, and where it is."""


PLOT = f"{NAME}.utilities.plot"


class _Package(Later):
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


class _Plot(Later):
    """What draws a metric: the types of its annotations are what they are without matplotlib."""

    def early(self, name: str) -> Any:
        if name in ("_AX_TYPE", "_CMAP_TYPE"):
            return object
        if name == "_PLOT_OUT_TYPE":
            return tuple[object, object]
        return partial(self.call, name) if name.startswith("plot_") else None


KINDS: dict[str, type[Later]] = {NAME: _Package, PLOT: _Plot}
