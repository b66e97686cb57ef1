"""The contracts of decoders, projectors, operations and metrics: ours keep them, and a broken promise is named."""

import pytest
import torch
from torch import nn

from dslight.components import HFCausalLM, MLPProjector
from dslight.components.operation import GatedAdd, Operation
from dslight.metrics import VQAAccuracy
from dslight.question import Question
from dslight.testing import LanguageModelContract, MetricContract, OperationContract, ProjectorContract

LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "vocab_size": 50,
}  # fmt: skip


class TestLlama(LanguageModelContract):
    def make(self):
        torch.manual_seed(0)
        lm = HFCausalLM(config=LLAMA)
        with torch.no_grad():
            for parameter in lm.parameters():
                if parameter.ndim > 1 and not parameter.is_meta:
                    parameter.normal_(std=0.2)
        return lm


class TestMLP(ProjectorContract):
    def make(self):
        torch.manual_seed(0)
        return MLPProjector(self.in_widths, self.out_width)


class TestGate(OperationContract):
    def make(self):
        return GatedAdd(self.width, self.stacks)


class TestVQA(MetricContract):
    def make(self):
        return VQAAccuracy()

    def questions(self):
        return [Question("1", "What?", ("stop",) * 10), Question("2", "How many?", ("2",) * 10)]

    def right(self):
        return ["stop", "2"]


class LooksAhead(TestLlama):
    __test__ = False

    def make(self):
        lm = super().make()
        lm.logits = lambda ids, mask: type(lm).logits(lm, ids, mask) + ids.sum()
        return lm


class Mixes(TestMLP):
    __test__ = False

    def make(self):
        class Mixed(MLPProjector):
            def forward(self, maps):
                return super().forward(maps) - super().forward(maps).mean(dim=(0, 1), keepdim=True)

        return Mixed(self.in_widths, self.out_width)


class InPlace(TestGate):
    __test__ = False

    def make(self):
        class Writes(Operation):
            def __init__(self, width, stacks):
                super().__init__(width, stacks)
                self.gate = nn.Parameter(torch.ones(stacks))

            def forward(self, stack, hidden, values):
                hidden.add_(1)
                return self.gate[stack] * values

        return Writes(self.width, self.stacks)


class Averages(TestVQA):
    """Averages the averages of batches."""

    __test__ = False

    def make(self):
        class Averaged(VQAAccuracy):
            def compute(self):
                return {name: value / self._update_count for name, value in super().compute().items()}

        return Averaged()


@pytest.mark.parametrize(
    ("contract", "clause", "message"),
    [
        (LooksAhead, "test_no_position_looks_ahead", "attention must be causal"),
        (Mixes, "test_maps_do_not_influence_each_other", "depend on the other maps"),
        (Mixes, "test_a_level_has_its_own_tokens", "changes the tokens of level"),
        (InPlace, "test_the_stream_is_not_written_into", "changed in place"),
        (InPlace, "test_starts_closed_says_whether_anything_is_added_at_the_start", None),
        (Averages, "test_batches_do_not_matter", "one by one"),
    ],
)
def test_a_broken_promise_is_named(contract, clause, message):
    if message is None:
        getattr(contract(), clause)()
        return
    with pytest.raises(AssertionError, match=message):
        getattr(contract(), clause)()


@pytest.mark.parametrize("contract", [LanguageModelContract, ProjectorContract, OperationContract, MetricContract])
def test_a_contract_without_make_says_so(contract):
    with pytest.raises(NotImplementedError, match="define make"):
        contract().make()
