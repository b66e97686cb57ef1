"""What dslight expects of the modules that wait, beyond their documentation: torchmetrics, peft, scipy's
optimizers and torch's compiler. Where this fails, the file of that name in ``dslight/upstream`` is to be mended, and
nothing else."""

import subprocess
import sys

METRICS = """
import sys
from dslight.upstream import compiler, peft, scipy, torchmetrics
from dslight.upstream.later import Later, wait_for

wait_for(torchmetrics.KINDS | scipy.KINDS | compiler.KINDS | peft.KINDS)
import lightning.pytorch
import torch
import torchmetrics

late = {"matplotlib", "scipy", "torchvision", "transformers", "torchmetrics.functional"} & set(sys.modules)
assert not late, late
from transformers.loss.loss_for_object_detection import linear_sum_assignment

assert isinstance(sys.modules["scipy.optimize"], Later)
assert [list(x) for x in linear_sum_assignment([[4, 1], [2, 8]])] == [[0, 1], [1, 0]]
import scipy.optimize._lsap
assert type(sys.modules["scipy.optimize"]) is type(sys)
from transformers.trainer_utils import PeftModel, _is_peft_model

linear = torch.nn.Sequential(torch.nn.Linear(2, 2))
assert isinstance(sys.modules["peft"], Later) and not _is_peft_model(linear)
import peft

assert _is_peft_model(peft.get_peft_model(linear, peft.LoraConfig(target_modules=["0"])))
assert type(peft) is type(sys)
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

COMPILER = """
from lightning.fabric.wrappers import OptimizedModule
from torch import nn
import torchvision.ops
import transformers.masking_utils

dynamo = sys.modules["torch._dynamo"]
assert isinstance(dynamo, Later) and "torch._inductor" not in sys.modules

@torch.compiler.disable
def apart(x):
    return torch.compiler.is_compiling()

assert not apart(1) and not isinstance(nn.Linear(2, 2), OptimizedModule)
marked = torch._dynamo.assume_constant_result(lambda: 3)
torch.empty(2, device="meta").uniform_()
with compiler.uncompiled(), torch._subclasses.FakeTensorMode():
    torch.zeros(3) + 1
assert isinstance(dynamo, Later), "a plan would import the compiler"

class Model(nn.Module):
    def forward(self, x):
        return x + 1, apart(x), torch.compiler.is_compiling(), marked()

compiled = torch.compile(Model(), backend="eager")
assert type(dynamo) is type(sys) and type(sys.modules["torch._dynamo.utils"]) is type(sys)
assert compiled(torch.zeros(2))[1:] == (False, True, 3), "a function that was disabled before is compiled"
assert isinstance(compiled, OptimizedModule) and isinstance(compiled, torch._dynamo.OptimizedModule)
assert marked._dynamo_marked_constant
with compiler.uncompiled():
    assert compiled(torch.zeros(2))[2] is False
import torch._dynamo.convert_frame

assert torch._dynamo.convert_frame is sys.modules["torch._dynamo.convert_frame"]
with transformers.masking_utils.TransformGetItemToIndex() as mode:
    assert type(mode).__module__ == "torch._dynamo._trace_wrapped_higher_order_op"
"""


def test_what_waits_is_what_it_is_when_it_is_asked_for_more():
    done = subprocess.run(
        [sys.executable, "-c", METRICS + COMPILER], capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
