"""What dslight expects of torchmetrics beyond its documentation. Where this fails, ``dslight/upstream/torchmetrics.py``
is to be mended, and nothing else."""

import subprocess
import sys

SCRIPT = """
import sys
from dslight.upstream.torchmetrics import wait_for_metrics

wait_for_metrics()
import lightning.pytorch
import torch
import torchmetrics

late = {"matplotlib", "scipy", "torchvision", "transformers", "torchmetrics.functional"} & set(sys.modules)
assert not late, late
assert torchmetrics.Metric is sys.modules["torchmetrics.metric"].Metric
assert not hasattr(torchmetrics, "NoSuchMetric")  # its file was run, to see
from torchmetrics import *
from torchmetrics.utilities import plot

assert set(torchmetrics.__all__) <= set(globals()), set(torchmetrics.__all__) - set(globals())
assert type(torchmetrics) is type(sys)
assert torchmetrics.Metric is sys.modules["torchmetrics.metric"].Metric
assert len(torchmetrics._logger.handlers) == 1, torchmetrics._logger.handlers
figure, axis = torchmetrics.MeanMetric().plot(torch.tensor(2.0))
assert type(figure).__module__ == "matplotlib.figure", figure
assert type(plot) is type(sys)
"""


def test_lightning_imports_a_torchmetrics_that_imports_the_rest_when_it_is_asked_for():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
