"""Modules whose files are run when something is asked of them, where what imports them asks for little.

A command line starts in seconds less when what no verb needs is not imported. Whoever asks such a module for more than
the names that are known here finds it as it is: its own file is run, in its place.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from threading import RLock
from types import ModuleType
from typing import Any, cast


def wait_for(kinds: Mapping[str, type[Later]]) -> None:
    """From now on ``import NAME`` leaves the file of NAME unread until it is needed; not where it is there already.

    For a command line, whose process is its own.
    """
    kinds = {name: kind for name, kind in kinds.items() if name not in sys.modules}
    waiting = {name for finder in sys.meta_path if isinstance(finder, _Finder) for name in finder.kinds}
    if kinds.keys() - waiting:
        sys.meta_path.insert(0, _Finder(kinds))


class _Finder:
    """Finds these modules alone, and those in them."""

    def __init__(self, kinds: Mapping[str, type[Later]]) -> None:
        self.kinds, self.asking = kinds, set[str]()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name in self.asking:
            return None
        if name in self.kinds and name not in sys.modules:
            self.asking.add(name)
            spec = find_spec(name)  # by the other finders
            self.asking.discard(name)
            if spec is not None and spec.loader is not None:
                spec.loader = _Leaves(spec.loader, self.kinds[name])
            return spec
        package = sys.modules.get(name.rpartition(".")[0])
        if not isinstance(package, Later) or package.alone is None or name.rpartition(".")[2] in package.alone:
            return None
        package.run()  # its file imports its modules in an order of its own
        return ModuleSpec(name, _Found(sys.modules[name])) if name in sys.modules else None


class _Found(Loader):
    """Gives a module that is there by now."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec


class _Leaves(Loader):
    """Leaves a module's file unread until something of it is asked for."""

    def __init__(self, loader: Loader, kind: type[Later]) -> None:
        self.loader, self.kind = loader, kind

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)  # what gives sources, data files, ...

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__class__ = self.kind
        cast(Later, module).begin()


class _StandIn(type):
    def __instancecheck__(cls, thing: Any) -> bool:
        module = sys.modules.get(cls.__module__)
        return module is not None and not isinstance(module, Later) and isinstance(thing, vars(module)[cls.__name__])


_ONE_AT_A_TIME = RLock()


class Later(ModuleType):
    """A module whose file has not been run."""

    alone: tuple[str, ...] | None = None
    """Its modules that can be imported before its own file is run; ``None``: all."""

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

    def stand_in(self, name: str) -> type:
        """For a class of the module, to ask whether something is of it: nothing is, before the module's file is run."""
        return _StandIn(name, (), {"__module__": self.__name__})

    def run(self) -> None:
        """Run the module's own file, and be an ordinary module."""
        kind, module = type(self), cast(Any, self)
        module.__class__ = ModuleType
        try:
            module.__spec__.loader.loader.exec_module(self)
        except BaseException:
            module.__class__ = kind
            raise

    def call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """What ``name`` of the module's own file makes of these arguments; a function to hand out before that."""
        if isinstance(self, Later):  # no longer, when its file has been run
            self.run()
        return vars(self)[name](*args, **kwargs)
