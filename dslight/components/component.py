"""Component: what every interchangeable part of a multimodal model owns about itself.

A part is a LightningModule, so it can be fitted alone (the vision encoder's own pretraining) and carries its device,
dtype and trainer. Inside a VLM, though, Lightning calls hooks only on the *root* module: the ``setup``,
``configure_optimizers`` or ``on_*`` of a nested part silently never run. So a VLM names those of its parts
(:func:`warn_of_idle_hooks`); what they would do belongs into ``__init__``, the VLM or a callback.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol
from warnings import warn
from weakref import WeakSet

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dslight.errors import WeightsError
from dslight.files.atomic import beside
from dslight.written import Written

_ROOT_ONLY = {
    "setup", "teardown", "prepare_data", "configure_model", "configure_optimizers", "configure_callbacks",
    "configure_gradient_clipping", "optimizer_step", "optimizer_zero_grad", "lr_scheduler_step", "backward",
    "training_step", "validation_step", "test_step", "predict_step", "train_dataloader", "val_dataloader",
    *(name for name in dir(pl.LightningModule) if name.startswith("on_") and name != "on_gpu"),
}  # fmt: skip
"""Hooks that Lightning calls on the module that a Trainer drives, and on none inside it."""
_NAMED: WeakSet[type] = WeakSet()
"""Classes of which :func:`warn_of_idle_hooks` has spoken."""


class Stage(Protocol):
    """What trains, and how (``dslight.train.optim.Stage``); declared here so that parts need not know the trainer."""

    train: Mapping[str, Any]
    """Part name -> how it trains."""

    def freeze(self, parts: Mapping[str, nn.Module]) -> None:
        """Leave gradients only to the parts that train."""
        ...

    def optimizers(self, parts: Mapping[str, nn.Module], total_steps: int) -> Any:
        """What ``configure_optimizers`` returns."""
        ...


class Objective(nn.Module, Written):
    """What a part is fitted with when it is fitted alone: ``forward(component, batch)`` -> named scalars, ``loss``
    among them.

    Example:
        >>> class Brightness(dslight.Objective):  # an encoder learns how bright every image is
        ...     def __init__(self, width):
        ...         super().__init__()
        ...         self.head = torch.nn.Linear(width, 1)
        ...     def forward(self, encoder, batch):
        ...         said = self.head(encoder(batch.views.pixels)[0].mean(1)).squeeze(1)
        ...         return {"loss": (said - batch.views.pixels.float().mean((1, 2, 3)) / 255).square().mean()}
        >>> data = dslight.DenseLabelData(["data/digits/train"], dslight.SingleView(), global_batch_size=4)
        >>> learns = {"vision_encoder": 1e-3, "objective": 1e-3}
        >>> once = {"max_steps": 1, "enable_progress_bar": False}
        >>> dslight.fit(encoder, data, learns, once, "runs/brightness", objective=Brightness)
        runs/brightness: ...
    """

    def counted(self, batch: Any) -> int:
        """The number of samples that the scores of ``batch`` are a mean over."""
        return len(batch)

    def forward(self, component: Any, batch: Any) -> dict[str, Tensor]:
        """Compute the loss of ``component`` on ``batch`` and whatever else is worth logging."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward(component, batch)")


class Component(pl.LightningModule, Written):
    """Base of the four parts. Subclasses are either abstract (one per kind) or final.

    Example:
        >>> isinstance(encoder, dslight.Component), isinstance(encoder, torch.nn.Module)
        (True, True)
        >>> encoder.freeze()
        >>> encoder.train().training  # a frozen part stays in evaluation mode
        False
    """

    kind: ClassVar[str] = "component"

    def __init__(self) -> None:
        super().__init__()
        self.objective: Objective | None = None
        self.stage: Stage | None = None
        self.adapted = False  # whether a stage trains low-rank adapters instead of the weights

    # --- facts that sharding, optimisation and checkpoints read

    @property
    def shard_units(self) -> list[nn.Module]:
        """The modules that are sharded, checkpointed and compiled one by one; whatever is in none of them goes with
        the root.
        """
        return []

    def param_groups(self, lr: float, weight_decay: float, layer_decay: float | None = None) -> list[dict[str, Any]]:
        """Optimizer groups of the trainable parameters: matrices decay, vectors and scalars (biases, norms, gates)
        do not.

        Args:
            lr: of the last layer and of what lies behind it.
            weight_decay: of matrices.
            layer_decay: every layer's learning rate is this times that of the layer behind it (BEiT's and timm's rule,
                see :meth:`layers_from_end`); ``None``: all learn alike.
        """
        distance = self.layers_from_end() if layer_decay is not None else {}
        groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad and not name.startswith("objective."):
                groups.setdefault((-distance.get(name, 0), parameter.ndim < 2), []).append(parameter)
        made, last = [], max(distance.values(), default=0)
        for (back, vectors), parameters in sorted(groups.items(), key=lambda group: group[0]):
            rate = {"lr": lr * (layer_decay or 1.0) ** -back, "weight_decay": 0.0 if vectors else weight_decay}
            name = f"layer {last + back} {'vectors' if vectors else 'matrices'}"
            made.append({"params": parameters, **rate, **({} if layer_decay is None else {"name": name})})
        return made

    def layers_from_end(self) -> dict[str, int]:
        """How many layers lie behind each parameter, by its name, as timm counts them: 0 in the last layer and in what
        stands behind it (last norm, head); as many as there are layers in what stands before the first (embeddings,
        patches, positions).

        What stands before and behind is told by the order of registration. Encoders side by side count for themselves.
        """
        nested = {name: part for name, part in self.named_children() if isinstance(part, Component)}
        nested |= {
            f"{name}.{key}": part
            for name, children in self.named_children()
            if isinstance(children, nn.ModuleList | nn.ModuleDict)
            for key, part in children.named_children()
            if isinstance(part, Component)
        }
        if nested:
            return {f"{at}.{name}": n for at, part in nested.items() for name, n in part.layers_from_end().items()}
        units = self.shard_units
        layer_of = {id(p): layer for layer, unit in enumerate(units) for p in unit.parameters()}
        found, standing = {}, -1  # before the first layer, until one has come
        for name, parameter in self.named_parameters():
            layer = layer_of.get(id(parameter), standing)
            found[name] = len(units) - 1 - layer
            standing = len(units) - 1 if layer >= 0 else -1
        return found

    def diagnostics(self) -> Mapping[str, float | Tensor]:
        """Numbers that tell how the part is doing, logged behind a validation as ``diagnostics/PART/NAME`` where a
        recipe has ``diagnostics``; always under the same names. Called on all ranks (see :func:`whole`).
        """
        return {}

    def own_parameters(self) -> Iterable[nn.Parameter]:
        """The part's parameters, without those of the objective it may be fitted with."""
        return (p for name, p in self.named_parameters() if not name.startswith("objective."))

    def own_state(self) -> dict[str, Tensor]:
        """The part's state dict under the names of its weights file: without the objective's entries, and without the
        adapters that a stage may have put into it (:mod:`dslight.train.lora`).
        """
        state = {k: v for k, v in self.state_dict().items() if not k.startswith("objective.")}
        if not self.adapted:
            return state
        return {k.replace(".base_layer.", "."): v for k, v in state.items() if ".lora_" not in k}

    def freeze(self) -> None:
        """Stop training this part: no gradients, and evaluation mode from now on (no dropout, no moving statistics)."""
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Component:
        """As ``nn.Module.train``; a frozen part stays in evaluation mode."""
        flags = [p.requires_grad for p in self.parameters()]
        frozen = bool(flags) and not any(flags)
        super().train(mode and not frozen)
        return self

    # --- weights

    def load_weights(self, path: str | Path) -> None:
        """Read the part's weights from a safetensors file that :func:`save_weights` wrote.

        Raises:
            WeightsError: naming every missing, unexpected and differently shaped tensor.
        """
        from safetensors.torch import load_file

        given, own = load_file(str(path)), self.own_state()
        problems = [f"missing {k} {tuple(v.shape)}" for k, v in own.items() if k not in given]
        problems += [f"unexpected {k} {tuple(v.shape)}" for k, v in given.items() if k not in own]
        problems += [
            f"{k} is {tuple(v.shape)} in the file, {tuple(own[k].shape)} in the model"
            for k, v in given.items()
            if k in own and v.shape != own[k].shape
        ]
        if problems:
            shown = "\n  ".join(problems[:20] + ([f"... and {len(problems) - 20} more"] if len(problems) > 20 else []))
            raise WeightsError(f"{path} does not fit {type(self).__name__}:\n  {shown}")
        with torch.no_grad():
            for name, tensor in given.items():
                own[name].copy_(tensor)

    # --- fitted alone

    def train_with(self, stage: Stage) -> None:
        """Let ``stage`` say what trains: the part, the objective's heads, or both."""
        self.stage = stage
        stage.freeze(self.parts())

    def parts(self) -> dict[str, nn.Module]:
        """What a stage may train when this part is fitted alone: the part under its kind's name, and the objective's
        heads.
        """
        parts: dict[str, nn.Module] = {self.kind: self}
        if self.objective is not None:
            parts["objective"] = self.objective
        return parts

    def _objective(self, batch: Any) -> tuple[dict[str, Tensor], int]:
        """The objective's numbers, and how many samples they are a mean over."""
        if self.objective is None:
            raise RuntimeError(
                f"{type(self).__name__} is fitted alone, but has no objective: dslight.fit(..., objective=...)"
            )
        return self.objective(self, batch), self.objective.counted(batch)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Fitted alone: the objective's loss."""
        scores, count = self._objective(batch)
        self.log_dict({f"train/{k}": v.detach() for k, v in scores.items()}, prog_bar=True, batch_size=count)
        return scores["loss"]

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Fitted alone: the objective's numbers on held-out data; of several sources, Lightning numbers them."""
        scores, count = self._objective(batch)
        self.log_dict({f"val/{k}": v for k, v in scores.items()}, prog_bar=True, sync_dist=True, batch_size=count)

    def configure_optimizers(self) -> Any:
        """Fitted alone: the stage's optimizer over the part and its objective."""
        if self.stage is None:
            raise RuntimeError(
                f"{type(self).__name__} is fitted alone, but has no stage: train_with(dslight.Stage(...)) gives one"
            )
        return self.stage.optimizers(self.parts(), int(self.trainer.estimated_stepping_batches))


def save_weights(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Write tensors to a safetensors file, atomically; tied tensors are written once per name."""
    from safetensors.torch import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
    needed = sum(tensor.nbytes for tensor in tensors.values())
    with beside(path, needed) as partial:
        save_file(tensors, str(partial))


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be sharded, on every rank whole and without gradient."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def warn_of_idle_hooks(part: nn.Module) -> None:
    """Name the hooks of ``part``, and of LightningModules inside it, that will not run; once for each class."""
    for kind in {type(module) for module in part.modules() if isinstance(module, pl.LightningModule)}.difference(
        _NAMED
    ):
        _NAMED.add(kind)
        known = (pl.LightningModule, Component)
        own = [n for n in sorted(_ROOT_ONLY) if not any(getattr(kind, n) is getattr(base, n) for base in known)]
        if own:
            warn(
                f"{kind.__name__} defines {', '.join(own)}: Lightning calls these on the module that a Trainer drives, "
                f"so inside a VLM they never run; do their work in __init__, in the VLM or in a callback",
                stacklevel=4,
            )


def on_meta() -> bool:
    """Whether modules are being built without memory (``with torch.device("meta")``): then nothing may be read from
    disk.
    """
    return torch.get_default_device().type == "meta"
