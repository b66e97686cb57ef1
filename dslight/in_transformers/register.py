"""Tell transformers of our classes, at the moment when its tables are there to be told.

Transformers has no entry point for packages, and importing it takes seconds, so ``import dslight`` only leaves a note:
a finder on ``sys.meta_path`` that sees the module of a table being imported, lets it be, and then registers. A table
that is there already is told at once. The model's class waits until a configuration of ours is read, which every way to
the model goes through.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from typing import Any

MODEL_TYPE = "dslight"
ARCHITECTURE = "DslightForConditionalGeneration"


def announce() -> None:
    """Register with transformers, now or when it is imported; calling it again does nothing."""
    if any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        return
    waiting = _Waiting()
    for name, register in list(waiting.tables.items()):
        if getattr(sys.modules.get(name), "__all__", None):  # the last that such a module defines
            waiting.tables.pop(name)
            register()
    sys.meta_path.insert(0, waiting)


class _Waiting:
    """Finds no module itself; acts behind the import of some."""

    def __init__(self) -> None:
        self.tables: dict[str, Callable[[], None]] = {
            "transformers.models.auto.configuration_auto": _register_config,
            "transformers.models.auto.processing_auto": _register_processor,
        }

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The module's own spec, with what is to be done behind its import."""
        register = self.tables.pop(name, None)
        if register is None:
            return None
        spec = find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        run = loader.exec_module

        def run_and_register(module: Any) -> None:
            run(module)
            register()

        loader.exec_module = run_and_register
        return spec


def _register_config() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from dslight.in_transformers.config import DslightConfig

    AutoConfig.register(MODEL_TYPE, DslightConfig, exist_ok=True)


def _register_processor() -> None:
    from transformers.models.auto.processing_auto import AutoProcessor

    from dslight.in_transformers.config import DslightConfig
    from dslight.in_transformers.processor import DslightProcessor

    AutoProcessor.register(DslightConfig, DslightProcessor, exist_ok=True)


def register_model() -> None:
    """Tell the Auto classes of the model; its own libraries are imported when one is made.

    The server and the pipelines of transformers look names up in a table that ``register`` does not write into, and the
    server takes the class from the package itself; both are told as well.
    """
    import transformers
    from transformers.models.auto import modeling_auto

    names = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    if names.get(MODEL_TYPE) == ARCHITECTURE:
        return
    from dslight.in_transformers.config import DslightConfig
    from dslight.in_transformers.model import DslightForConditionalGeneration

    for auto in (modeling_auto.AutoModelForImageTextToText, modeling_auto.AutoModel):
        auto.register(DslightConfig, DslightForConditionalGeneration, exist_ok=True)
    setattr(transformers, ARCHITECTURE, DslightForConditionalGeneration)
    names[MODEL_TYPE] = ARCHITECTURE
