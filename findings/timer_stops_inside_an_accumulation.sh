#!/usr/bin/env bash
# Lightning 2.6.6: Trainer(max_time=...) is a Timer that looks at the clock after every *micro-batch*, whatever
# accumulate_grad_batches is. When time is up inside an accumulation, fit() returns there: the gradients of the micro-batches
# so far are dropped, their samples count as seen (batch_progress), and no optimizer step has happened for them. A sum of
# what was trained on and a count of what was read differ from then on. Nothing warns.
# Seen: 4 micro-batches a step, time up in the third: 3 batches are done, 0 optimizer steps, a gradient lies there unused.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 lightning==2.6.6 numpy==2.4.6
cat > "$folder/run.py" <<'PY'
import logging
import time

import lightning
import torch

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Slow(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, index):
        time.sleep(0.4 if index < 2 else 1.6)  # the third one is still running when the 2 seconds are over
        return self.layer(batch[0]).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(40, 1)), batch_size=1)
model = Slow()
trainer = lightning.Trainer(
    max_time={"seconds": 2}, max_steps=5, accumulate_grad_batches=4, accelerator="cpu", logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
)
trainer.fit(model, data)
batches = trainer.fit_loop.epoch_loop.batch_progress.total.completed
gradient = model.layer.weight.grad
print("lightning", lightning.__version__)
print("  micro-batches done:", batches, " optimizer steps:", trainer.global_step)
print("  gradient left behind:", None if gradient is None else gradient.item())
assert (batches, trainer.global_step) == (3, 0), (batches, trainer.global_step)
assert gradient is not None and gradient.item() != 0
PY
"$folder/venv/bin/python" -W ignore "$folder/run.py"
