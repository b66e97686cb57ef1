"""The metrics inside a Lightning validation loop, at the precision that rounds floating-point states."""

from __future__ import annotations

import subprocess
import sys

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from dslight.metrics import benchmarks


class Judge(L.LightningModule):
    """Answers "yes" to every question and logs each metric's dict."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.metrics = nn.ModuleDict({name: benchmarks.build(name) for name in ("vqav2", "pope")})

    def validation_step(self, batch, batch_idx):
        for metric in self.metrics.values():
            metric.update(["yes"] * len(batch), [[label] for label in batch])

    def on_validation_epoch_end(self):
        for name, metric in self.metrics.items():
            self.log_dict({f"val/{name}/{key}": value for key, value in metric.compute().items()})
            metric.reset()


def test_a_validation_loop_in_bf16_logs_exact_scores_and_starts_afresh_each_time():
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        precision="bf16-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Judge()
    loader = DataLoader(["yes", "no", "yes"] * 300, batch_size=1, collate_fn=list)
    for _ in range(2):
        (logged,) = trainer.validate(model, loader, verbose=False)
        assert logged["val/vqav2/vqa_accuracy"] == pytest.approx(2 / 3, abs=1e-6)
        assert logged["val/pope/f1"] == pytest.approx(0.8, abs=1e-6)
        assert logged["val/pope/yes_ratio"] == 1.0
    assert next(model.parameters()).dtype == torch.bfloat16


def test_the_scoring_rules_import_neither_torch_nor_lightning():
    code = (
        "import importlib, pkgutil, sys, dslight.metrics.functional as f\n"
        "[importlib.import_module(f'{f.__name__}.{m.name}') for m in pkgutil.iter_modules(f.__path__)]\n"
        "sys.exit(bool({'torch', 'lightning', 'torchmetrics'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=240).returncode == 0
