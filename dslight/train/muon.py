"""Muon for the matrices inside of layers, AdamW for all else, as one optimizer (Jordan et al. 2024).

Muon orthogonalises the momentum of a matrix, which means something for a linear map between hidden states and nothing
for embeddings, heads, convolutions, norms, biases and gates. Both are torch's own; this class deals the parameters out
between them, and is one optimizer to schedules, clipping, checkpoints and sharding.

Decided here: updates are scaled to AdamW's (``match_rms_adamw``, Liu et al. 2025), so that a part's learning rate means
the same under both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

_BY_MUON = "by_muon"


class MuonAdamW(Optimizer):
    """Muon for matrices ``[m, n]``, AdamW for the rest.

    Args:
        params: parameter groups.
        momentum: Muon's.
        nesterov: Muon's.
        ns_steps: Newton-Schulz iterations of Muon.
        adjust_lr_fn: how Muon's learning rate follows the shape of a matrix; ``original``: as in its authors' code.
        betas: AdamW's.
        eps: AdamW's.

    Example:
        >>> layer = torch.nn.Linear(4, 4)
        >>> optimizer = dslight.train.MuonAdamW([{"params": layer.parameters(), "lr": 1e-3, "name": "layer"}])
        >>> [group["name"] for group in optimizer.param_groups]
        ['layer (Muon)', 'layer']
    """

    def __init__(
        self,
        params: Iterable[Any],
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: str = "match_rms_adamw",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum: {momentum}; from 0 to below 1")
        if not 1 <= ns_steps < 100:
            raise ValueError(f"ns_steps: {ns_steps}; from 1 to 99")
        super().__init__(params, {"lr": 1e-3, "weight_decay": 0.0})
        self._muons = {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn}
        self._adams = {"betas": tuple(betas), "eps": eps}
        self._given = [dict(group) for group in self.param_groups]
        self._deal(lambda parameter: parameter.ndim == 2)

    def leave_to_adamw(self, parameters: Iterable[Tensor]) -> None:
        """Take ``parameters``, such as embeddings, from Muon; before a schedule or a state is made."""
        others = {id(parameter) for parameter in parameters}
        self._deal(lambda parameter: parameter.ndim == 2 and id(parameter) not in others)

    def _deal(self, is_matrix: Callable[[Tensor], bool]) -> None:
        self.param_groups = []
        self._inner: list[Optimizer] = []
        for by_muon, kind, own in ((True, Muon, self._muons), (False, AdamW, self._adams)):
            groups = []
            for number, group in enumerate(self._given):
                chosen = [parameter for parameter in group["params"] if is_matrix(parameter) == by_muon]
                name = f"{group.get('name', number)}{' (Muon)' if by_muon else ''}"
                groups += [{**group, **own, "name": name, "params": chosen, _BY_MUON: by_muon}] if chosen else []
            if groups:
                self._inner.append(kind(groups))  # which completes the groups with its defaults
                self.param_groups += groups
        self._join()

    def _join(self) -> None:
        """Let the two have the groups and the states of the whole."""
        for inner in self._inner:
            by_muon = isinstance(inner, Muon)
            inner.param_groups = [group for group in self.param_groups if group[_BY_MUON] == by_muon]
            inner.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._join()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update all parameters."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for inner in self._inner:
            inner.step()
        return loss


def tables(part: nn.Module) -> list[nn.Parameter]:
    """The matrices of a part that map ids to vectors or vectors to logits, not one hidden state to another: weights of
    embeddings, and of the head.
    """
    found: list[Any] = [module.weight for module in part.modules() if isinstance(module, nn.Embedding)]
    head = getattr(part, "head", None)
    return found + (list(head.parameters()) if isinstance(head, nn.Module) else [])
