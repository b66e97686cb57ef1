"""From a checkpoint of the field into a model, all or nothing, with an account of every tensor.

Names and shapes are compared before the first tensor is read, so that a refused file leaves the model as it was.
Nothing is initialised silently: a tensor that the file lacks is an error, unless its part was not asked for.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dslight.checkpoints.converted import Converted, File
from dslight.checkpoints.names import harmless, translate
from dslight.checkpoints.read import shapes
from dslight.checkpoints.share import identity, local, share
from dslight.components.component import Component
from dslight.errors import WeightsError

SHOWN = 20

_LEVEL = re.compile(r"projector\.(kinds\.\d+\.)?nets\.\d+\.")

Shape = tuple[int, ...]


class Composed(Protocol):
    """A VLM, or a component alone: whatever has parts."""

    def parts(self) -> dict[str, nn.Module]:
        """The parts by the names that recipes use."""
        ...


@dataclass
class LoadReport:
    """What became of every tensor.

    Attributes:
        path: the checkpoint.
        loaded: our names of the tensors that were read.
        missing: our names of those that the file lacks -> shape.
        unexpected: the file's names of those that the model has no place for -> shape.
        reshaped: our name -> (shape in the file, shape in the model).
        ignored: the file's name -> why it need not be read.
    """

    path: Path
    loaded: list[str] = field(default_factory=list)
    missing: dict[str, Shape] = field(default_factory=dict)
    unexpected: dict[str, Shape] = field(default_factory=dict)
    reshaped: dict[str, tuple[Shape, Shape]] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Whether nothing is missing, unexpected or of another shape."""
        return not (self.missing or self.unexpected or self.reshaped)

    def problems(self) -> list[str]:
        """One line per tensor that does not fit."""
        lines = [f"missing {name} {shape}" for name, shape in self.missing.items()]
        lines += [f"unexpected {name} {shape}" for name, shape in self.unexpected.items()]
        lines += [f"{name} is {old} in the file, {new} in the model" for name, (old, new) in self.reshaped.items()]
        return lines

    def __str__(self) -> str:
        """The counts on a line, then every tensor that does not fit, then the ignored ones by reason."""
        counts = f"{len(self.loaded)} tensors fit, {len(self.missing)} missing, {len(self.unexpected)} unexpected, "
        lines = [f"{self.path}: {counts}{len(self.reshaped)} of another shape, {len(self.ignored)} ignored"]
        lines += [f"  {line}" for line in self.problems()]
        for reason in dict.fromkeys(self.ignored.values()):
            names = [name for name, why in self.ignored.items() if why == reason]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(f"  ignored {', '.join(names[:3])}{more}: {reason}")
        return "\n".join(lines)


def load_checkpoint(
    model: Composed, path: str | Path, parts: Sequence[str] | None = None, strict: bool = True, read: bool = True
) -> LoadReport:
    """Read a model, or some of its parts, from any layout that :mod:`dslight.checkpoints.names` knows, or from ours.

    Of a model that is sharded, every process reads its own share of each tensor and no more.

    Args:
        model: a VLM, or a component alone.
        path: a file or a folder (see :mod:`dslight.checkpoints.read`).
        parts: those that the file is asked for; default: all that the model has.
        strict: false loads what fits and leaves the rest as it was.
        read: false only tells what would become of every tensor; the model may then be without memory.

    Raises:
        WeightsError: when the file cannot be read; when it does not fit and ``strict``. The model is then unchanged.
    """
    asked = [part for part in model.parts() if (part in parts if parts is not None else part != "objective")]
    own = _own_state(model, asked)
    file = File(path)
    names, report = _matched(model, file, own, asked)
    network = getattr(model.parts()[asked[0]], "model", None) if len(asked) == 1 else None
    if not report.fits and hasattr(network, "base_model_prefix"):
        converted = Converted(path, network)
        other = _matched(model, converted, own, asked)
        if len(other[1].problems()) < len(report.problems()):
            file, (names, report) = converted, other
    given = file.shapes
    if strict and not report.fits:
        raise WeightsError(_refusal(report, model, asked, given))
    if read:
        fitting = set(report.loaded)
        wanted = {name: share(own[names[name]]) for name in given if names[name] in fitting}
        with torch.no_grad():
            for name, tensor in file.tensors(wanted):
                local(own[names[name]]).copy_(tensor)  # in the dtype of the model
    return report


def _matched(
    model: Composed, file: File, own: Mapping[str, Tensor], asked: Sequence[str]
) -> tuple[dict[str, str], LoadReport]:
    """Names in the file -> ours, and what would become of every tensor."""
    names = _names(model, file.shapes, own, asked)
    parts = model.parts()
    out = [f"{part}.model.{path}." for part in asked for path in getattr(parts[part], "left_out", ())]
    report = _compare(Path(file.path), file.shapes, names, own, set(parts).difference(asked), tuple(out))
    _follow_ties(report, own, names, file)
    return names, report


def parts_in(path: str | Path) -> set[str]:
    """The parts that a checkpoint in a layout of the field, or in ours, has tensors of.

    Raises:
        WeightsError: when it cannot be read.
    """
    return {new.split(".")[0] for new in translate(shapes(path)).values()}


def _own_state(model: Composed, asked: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of the parts that are asked for, under their names in a VLM."""
    return {
        f"{part}.{name}": tensor
        for part, module in model.parts().items()
        if part in asked
        for name, tensor in (module.own_state() if isinstance(module, Component) else module.state_dict()).items()
    }


def _names(model: Composed, given: Iterable[str], own: Mapping[str, Tensor], asked: Sequence[str]) -> dict[str, str]:
    """Names in the file -> names in a VLM, in the layout that knows most of them: a whole model of ours, one part of
    ours, a layout of the field, or the network inside of one part.
    """
    given = list(given)
    all_parts = model.parts()
    network = getattr(all_parts.get("language_model"), "model", None)
    encoder = all_parts.get("vision_encoder")
    depth = getattr(encoder, "depth", 0)
    layouts = [{name: name.removeprefix("vlm.") for name in given}]
    layouts += [{name: f"{asked[0]}.{name}" for name in given}] if len(asked) == 1 else []
    layouts += [translate(given, body=getattr(network, "base_model_prefix", "model"), depth=depth)]
    layouts += [{name: f"{asked[0]}.model.{name}" for name in given}] if len(asked) == 1 else []
    return max(layouts, key=lambda names: sum(new in own for new in names.values()))


def _compare(
    path: Path,
    given: Mapping[str, Shape],
    names: Mapping[str, str],
    own: Mapping[str, Tensor],
    others: Container[str],
    left_out: tuple[str, ...] = (),
) -> LoadReport:
    report = LoadReport(path)
    taken: set[str] = set()
    for name, shape in given.items():
        new = names[name]
        part = new.split(".")[0]
        if new not in own:
            reason = f"{part} was not asked for" if part in others else harmless(new) or _of_no_level(new, own)
            if reason is None and left_out and new.startswith(left_out):
                reason = "the language model alone is taken of a multimodal one"
            if reason is None:
                report.unexpected[name] = shape
            else:
                report.ignored[name] = reason
        elif new in taken:
            report.unexpected[f"{name} (a second {new})"] = shape
        elif shape != tuple(own[new].shape):
            report.reshaped[new] = (shape, tuple(own[new].shape))
        else:
            report.loaded.append(new)
        taken.add(new)
    report.missing = {name: tuple(tensor.shape) for name, tensor in own.items() if name not in taken}
    return report


def _of_no_level(name: str, own: Iterable[str]) -> str | None:
    """Why a projector's net is not needed, where each level has its own and there are fewer levels."""
    several = _LEVEL.match(name) and any(map(_LEVEL.match, own))
    return "of a level that this stacking does not make" if several else None


def _follow_ties(
    report: LoadReport,
    own: Mapping[str, Tensor],
    names: Mapping[str, str],
    file: File,
) -> None:
    """Names of one tensor (a head that is the embedding): one in the file is enough, two must agree."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, tensor in own.items():
        groups.setdefault((*identity(tensor), *tensor.shape), []).append(name)
    tied = [group for group in groups.values() if len(group) > 1]
    for group in tied:
        if any(name in report.loaded for name in group):
            report.missing = {name: shape for name, shape in report.missing.items() if name not in group}
    twice = {name for group in tied if sum(name in report.loaded for name in group) > 1 for name in group}
    if not twice:
        return
    wanted = {name for name, new in names.items() if new in twice}
    read = {names[name]: (name, tensor) for name, tensor in file.tensors(dict.fromkeys(wanted))}
    for group in tied:
        held = [name for name in group if name in read]
        for name in held[1:]:
            if not torch.equal(read[name][1], read[held[0]][1]):
                report.loaded.remove(name)
                report.unexpected[f"{read[name][0]} (not equal to {read[held[0]][0]}, to which the model ties it)"] = (
                    tuple(read[name][1].shape)
                )


def _refusal(report: LoadReport, model: Composed, asked: Sequence[str], given: Iterable[str]) -> str:
    parts = model.parts()
    encoder = parts.get("vision_encoder")
    theirs = any(new.startswith("vision_encoder.model.encoder.layers.") for new in translate(given).values())
    if theirs and "vision_encoder" in asked and hasattr(getattr(encoder, "model", None), "blocks"):
        return (
            f"{report.path} has a vision encoder of transformers; {type(encoder).__name__} is one of timm, with other "
            f"tensors: use dslight.components.HFVisionEncoder, or name weights for this part alone"
        )
    alone = f"{asked[0]}." if len(asked) == 1 else ""
    what = type(parts[asked[0]] if alone else model).__name__
    lines = [re.sub(rf"^(missing )?{alone}", r"\1", line) for line in report.problems()]
    lines = lines[:SHOWN] + ([f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else [])
    return f"{report.path} does not fit {what}:\n  " + "\n  ".join(lines)
