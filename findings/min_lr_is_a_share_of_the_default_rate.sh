#!/usr/bin/env bash
# transformers 5.24.0, schedules with a floor in absolute terms: get_scheduler("cosine_with_min_lr", min_lr=...) turns min_lr
# into a share by dividing it by optimizer.defaults["lr"], not by the learning rate of each group, and then multiplies each
# group's own rate by that share. Where groups have rates of their own (a projector, a decoder, an encoder), none of them
# ends at min_lr, and which value they end at hangs on the default of the optimizer's class, which no group uses. So does
# lr_end of "polynomial". Nothing warns. min_lr_rate, a share from the start, does what it says.
# Seen: asked for a floor of 1e-6, groups of 1e-3 and 1e-5 end at 1e-6 and 1e-8 (AdamW, whose default rate is 1e-3).
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 numpy==2.4.6
cat > "$folder/run.py" <<'PY'
import torch
import transformers
from transformers import get_scheduler


def last_rates(name, **kwargs):
    """The rates of two groups after all 100 steps."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1e-3, 1e-5)]
    optimizer = torch.optim.AdamW(groups)
    schedule = get_scheduler(name, optimizer, num_warmup_steps=0, num_training_steps=100, scheduler_specific_kwargs=kwargs)
    for _ in range(100):
        optimizer.step()
        schedule.step()
    return [float(f"{group['lr']:.3g}") for group in optimizer.param_groups]


print("transformers", transformers.__version__)
floor = last_rates("cosine_with_min_lr", min_lr=1e-6)
share = last_rates("cosine_with_min_lr", min_lr_rate=0.1)
print("  cosine_with_min_lr, min_lr=1e-6:     ", floor)
print("  cosine_with_min_lr, min_lr_rate=0.1: ", share)
assert floor == [1e-6, 1e-8], floor
assert share == [1e-4, 1e-6], share
PY
"$folder/venv/bin/python" -W ignore "$folder/run.py"
