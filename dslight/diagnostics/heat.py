"""Where in the image does a question's gain come from: a number for every stacked token, of one reference answer.

``gradient_x_input``: the derivative of the answer's log-likelihood (teacher-forced) with respect to a token as it
enters the injector, times the token: to first order, what the log-likelihood loses without it. Signed. ``gradient``:
the norm of that derivative. ``attention``: how much of the attention that the answer pays, in the mean of all layers
and heads, goes to a visual position; all slots share the positions, so there is one number for them, and it needs eager
attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dslight.diagnostics.groups import Groups
from dslight.diagnostics.settings import Heat
from dslight.nn.hooks import behind
from dslight.nn.intervention import Act, Injection, intervene
from dslight.nn.loss import next_token_loss
from dslight.types import IGNORE, Batch, VisualTokens
from dslight.vlm import VLM


@dataclass(frozen=True)
class Relevance:
    """Of all tokens that a batch shows of its images.

    Attributes:
        log_likelihood: of the labelled tokens, summed over the batch.
        slots: float32 ``[S+1, N]``, of the slots of the sequence.
        inside: float32 ``[S', M * P]``, of the stacks into the vision encoder.
    """

    log_likelihood: float
    slots: Tensor
    inside: Tensor


def relevance(
    model: VLM,
    batch: Batch,
    heat: Heat = "gradient_x_input",
    changed: Act | None = None,
    visual: VisualTokens | None = None,
) -> Relevance:
    """Look at one batch with labels; the model's own gradients are left as they are.

    Args:
        model: in evaluation mode.
        batch: with labels.
        heat: what a number is, see the module's docstring.
        changed: what is done to the stacks on their way; the numbers are of those before it. Not with ``attention``.
        visual: what its views are seen as, where that is known and no stack goes into the vision encoder.

    Raises:
        ValueError: ``attention`` of a model that gives no attention weights.
    """
    assert batch.labels is not None
    if heat == "attention":
        return _attention(model, batch)
    groups, seen = Groups(model), {}

    def act(injection: Injection) -> Injection:
        stacks, fill = _differentiable(injection.stacks), _differentiable(injection.fill)
        if groups.inside(injection):
            seen["inside"] = stacks
        else:
            seen["stacks"], seen["base"] = stacks, fill
        injection = replace(injection, stacks=stacks, fill=fill)
        return injection if changed is None else changed(injection)

    with torch.inference_mode(False), torch.enable_grad():
        with intervene(act):
            likelihood = -model.loss(batch, visual)[0]
        names, tokens = zip(*((name, each) for name, each in seen.items() if name == "base" or len(each)), strict=True)
        gradients = torch.autograd.grad(likelihood, tokens, allow_unused=True)  # unused: a batch of text alone
    found = {name: torch.zeros(value.shape[:-1]) for name, value in seen.items()}
    for name, token, gradient in zip(names, tokens, gradients, strict=True):
        if gradient is not None:
            token, gradient = token.detach().float(), gradient.float()
            found[name] = ((token * gradient).sum(-1) if heat == "gradient_x_input" else gradient.norm(dim=-1)).cpu()
    slots = torch.cat([found["base"][None], found["stacks"]])
    return Relevance(float(likelihood.detach()), slots, found.get("inside", torch.zeros(0, 0)))


def _differentiable(tokens: Any) -> Any:
    """The tokens as something to differentiate by: as they are, where something in front of them trains."""
    return tokens if tokens is None or tokens.requires_grad else tokens.detach().requires_grad_()


def _attention(model: VLM, batch: Batch) -> Relevance:
    assert batch.labels is not None
    with torch.no_grad(), attention_weights(model.language_model.layers) as weights:
        logits = model(batch)
        likelihood = -next_token_loss(logits, batch.labels)[0]
    if not weights:
        raise ValueError(
            "heat: the language model's attention gives no weights; set model.language_model.init_args.attention: eager"
        )
    asks = torch.zeros_like(batch.visual_mask)
    asks[:, :-1] = batch.labels[:, 1:] != IGNORE  # the positions that predict the answer
    paid = torch.stack([each.float().mean(1) for each in weights]).mean(0)  # [B, T, T]
    mass = (paid * asks[..., None]).sum(1) / asks.sum(1, keepdim=True).clamp(min=1)
    return Relevance(float(likelihood), mass[batch.visual_mask][None].cpu(), torch.zeros(0, 0))


@contextmanager
def attention_weights(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """While the block runs, collect the attention weights ``[B, heads, T, T]`` that modules within ``layers`` return
    beside their output, as those of transformers do with eager attention.
    """
    found: list[Tensor] = []

    def keep(output: Any) -> None:
        if isinstance(output, tuple) and len(output) > 1 and isinstance(output[1], Tensor) and output[1].ndim == 4:
            found.append(output[1].detach())

    handles = [behind(module, keep) for layer in layers for module in layer.modules() if module is not layer]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
