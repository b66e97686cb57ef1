"""Attention within documents, against a mask of all pairs, and what it does not make."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dslight.components import HFCausalLM, documents
from dslight.train.units import run_units
from dslight.types import IGNORE, Batch

LENGTHS = ((40, 9, 31, 16), (70, 13))
KINDS = [
    ("llama", {}),
    ("phi3", {"sliding_window": 12}),
    ("gemma3_text", {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"] * 2}),
]


def packed(lengths=LENGTHS, vocabulary=64):
    """Rows of documents of such lengths, padded on the right; every position but a document's first is supervised."""
    width = max(map(sum, lengths))
    segments, labels = (torch.zeros(len(lengths), width, dtype=torch.int64) for _ in "ab")
    ids = torch.randint(3, vocabulary, segments.shape, generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    for row, own in enumerate(lengths):
        start = 0
        for number, length in enumerate(own, start=1):
            segments[row, start : start + length], labels[row, start] = number, IGNORE
            start += length
    labels[segments == 0] = IGNORE
    return Batch(ids, (segments > 0).long(), torch.zeros_like(ids, dtype=torch.bool), labels, segments=segments)


def learnt(lm: HFCausalLM, batch: Batch):
    lm.zero_grad()
    total, count = lm.loss(batch, None)
    (total / count).backward()
    return total.detach(), [p.grad.clone() for p in lm.parameters()]


@pytest.mark.parametrize("treated", ["plain", "checkpointed", "compiled"])
@pytest.mark.parametrize(("kind", "config"), KINDS, ids=[kind for kind, _ in KINDS])
def test_loss_and_gradients_are_those_of_a_mask(kind, config, treated, tiny_lm, monkeypatch):
    lm = tiny_lm(kind, **config).train()
    with monkeypatch.context() as patch:
        patch.setattr(documents, "supported", lambda model: False)
        expected, theirs = learnt(lm, packed())
    run_units(lm, treated == "checkpointed", "aot_eager" if treated == "compiled" else False)
    found, ours = learnt(lm, packed())
    assert lm.model.config._attn_implementation == documents.NAME
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * float(other.abs().max()), rtol=1e-4)


class Largest(TorchDispatchMode):
    """The most elements of a tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.elements = max([self.elements, *(x.untyped_storage().nbytes() // x.itemsize for x in made)])
        return out


def test_a_pack_of_many_documents_makes_nothing_of_the_square_of_its_length(tiny_lm):
    lm = tiny_lm(max_position_embeddings=64).train()
    length = 60_000
    batch = packed([(40,) * (length // 40)])
    labels = torch.full_like(batch.labels, IGNORE)
    labels[:, :40] = batch.labels[:, :40]
    with Largest() as largest:
        total, count = lm.loss(replace(batch, labels=labels), None)
        total.backward()
    assert int(count) == 39
    assert largest.elements <= length * 64  # its embeddings, of 32 numbers, and what their layers make of them


def test_answers_do_not_change_with_the_attention_that_learnt(tiny_lm):
    lm = tiny_lm()
    ids = packed([(12,), (12,)]).input_ids
    mask, visual = torch.ones_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    mask[1, :5] = 0  # padded on the left
    options = {"max_new_tokens": 4, "pad_token_id": 0}
    before = lm(ids, mask, visual, None), lm.generate(ids, mask, visual, None, **options)
    documents.use(lm.model)
    for one, other in zip(
        (lm(ids, mask, visual, None), lm.generate(ids, mask, visual, None, **options)), before, strict=True
    ):
        assert torch.equal(one, other)


def test_rows_with_padding_in_front_are_masked_as_ever(tiny_lm):
    lm = tiny_lm()
    batch = packed([(12,), (12,)])
    mask = batch.attention_mask.clone()
    mask[1, :5] = 0
    left = replace(batch, attention_mask=mask, labels=batch.labels.masked_fill(mask == 0, IGNORE), segments=None)
    assert not left.places.aligned
    alone = replace(
        left, **{name: getattr(left, name)[1:, 5:] for name in ("input_ids", "attention_mask", "labels", "visual_mask")}
    )
    first = replace(
        left, **{name: getattr(left, name)[:1] for name in ("input_ids", "attention_mask", "labels", "visual_mask")}
    )
    with torch.no_grad():
        both = lm.loss(left, None)[0]
        # the first label behind the padding is predicted by a position of padding
        skipped = torch.nn.functional.cross_entropy(lm.logits(left.input_ids, mask)[1, 4], left.labels[1, 5])
        torch.testing.assert_close(both - skipped, lm.loss(alone, None)[0] + lm.loss(first, None)[0])


@pytest.mark.parametrize(
    ("kind", "passes"),
    [("llama", True), ("phi3", True), ("gpt2", False), ("doge", False)],  # these two read the mask themselves
)
def test_whether_layers_pass_their_mask_on_is_read_from_their_code(kind, passes, tiny_lm):
    assert documents.supported(tiny_lm(kind, intermediate_size=None if kind == "gpt2" else 48).model) == passes
