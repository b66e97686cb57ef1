"""What a decoder can do with batches, tried on its tiny copy when it is first asked: left padding, caches, answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dslight.components.decoders.facts import ONE_AT_A_TIME, Facts, alike, discover, passed, probe, quiet
from dslight.components.decoders.packing import isolating_mask, positions_within
from dslight.components.decoders.prefix import beginnings, read, write
from dslight.nn.window import described

ROWS = (14, 9, 3, 12, 6)
"""The lengths of rows that are padded to the first of them, which is longer than windows of the copy."""


def known(model: Any) -> Facts:
    """What is known of a decoder, and whether it pads.

    Raises:
        ValueError: it cannot take visual tokens, and why.
    """
    facts = discover(model)
    if facts.why:
        raise ValueError(f"pretrained: {described(model)} cannot take visual tokens: {facts.why}")
    tried(facts, "pads")  # asked in every pass, also where nothing can be run
    return facts


def positions(attention_mask: Tensor, offset: int) -> Tensor:
    """Position ids that count real tokens, so that left padding does not shift them; as ``arange`` without padding."""
    return (attention_mask.cumsum(-1) - 1).clamp(min=0) + offset


def tried(facts: Facts, question: str, unknown: bool = False) -> bool:
    """Whether the answer to a question (a function below) is yes; of a model without a copy it is ``unknown``."""
    if facts.copy is None:
        return unknown
    with ONE_AT_A_TIME:
        if question not in facts.tried:
            with quiet():
                try:
                    facts.tried[question] = _QUESTIONS[question](facts)
                except Exception:  # whatever a library raises where it cannot do a thing
                    facts.tried[question] = False
    return facts.tried[question]


def _pads(facts: Facts) -> bool:
    """A row behind left padding gives the logits that it gives alone."""
    ids, mask = _padded(facts.copy)
    extra = {} if facts.offset is None else {"position_ids": positions(mask, facts.offset)}
    logits = passed(facts.copy, ids, mask, **extra)
    rows = zip(ids, logits, ROWS, strict=True)
    return all(alike(of_row[-length:], passed(facts.copy, row[None, -length:])[0]) for row, of_row, length in rows)


def _packs(facts: Facts) -> bool:
    """Documents of a row give the logits that they give alone. The row is longer than the copy's windows."""
    ids = probe(1, 16)
    segments = torch.tensor([[1] * 9 + [2] * 7])
    options = {"position_ids": positions_within(segments) + (facts.offset or 0)}
    logits = passed(facts.copy, ids, isolating_mask(facts.copy, segments), **options)
    parts = zip(ids.split([9, 7], dim=1), logits.split([9, 7], dim=1), strict=True)
    return all(alike(of_row, passed(facts.copy, document)) for document, of_row in parts)


def _answers(facts: Facts) -> bool:
    """``generate`` says of a row what passes over all of it say."""
    ids = probe(2, ROWS[0])
    return alike(*_compared(facts, ids, torch.ones_like(ids), *ids[:, None]))


def _answers_padded(facts: Facts) -> bool:
    """``generate`` says of rows behind left padding what passes over each row alone say."""
    ids, mask = _padded(facts.copy)
    return alike(*_compared(facts, ids, mask, *(row[None, -length:] for row, length in zip(ids, ROWS, strict=True))))


def _answers_anew(facts: Facts) -> bool:
    """``generate`` does so without a cache."""
    ids = probe(2, ROWS[0])
    return alike(*_compared(facts, ids, torch.ones_like(ids), *ids[:, None], use_cache=False))


def _shares(facts: Facts) -> bool:
    """Rows that begin alike, their beginnings computed once, are answered as passes over whole rows say. What stands in
    front of a row's padding and what stands behind it are together longer than windows of the copy.
    """
    if facts.offset is None:
        return False
    words = probe(1, ROWS[0] + 10)[0]
    first, second = words[: ROWS[0]], words[ROWS[0] :]
    rows = [torch.cat([first, words[2:9]]), torch.cat([first, words[:3]])]
    rows += [torch.cat([second, words[1:7]]), torch.cat([second, words[3:5]])]
    whole = max(map(len, rows))
    ids = torch.stack([F.pad(row, (whole - len(row), 0)) for row in rows])
    mask = torch.stack([F.pad(torch.ones_like(row), (whole - len(row), 0)) for row in rows])
    nothing = torch.zeros_like(mask, dtype=torch.bool)
    found = beginnings(ids, mask, nothing, [0, 0, 1, 1])
    assert found is not None
    logits: list[Tensor] = []
    prompts = read(facts.copy, ids, mask, nothing, found, begins=facts.offset)
    said = write(facts.copy, [prompts], facts.offset, max_new_tokens=3, logits=logits)
    passes = [passed(facts.copy, torch.cat([row, new])[None])[0, -4:-1] for row, new in zip(rows, said, strict=True)]
    return alike(torch.stack(logits, dim=1), torch.stack(passes))


def _compared(facts: Facts, ids: Tensor, mask: Tensor, *alone: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """The logits of three generated tokens of each row, and those of whole passes over what was generated."""
    said = generated(facts, ids, mask, **options)
    rows = zip(alone, said.sequences[:, -3:], strict=True)
    whole = [passed(facts.copy, torch.cat([row, new[None]], dim=1))[0, -4:-1] for row, new in rows]
    return torch.stack(said.logits, dim=1), torch.stack(whole)


def generated(facts: Facts, ids: Tensor, mask: Tensor, **options: Any) -> Any:
    """Three tokens of the copy's, with their logits."""
    given = {"position_ids": positions(mask, facts.offset)} if facts.offset else {}
    return facts.copy.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=3,
        min_new_tokens=3,
        do_sample=False,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
        **{"use_cache": True} | given | options,
    )


def _padded(copy: Any) -> tuple[Tensor, Tensor]:
    ids = probe(len(ROWS), ROWS[0])
    mask = torch.ones_like(ids)
    for row, length in enumerate(ROWS):
        mask[row, : ROWS[0] - length] = 0
    pad = getattr(copy.config.get_text_config(), "pad_token_id", None) or 0
    return ids.masked_fill(mask == 0, pad), mask


_QUESTIONS: dict[str, Callable[[Facts], bool]] = {
    "pads": _pads,
    "packs": _packs,
    "answers": _answers,
    "answers padded": _answers_padded,
    "answers anew": _answers_anew,
    "shares beginnings": _shares,
}
