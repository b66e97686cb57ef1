"""Component: what every interchangeable part of a multimodal model owns about itself.

A part is a LightningModule, so it can be fitted alone (the vision encoder's own pretraining) and carries its device,
dtype and trainer. Inside a VLM, though, Lightning calls hooks only on the *root* module: the ``setup``,
``configure_optimizers`` or ``on_*`` of a nested part would silently never run. So a part that overrides one is refused
when its class is made; what such a hook would do belongs into ``__init__``, the VLM or a callback.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

_ROOT_ONLY = {
    "setup", "teardown", "prepare_data", "configure_model", "configure_optimizers", "configure_callbacks",
    "configure_gradient_clipping", "optimizer_step", "optimizer_zero_grad", "lr_scheduler_step", "backward",
    "training_step", "validation_step", "test_step", "predict_step", "train_dataloader", "val_dataloader",
}  # fmt: skip


class WeightsError(ValueError):
    """A weights file that does not fit its part."""


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


class Objective(nn.Module):
    """What a part is fitted with when it is fitted alone: ``forward(component, batch)`` -> named scalars, ``loss``
    among them.
    """

    def counted(self, batch: Any) -> int:
        """The number of samples that the scores of ``batch`` are a mean over."""
        return len(batch)

    def forward(self, component: Any, batch: Any) -> dict[str, Tensor]:
        """Compute the loss of ``component`` on ``batch`` and whatever else is worth logging."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward(component, batch)")


class Component(pl.LightningModule):
    """Base of the four parts. Subclasses are either abstract (one per kind) or final."""

    kind: ClassVar[str] = "component"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in vars(cls):
            if name in _ROOT_ONLY or (name.startswith("on_") and hasattr(pl.LightningModule, name)):
                raise TypeError(
                    f"{cls.__name__}.{name}: Lightning calls this hook on the root module only, never on a part inside "
                    f"a VLM. Do the work in __init__, in the VLM or in a callback."
                )

    def __init__(self) -> None:
        super().__init__()
        self.objective: Objective | None = None
        self.stage: Stage | None = None

    # --- facts that sharding, optimisation and checkpoints read

    @property
    def shard_units(self) -> list[nn.Module]:
        """The modules that are sharded, checkpointed and compiled one by one; whatever is in none of them goes with
        the root.
        """
        return []

    def param_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Optimizer groups of the trainable parameters: matrices decay, vectors and scalars (biases, norms, gates)
        do not.
        """
        trainable = [p for p in self.own_parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trainable if p.ndim >= 2], "lr": lr, "weight_decay": weight_decay},
            {"params": [p for p in trainable if p.ndim < 2], "lr": lr, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def own_parameters(self) -> Iterable[nn.Parameter]:
        """The part's parameters, without those of the objective it may be fitted with."""
        return (p for name, p in self.named_parameters() if not name.startswith("objective."))

    def own_state(self) -> dict[str, Tensor]:
        """The part's state dict, without the objective's entries."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("objective.")}

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
        self.load_state_dict(given, strict=False)  # strictness was checked above; only the objective may be absent

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
                f"{type(self).__name__} is fitted alone, but has no objective: name one under `objective:`"
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
                f"{type(self).__name__} is fitted alone, but has no stage: name learning rates under `stage.train`"
            )
        return self.stage.optimizers(self.parts(), int(self.trainer.estimated_stepping_batches))


def save_weights(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Write tensors to a safetensors file, atomically; tied tensors are written once per name."""
    from safetensors.torch import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in state.items()}, str(partial))
    partial.replace(path)


def on_meta() -> bool:
    """Whether modules are being built without memory (``with torch.device("meta")``): then nothing may be read from
    disk.
    """
    return torch.get_default_device().type == "meta"
