"""LoRA (Hu et al. 2021): a part keeps its weights and learns a low-rank difference to them.

The adapters are peft's, put into the part in place, so that sharding, checkpoints and the injector see ordinary
modules. Decided here: outside of a run's own checkpoints there are no adapters. The weights file of a part that trained
so, and an export, hold ``W + B A * alpha / r`` under the part's own names, and go wherever a part that trained whole
would go. Adapters have the precision of the weights they stand beside; keep those in float32 and let the trainer
compute in ``bf16-mixed``, or accept updates rounded to bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class LoRA:
    """Which layers get adapters, and of which size.

    Attributes:
        r: rank of the difference.
        alpha: it is scaled by alpha / r.
        target_modules: names of linear layers, or their last parts (``[q_proj, v_proj]``), or ``all-linear``: every one
            but a decoder's output head.
        dropout: on what enters the adapters.

    Example:
        >>> model = dslight.VLM(encoder, dslight.MLPProjector, dslight.LowResolution(), lm)
        >>> model.train_with({"language_model": dslight.PartTraining(2e-4, lora=dslight.LoRA(r=8))})
        >>> all("lora" in name for name, p in model.named_parameters() if p.requires_grad)
        True
    """

    r: int = 16
    alpha: float = 32.0
    target_modules: list[str] | str = ALL_LINEAR
    dropout: float = 0.0

    def check(self) -> None:
        """Refuse values that mean nothing.

        Raises:
            ValueError: beginning with the attribute.
        """
        if self.r < 1:
            raise ValueError(f"r: must be at least 1, got {self.r}")
        if not self.alpha > 0:
            raise ValueError(f"alpha: must be above 0, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: must be in 0..1, got {self.dropout}")


def adapt(part: Any, lora: LoRA) -> None:
    """Freeze ``part`` and put trainable adapters beside its linear layers, in place; they add nothing at first.

    Raises:
        ValueError: for a name that is no linear layer of the part; when peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError("peft is not installed: pip install 'dslight[lora]'") from error
    part.requires_grad_(False)
    if not getattr(part, "adapted", False):
        config = LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft only divides by r
            lora_dropout=lora.dropout,
            target_modules=_targets(part, lora.target_modules),
        )
        with torch.random.fork_rng([]):  # whatever is made later begins as it would without adapters
            inject_adapter_in_model(config, part)
        part.adapted = True
    for name, parameter in part.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def merged(part: nn.Module, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The part's state dict under the names it has without adapters, with these added to the weights.

    Args:
        part: with adapters or without.
        state: its state dict, whole, where the part itself is sharded.
    """
    state = part.state_dict() if state is None else dict(state)
    if not getattr(part, "adapted", False):
        return dict(state)
    found = {k.replace(".base_layer.", "."): v for k, v in state.items() if ".lora_" not in k}
    for name, module in part.named_modules():
        weight = found.get(f"{name}.weight")
        if hasattr(module, "base_layer") and weight is not None:
            down, up = (state[f"{name}.lora_{which}.default.weight"] for which in "AB")
            change = (up.float() @ down.float()) * module.scaling["default"]  # type: ignore[index]
            change = change.T if module.fan_in_fan_out else change
            found[f"{name}.weight"] = (weight.float() + change.to(weight.device)).to(weight.dtype)
    return found


@dataclass(frozen=True)
class Coverage:
    """What adapters stand beside, and what they do not.

    Attributes:
        adapted: parameters of the layers that have adapters.
        parameters: of the part, without the adapters.
        left: kind of matrix without adapters (the end of its name) -> parameters; the largest first.
    """

    adapted: int
    parameters: int
    left: dict[str, int]

    def __str__(self) -> str:
        """A sentence without its subject."""
        said = f"{self.adapted:,} of {self.parameters:,} parameters ({self.adapted / max(1, self.parameters):.0%})"
        left = [f"{name} ({count:,})" for name, count in list(self.left.items())[:4]]
        more = f" and {len(self.left) - 4} more" if len(self.left) > 4 else ""
        return f"{said}; without adapters are {', '.join(left)}{more}" if left else said


def coverage(part: nn.Module) -> Coverage:
    """How much of an adapted part its adapters reach. Experts that are one parameter of three dimensions get none: peft
    adapts layers.
    """
    adapted, parameters, left = 0, 0, {}
    for name, parameter in part.named_parameters():
        if ".lora_" in name or name.startswith("objective."):
            continue
        parameters += parameter.numel()
        if name.endswith(".base_layer.weight"):
            adapted += parameter.numel()
        elif parameter.ndim >= 2:
            kind = ".".join([word for word in name.split(".") if not word.isdigit() and word != "weight"][-2:])
            left[kind] = left.get(kind, 0) + parameter.numel()
    return Coverage(adapted, parameters, dict(sorted(left.items(), key=lambda item: -item[1])))


def _targets(part: Any, wanted: list[str] | str) -> list[str]:
    """The full names of the wanted layers."""
    from transformers import Conv1D

    linear = {name for name, module in part.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    for name, module in part.named_modules():
        if isinstance(module, nn.MultiheadAttention):  # reads the weights of its layer instead of calling it
            linear -= {f"{name}.out_proj"}
    linear = {name for name in linear if not name.startswith("objective.")}
    if not linear:
        raise ValueError(f"{type(part).__name__} has no linear layers to adapt")
    if wanted == ALL_LINEAR:
        head = getattr(getattr(part, "model", None), "get_output_embeddings", lambda: None)()
        return sorted(name for name in linear if part.get_submodule(name) is not head)
    if isinstance(wanted, str):
        raise ValueError(f"target_modules: expected {ALL_LINEAR} or a list of names, got {wanted!r}")
    targets: set[str] = set()
    for given in wanted:
        named = {name for name in linear if name == given or name.endswith(f".{given}")}
        if not named:
            kinds = sorted({name.rpartition(".")[2] for name in linear})
            raise ValueError(f"target_modules: {given!r} is no linear layer; there are {', '.join(kinds)}")
        targets |= named
    if not targets:
        raise ValueError("target_modules: names no layer")
    return sorted(targets)
