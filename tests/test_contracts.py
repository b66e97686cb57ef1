"""The contracts of parts, metrics, templates and views: ours keep them, and a broken promise is named."""

import pytest
import tiny_world
import torch
from torch import nn

from dslight.components import HFCausalLM, MLPProjector
from dslight.components.operation import GatedAdd, Operation
from dslight.data.conversation import Bare, Markers, Piece, template
from dslight.data.images import AnyResViews, AspectGridViews, GridViews, HDViews, NativeViews, SingleView
from dslight.metrics import VQAAccuracy
from dslight.question import Question
from dslight.testing import (
    LanguageModelContract,
    MetricContract,
    OperationContract,
    ProjectorContract,
    TemplateContract,
    ViewPolicyContract,
)

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


class TestBare(TemplateContract):
    def make(self):
        return Bare()


class TestVicuna(TemplateContract):
    def make(self):
        return template("vicuna_v1")


class TestTokenizers(TemplateContract):
    def make(self):
        return template("tokenizer")

    def tokenizer(self):
        return tiny_world.byte_tokenizer()


class TestMarked(TemplateContract):
    def make(self):
        return template(Markers(human="Q: ", gpt="A:"), None, ("<i>", "</i>"))


@pytest.mark.parametrize(
    "policy",
    [SingleView(), GridViews(2, 3), AspectGridViews(), AnyResViews(), HDViews(), NativeViews(up=2, max_pixels=9000)],
    ids=lambda policy: type(policy).__name__,
)
def test_our_views_keep_the_contract(policy):
    contract = type("Ours", (ViewPolicyContract,), {"make": lambda self: policy})()
    for clause in clauses(ViewPolicyContract):
        getattr(contract, clause)()


class Told(Bare):
    """A template in which the argument ``but`` is wrong."""

    def __init__(self, but=None):
        self.but = but

    def pieces(self, turns, tokenizer, images):
        found = super().pieces(turns, tokenizer, images or self.but == "always an image")
        changes = {
            "learns questions": {"supervised": True},
            "learns all": {"supervised": True},
            "forgets weights": {"weight": 1},
        }
        change = changes.get(self.but, {})
        if self.but == "learns all":
            return [piece._replace(supervised=piece.supervised or piece.text.startswith(" A")) for piece in found]
        if self.but == "loses an image":
            return [p for i, p in enumerate(found) if not p.image or not any(q.image for q in found[:i])]
        if self.but == "rewrites" and turns[-1].role == "human":
            return [Piece("!"), *found]
        return [piece._replace(**change) for piece in found]

    def stop(self, tokenizer):
        return "?" if self.but == "stops elsewhere" else super().stop(tokenizer)


WRONG_TEMPLATES = {
    "learns questions": ("test_answers_are_learnt_and_nothing_else", "of human is learnt"),
    "learns all": ("test_an_answer_that_is_not_to_be_learnt_is_only_read", "weight 0 is learnt"),
    "forgets weights": ("test_an_answer_has_its_weight", "are learnt with"),
    "stops elsewhere": ("test_an_answer_ends_with_the_token_that_ends_generation", "not learn to end"),
    "rewrites": ("test_a_question_reads_as_it_did_in_training", "end where the answer begins"),
    "loses an image": ("test_every_image_has_its_place", "1 images"),
    "always an image": ("test_without_images_the_mark_is_a_word", "heed the argument"),
}


@pytest.mark.parametrize("but", WRONG_TEMPLATES)
def test_a_template_that_breaks_a_promise_is_told_so(but):
    clause, message = WRONG_TEMPLATES[but]
    contract = type("Theirs", (TemplateContract,), {"make": lambda self: Told(but)})()
    with pytest.raises(AssertionError, match=message):
        getattr(contract, clause)()


class Shuffled(GridViews):
    def __init__(self, but):
        super().__init__(2, 3)
        self.but = but

    def choose(self, image_size, size):
        return (3, 2) if self.but == "another grid" else super().choose(image_size, size)

    def __call__(self, image, size, pixels="pillow"):
        views, grid = super().__call__(image, size, pixels)
        if self.but == "by chance":
            return views + torch.randint(2, views.shape, dtype=torch.uint8), grid
        if self.but == "columns first":
            return torch.cat([views[:1], views[1:].reshape(2, 3, 3, *size).transpose(0, 1).flatten(0, 1)]), grid
        return {"no base": views[1:], "floats": views / 255}.get(self.but, views), grid


WRONG_VIEWS = {
    "another grid": ("test_the_grid_is_one_that_it_names", "grids\\(\\) does not name"),
    "no base": ("test_an_image_becomes_the_views_of_its_grid", "for 7 views"),
    "floats": ("test_an_image_becomes_the_views_of_its_grid", "leave them uint8"),
    "columns first": ("test_crops_come_row_by_row", "not row by row"),
    "by chance": ("test_the_same_image_gives_the_same_views", "by chance"),
}


@pytest.mark.parametrize("but", WRONG_VIEWS)
def test_views_that_break_a_promise_are_told_so(but):
    clause, message = WRONG_VIEWS[but]
    contract = type("Theirs", (ViewPolicyContract,), {"make": lambda self: Shuffled(but)})()
    with pytest.raises(AssertionError, match=message):
        getattr(contract, clause)()


def clauses(contract):
    return [name for name in dir(contract) if name.startswith("test_")]


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


@pytest.mark.parametrize(
    "contract",
    [
        LanguageModelContract,
        ProjectorContract,
        OperationContract,
        MetricContract,
        TemplateContract,
        ViewPolicyContract,
    ],
)
def test_a_contract_without_make_says_so(contract):
    with pytest.raises(NotImplementedError, match="define make"):
        contract().make()
