#!/usr/bin/env bash
# lightning 2.6.6: in a job of SLURM, SIGUSR1 makes the trainer write hpc_ckpt_N.ckpt into its root folder, to be requeued. Where
# the job is not requeued and goes on, that file stays, and while the environment is SLURM's every later call without a
# ckpt_path loads it, also one that is given a model: the weights of that model are overwritten in place, and what is scored
# is the old step. Nothing is asked for, and nothing warns. Seen: trained to step 8, then `validate(model)` with a weight set to
# 5.0 logs 0.488, the weight of step 3, and leaves 0.488 in the model; without SLURM's variables it logs 5.0.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 lightning==2.6.6 numpy==2.4.6
cat > "$folder/run.py" <<'PY'
import logging
import os
import signal
import sys

import lightning
import torch

print("lightning", lightning.__version__, "torch", torch.__version__)
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
ROOT = sys.argv[1]
JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
       "SLURM_NODEID": "0"}


class OneWeight(lightning.LightningModule):
    """Its loss pulls the weight towards 1."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, index):
        if self.global_step == 3 and index == 3:
            signal.raise_signal(signal.SIGUSR1)
        return (self.weight - 1).square()

    def validation_step(self, batch, index):
        self.log("weight", self.weight.detach().clone())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.zeros(8, 1))

    val_dataloader = train_dataloader


def trainer(**options):
    return lightning.Trainer(default_root_dir=ROOT, accelerator="cpu", logger=False, enable_checkpointing=False,
                             enable_progress_bar=False, enable_model_summary=False, **options)


def scored():
    model = OneWeight()
    model.weight.data.fill_(5.0)
    (found,) = trainer().validate(model, verbose=False)
    return round(found["weight"], 3), round(float(model.weight), 3)


os.environ.update(JOB)
model = OneWeight()
trainer(max_steps=8, limit_val_batches=0).fit(model)
print("trained to", round(float(model.weight), 3), "and the root folder holds", sorted(os.listdir(ROOT)))
assert os.listdir(ROOT) == ["hpc_ckpt_1.ckpt"] and abs(float(model.weight) - 0.832) < 0.001
inside = scored()
print("a model whose weight is 5.0, validated in the job: logs", inside[0], "and holds", inside[1])
for name in JOB:
    del os.environ[name]
outside = scored()
print("the same without SLURM's variables: logs", outside[0], "and holds", outside[1])
assert outside == (5.0, 5.0)
assert inside == (0.488, 0.488), "validate no longer loads the file of a requeue over the model that it is given"
PY
mkdir "$folder/root"
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore "$folder/run.py" "$folder/root"
