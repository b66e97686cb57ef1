"""The loss against torch's own mean cross entropy."""

import pytest
import torch
import torch.nn.functional as F

from dslight.nn.loss import next_token_loss
from dslight.types import IGNORE


def batch(rows=3, length=7, vocabulary=11):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, length, vocabulary, generator=generator)
    labels = torch.randint(0, vocabulary, (rows, length), generator=generator)
    labels[0, :4], labels[1, 2], labels[2, -1] = IGNORE, IGNORE, IGNORE
    return logits, labels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sum_over_count_is_torchs_mean(dtype):
    logits, labels = batch()
    logits = logits.to(dtype).requires_grad_()
    total, count = next_token_loss(logits, labels)
    mean = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
    assert total.dtype == torch.float32
    assert count.dtype == torch.int64
    assert count == (labels[:, 1:] != IGNORE).sum()
    torch.testing.assert_close(total / count, mean)
    (ours,), (theirs,) = (
        torch.autograd.grad(total / count, [logits], retain_graph=True),
        torch.autograd.grad(mean, [logits]),
    )
    torch.testing.assert_close(ours, theirs)
    assert not ours[0, :2].any()  # no gradient where nothing is supervised
    assert ours[0, 3].any()  # label 4 is the first supervised one; position 3 predicts it


def test_with_weights_it_is_the_weighted_mean():
    logits, labels = batch()
    logits.requires_grad_()
    weights = torch.rand(labels.shape, generator=torch.Generator().manual_seed(1)) * 3
    total, count = next_token_loss(logits, labels, weights)
    by_hand = divided_by = torch.zeros(())
    for row, column in (labels[:, 1:] != IGNORE).nonzero().tolist():
        loss = -logits[row, column].log_softmax(0)[labels[row, column + 1]]
        by_hand = by_hand + weights[row, column + 1] * loss
        divided_by = divided_by + weights[row, column + 1]
    torch.testing.assert_close(total / count, by_hand / divided_by)
    ours, theirs = (torch.autograd.grad(mean, [logits]) for mean in (total / count, by_hand / divided_by))
    torch.testing.assert_close(ours, theirs)
    same = next_token_loss(logits, labels, torch.ones_like(weights))
    torch.testing.assert_close(same, next_token_loss(logits, labels), check_dtype=False)


def test_the_first_label_has_nothing_before_it():
    logits, labels = batch()
    other = labels.clone()
    other[:, 0] = 5
    torch.testing.assert_close(next_token_loss(logits, labels), next_token_loss(logits, other), rtol=0, atol=0)


def test_nothing_supervised_gives_zero_with_a_gradient():
    logits = torch.randn(2, 4, 5, requires_grad=True)
    total, count = next_token_loss(logits, torch.full((2, 4), IGNORE))
    assert (total.item(), count.item()) == (0, 0)
    total.backward()
    assert torch.equal(logits.grad, torch.zeros(2, 4, 5))


def test_a_label_beyond_the_vocabulary_is_refused():
    with pytest.raises((IndexError, RuntimeError)):
        next_token_loss(torch.randn(1, 3, 5), torch.tensor([[0, 7, 1]]))
