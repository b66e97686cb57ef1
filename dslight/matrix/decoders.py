"""Every kind of decoder that transformers knows, made tiny, written as a checkpoint, read and tried."""

from __future__ import annotations

import logging
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from dslight.matrix.tiny import tiny
from dslight.matrix.verdict import CRASHED, REFUSED, WRONG, Verdict


def kinds() -> list[str]:
    """All causal types of transformers, by its own mapping."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def checkpoint(kind: str, folder: Path) -> None:
    """Write a tiny random checkpoint of ``kind``, by transformers alone.

    Raises:
        Exception: whatever transformers raises where it cannot build one.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    fields = tiny(kind)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    with torch.no_grad():  # transformers' init (0.02) leaves all logits nearly equal at this size
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.2)
    if model.generation_config is not None:
        model.generation_config.forced_eos_token_id = None
    model.save_pretrained(folder)


def tried(kind: str) -> Verdict:
    """Try one kind in this process."""
    verdict, start, before = Verdict(kind), time.process_time(), logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _try(kind, verdict)
    except Exception as error:
        from dslight.matrix.trials import Wrong

        verdict.verdict = WRONG if isinstance(error, Wrong) else CRASHED
        verdict.said = str(error) if isinstance(error, Wrong) else f"{type(error).__name__}: {error}"
        verdict.trace = traceback.format_exc()
    finally:
        logging.disable(before)
    verdict.seconds = round(time.process_time() - start, 1)
    return verdict


def _try(kind: str, verdict: Verdict) -> None:
    import torch

    from dslight.components import HFCausalLM
    from dslight.matrix.trials import TRIALS

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        try:
            checkpoint(kind, Path(place))
            named: dict[str, Any] = {"pretrained": place}
        except Exception as error:  # transformers itself does not build it: then ours must say so
            verdict.notes.append(f"transformers: {type(error).__name__}: {error}")
            try:
                named = {"config": tiny(kind)}
            except Exception:
                named = {"config": {"model_type": kind}}
        try:
            with torch.device("meta"):
                HFCausalLM(**named)
            lm = HFCausalLM(**named).eval()
        except ValueError as refusal:
            verdict.verdict, verdict.said = REFUSED, str(refusal)
            return
    verdict.checked = "a"
    for name, trial in TRIALS.items():
        if refusal := trial(lm):
            verdict.notes.append(refusal)
        verdict.checked += name
