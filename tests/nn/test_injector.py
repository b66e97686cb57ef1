"""The injector over torch's own transformer layers, against the loop of Algorithm 1 written out.

Caches, beams, checkpointing and threads inside real decoders are in ``components/test_language_model.py``.
"""

import sys
import threading

import pytest
import torch
from torch import nn

from dslight.nn.injector import inject, record
from dslight.nn.window import follow

ROWS, LENGTH, WIDTH, DEPTH = 3, 7, 8, 4


def layers_():
    torch.manual_seed(0)
    return nn.ModuleList(
        nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True, norm_first=True) for _ in range(DEPTH)
    )


def mask_():
    """Row 0 has two images of 2 tokens, row 1 is text only, row 2 has one image at its end."""
    mask = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    mask[0, 1:3], mask[0, 4:6], mask[2, 5:] = True, True, True
    return mask


def run(layers, hidden):
    for layer in layers:
        hidden = layer(hidden)
    return hidden


def by_hand(layers, hidden, mask, stacks, sites, change=lambda number, hidden, stack: stack):
    """Algorithm 1: before each layer, add what belongs there, token by token."""
    hidden = hidden.clone()
    slots = [(b, t) for b in range(mask.shape[0]) for t in range(mask.shape[1]) if mask[b, t]]
    for index, layer in enumerate(layers):
        for number, (site, stack) in enumerate(zip(sites, stacks, strict=True)):
            if site == index:
                for n, (b, t) in enumerate(slots):
                    hidden[b, t] = hidden[b, t] + change(number, hidden[b, t].clone(), stack[n])
        hidden = layer(hidden)
    return hidden


def hooks_of(*modules):
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for module in modules for m in module.modules())


@pytest.mark.parametrize("sites", [(1, 2, 3), (0, 2, 3), (3, 1, 0), (1, 1, 1), (0, 0, 3)])
def test_stacks_are_added_where_the_algorithm_adds_them(sites):
    layers, mask, hidden = layers_(), mask_(), torch.randn(ROWS, LENGTH, WIDTH)
    stacks = torch.randn(len(sites), int(mask.sum()), WIDTH)
    with inject(layers, mask, stacks, sites):
        ours = run(layers, hidden)
    torch.testing.assert_close(ours, by_hand(layers, hidden, mask, stacks, sites))
    assert not torch.allclose(ours, run(layers, hidden), atol=1e-2)


def test_two_stacks_at_one_site_are_one_stack_of_their_sum():
    layers, mask, hidden = layers_(), mask_(), torch.randn(ROWS, LENGTH, WIDTH)
    stacks = torch.randn(2, int(mask.sum()), WIDTH)
    with inject(layers, mask, stacks, (2, 2)):
        twice = run(layers, hidden)
    with inject(layers, mask, stacks.sum(0, keepdim=True), (2,)):
        torch.testing.assert_close(twice, run(layers, hidden))


def test_layers_called_with_a_keyword_get_their_stack_too():
    class Named(nn.Module):
        def forward(self, *, hidden_states):
            return hidden_states * 2

    layers, mask = nn.ModuleList([Named()]), mask_()
    stack = torch.randn(1, int(mask.sum()), WIDTH)
    with inject(layers, mask, stack, (0,)):
        out = layers[0](hidden_states=torch.zeros(ROWS, LENGTH, WIDTH))
    torch.testing.assert_close(out[mask], stack[0] * 2)
    assert not out[~mask].any()


def test_the_add_is_out_of_place():
    layers, mask, hidden = layers_(), mask_(), torch.randn(ROWS, LENGTH, WIDTH)
    stacks, embedding = torch.randn(1, int(mask.sum()), WIDTH), nn.Embedding(5, WIDTH)
    before, weight, values = hidden.clone(), embedding.weight.clone(), stacks.clone()
    with inject(layers, mask, stacks, (0,), fill=stacks[0], embedding=embedding):
        run(layers, hidden)
        embedding(torch.zeros(ROWS, LENGTH, dtype=torch.int64))
    assert torch.equal(hidden, before)
    assert torch.equal(stacks, values)
    assert torch.equal(embedding.weight, weight)


def test_float32_stacks_enter_a_bf16_stream_in_bf16():
    layers, mask = nn.ModuleList([nn.Identity()]), mask_()
    hidden, stacks = torch.randn(ROWS, LENGTH, WIDTH).bfloat16(), torch.randn(1, int(mask.sum()), WIDTH)
    with inject(layers, mask, stacks, (0,)):
        out = layers[0](hidden)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out[mask], hidden[mask] + stacks[0].bfloat16())
    assert torch.equal(out[~mask], hidden[~mask])


def test_gradients_are_those_of_the_loop():
    layers, mask = layers_(), mask_()
    hidden = torch.randn(ROWS, LENGTH, WIDTH, requires_grad=True)
    stacks = torch.randn(2, int(mask.sum()), WIDTH, requires_grad=True)
    wanted = [hidden, stacks, *layers.parameters()]
    with inject(layers, mask, stacks, (1, 3)):
        ours = torch.autograd.grad(run(layers, hidden).square().sum(), wanted)
    theirs = torch.autograd.grad(by_hand(layers, hidden, mask, stacks, (1, 3)).square().sum(), wanted)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_fill_replaces_the_embedding_at_the_mask_only():
    embedding, mask, ids = nn.Embedding(5, WIDTH), mask_(), torch.randint(0, 5, (ROWS, LENGTH))
    fill = torch.randn(int(mask.sum()), WIDTH, requires_grad=True)
    with inject([], mask, fill[None, :0].new_zeros(0, len(fill), WIDTH), (), fill=fill, embedding=embedding):
        out = embedding(ids)
    assert torch.equal(out[mask], fill)
    assert torch.equal(out[~mask], embedding(ids)[~mask])
    (weight,) = torch.autograd.grad(out[mask].sum(), [embedding.weight], retain_graph=True)
    assert not weight.any()  # ids under visual tokens are not read
    assert torch.autograd.grad(out.sum(), [fill])[0].eq(1).all()


def test_without_a_visual_token_the_encoder_stays_in_the_graph_with_zero_gradients():
    layers, embedding, mask = layers_(), nn.Embedding(5, WIDTH), torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    projector = nn.Linear(4, WIDTH)
    slots = projector(torch.randn(3, 6, 4))[:, :0]  # a blank image was looked at, none of its tokens is kept
    ids = torch.randint(0, 5, (ROWS, LENGTH))
    plain = run(layers, embedding(ids))
    with inject(layers, mask, slots[1:], (1, 2), fill=slots[0], embedding=embedding):
        out = run(layers, embedding(ids))
    assert torch.equal(out, plain)
    out.sum().backward()
    assert projector.weight.grad is not None
    assert not projector.weight.grad.any()


@pytest.mark.parametrize("count", [5, 7])
def test_another_number_of_tokens_than_slots_is_refused(count):
    mask = mask_()
    with (
        pytest.raises(ValueError, match=f"stacks has {count} visual tokens, the sequence has 6 visual slots"),
        inject(layers_(), mask, torch.zeros(1, count, WIDTH), (0,)),
    ):
        pass
    with (
        pytest.raises(ValueError, match=f"fill has {count} visual tokens, the sequence has 6 visual slots"),
        inject(
            layers_(),
            mask,
            torch.zeros(1, 6, WIDTH),
            (0,),
            fill=torch.zeros(count, WIDTH),
            embedding=nn.Embedding(2, WIDTH),
        ),
    ):
        pass


@pytest.mark.parametrize("site", [-1, 4, 40])
def test_a_site_that_is_not_there_is_refused(site):
    layers = layers_()
    with (
        pytest.raises(ValueError, match=f"no layer {site}; the transformer has layers 0 to 3"),
        inject(layers, mask_(), torch.zeros(2, 6, WIDTH), (0, site)),
    ):
        pass
    assert hooks_of(layers) == 0


def test_a_stack_without_a_site_is_refused():
    with (
        pytest.raises(ValueError, match=r"2 stacks for 1 sites \(3,\)"),
        inject(layers_(), mask_(), torch.zeros(2, 6, WIDTH), (3,)),
    ):
        pass


def test_a_residual_stream_of_other_rows_is_refused():
    layers = layers_()
    with (
        inject(layers, mask_(), torch.zeros(1, 6, WIDTH), (0,)),
        pytest.raises(ValueError, match=r"4 rows .* the visual mask has 3"),
    ):
        run(layers, torch.zeros(4, LENGTH, WIDTH))


def test_no_hook_outlives_the_block():
    layers, embedding = layers_(), nn.Embedding(5, WIDTH)
    mask, hidden = mask_(), torch.randn(ROWS, LENGTH, WIDTH)
    plain = run(layers, hidden)
    stacks = torch.randn(3, 6, WIDTH)
    arguments = {"fill": stacks[0], "embedding": embedding}
    with inject(layers, mask, stacks, (1, 1, 2), **arguments):
        assert hooks_of(layers, embedding) == 4
    assert hooks_of(layers, embedding) == 0
    with pytest.raises(RuntimeError, match="out of memory"), inject(layers, mask, stacks, (1, 1, 2), **arguments):
        raise RuntimeError("out of memory")
    assert hooks_of(layers, embedding) == 0
    assert torch.equal(run(layers, hidden), plain)


def test_beams_get_the_stack_of_the_row_that_they_repeat():
    layers, mask, hidden = layers_(), mask_(), torch.randn(ROWS, LENGTH, WIDTH)
    stacks = torch.randn(2, 6, WIDTH)
    with inject(layers, mask, stacks, (0, 2)):
        once, thrice = run(layers, hidden), run(layers, hidden.repeat_interleave(3, dim=0))
    torch.testing.assert_close(thrice, once.repeat_interleave(3, dim=0))


def test_another_threads_pass_is_left_alone():
    layers, mask, hidden = layers_(), mask_(), torch.randn(ROWS, LENGTH, WIDTH)
    plain, seen = run(layers, hidden), []
    with inject(layers, mask, torch.randn(1, 6, WIDTH), (0,)):
        other = threading.Thread(target=lambda: seen.append(run(layers, hidden)))
        other.start()
        other.join()
    assert torch.equal(seen[0], plain)


def test_passes_survive_the_comings_and_goings_of_another_threads_hooks():
    """A hook is registered in more than one step, and a pass of another thread may come in between."""
    layers, mask, hidden = nn.ModuleList(nn.Identity() for _ in range(2)), mask_(), torch.zeros(ROWS, LENGTH, WIDTH)
    stacks, done = torch.ones(2, 6, WIDTH), threading.Event()

    def come_and_go():
        while not done.is_set():
            with inject(layers, mask, stacks, (0, 1)), record(layers, [0, 1]):
                pass

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    other = threading.Thread(target=come_and_go)
    other.start()
    try:
        for _ in range(15000):
            assert not run(layers, hidden).any()
        for _ in range(500):
            with inject(layers, mask, stacks, (0, 1)):
                assert run(layers, hidden).sum() == 2 * 6 * WIDTH
    finally:
        done.set()
        other.join()
        sys.setswitchinterval(interval)
    assert hooks_of(layers) == 0


def test_taps_are_the_residual_stream_by_hand():
    layers, hidden = layers_(), torch.randn(ROWS, LENGTH, WIDTH)
    expected = [hidden]
    for layer in layers:
        expected.append(layer(expected[-1]))
    with record(layers, [4, 0, 2]) as seen:
        run(layers, hidden)
    assert sorted(seen) == [0, 2, 4]
    for tap, value in seen.items():
        assert torch.equal(value, expected[tap])
    assert hooks_of(layers) == 0


def test_a_tap_at_a_site_is_read_after_the_add():
    layers, mask, hidden = layers_(), mask_(), torch.randn(ROWS, LENGTH, WIDTH)
    stacks = torch.randn(1, 6, WIDTH)
    with inject(layers, mask, stacks, (2,)), record(layers, [2]) as seen:
        run(layers, hidden)
    before = run(layers[:2], hidden)
    torch.testing.assert_close(seen[2][mask], before[mask] + stacks[0])
    torch.testing.assert_close(seen[2][~mask], before[~mask])


# --- operations


class Gate(nn.Module):
    """A gate per stack that reads the residual stream, written for any leading dimensions."""

    def __init__(self, stacks):
        super().__init__()
        torch.manual_seed(1)
        self.weight = nn.Parameter(torch.randn(stacks, WIDTH))
        self.bias = nn.Parameter(torch.randn(stacks))

    def forward(self, number, hidden, values):
        return torch.tanh(hidden @ self.weight[number] + self.bias[number])[..., None] * values


@pytest.mark.parametrize("sites", [(1, 2, 3), (0, 2, 3), (3, 1, 0), (1, 1, 1)])
def test_an_operation_does_what_the_loop_does(sites):
    """Two stacks at one site act one after the other: the second sees the residual stream with the first."""
    layers, mask, hidden, gate = layers_(), mask_(), torch.randn(ROWS, LENGTH, WIDTH), Gate(3)
    stacks = torch.randn(3, int(mask.sum()), WIDTH)
    with inject(layers, mask, stacks, sites, operation=gate):
        ours = run(layers, hidden)
    torch.testing.assert_close(ours, by_hand(layers, hidden, mask, stacks, sites, gate))
    with inject(layers, mask, stacks, sites):
        assert not torch.allclose(ours, run(layers, hidden), atol=1e-2)


def test_gradients_of_an_operation_are_those_of_the_loop():
    layers, mask, gate = layers_(), mask_(), Gate(2)
    hidden = torch.randn(ROWS, LENGTH, WIDTH, requires_grad=True)
    stacks = torch.randn(2, int(mask.sum()), WIDTH, requires_grad=True)
    wanted = [hidden, stacks, *gate.parameters(), *layers.parameters()]
    with inject(layers, mask, stacks, (1, 3), operation=gate):
        ours = torch.autograd.grad(run(layers, hidden).square().sum(), wanted)
    loop = by_hand(layers, hidden, mask, stacks, (1, 3), gate)
    for a, b in zip(ours, torch.autograd.grad(loop.square().sum(), wanted), strict=True):
        torch.testing.assert_close(a, b)


def test_an_operation_is_handed_the_rows_at_the_slots_in_their_order():
    layers, mask, seen = nn.ModuleList([nn.Identity(), nn.Identity()]), mask_(), []
    hidden, stacks = torch.randn(ROWS, LENGTH, WIDTH), torch.randn(2, int(mask.sum()), WIDTH)

    def operation(number, rows, values):
        seen.append((number, rows, values))
        return 10 * values

    with inject(layers, mask, stacks, (1, 0), operation=operation):
        out = run(layers, hidden)
    (first, early, early_values), (second, late, late_values) = seen  # layer 0 runs first, and it gets stack 1
    assert (first, second) == (1, 0)
    assert torch.equal(early, hidden[mask])
    assert torch.equal(early_values, stacks[1])
    torch.testing.assert_close(late, hidden[mask] + 10 * stacks[1])
    assert torch.equal(late_values, stacks[0])
    torch.testing.assert_close(out[mask], hidden[mask] + 10 * stacks.sum(0))
    assert torch.equal(out[~mask], hidden[~mask])


def test_an_operation_sees_every_beams_own_stream():
    layers, mask, gate = layers_(), mask_(), Gate(2)
    stacks = torch.randn(2, int(mask.sum()), WIDTH)
    beams = torch.randn(ROWS * 2, LENGTH, WIDTH)  # rows of one sample that have come apart
    with inject(layers, mask, stacks, (0, 2), operation=gate):
        ours = run(layers, beams)
    for beam in range(2):
        expected = by_hand(layers, beams[beam::2], mask, stacks, (0, 2), gate)
        torch.testing.assert_close(ours[beam::2], expected)


def test_without_a_visual_token_an_operation_has_a_zero_gradient_and_not_none():
    layers, mask, gate = layers_(), torch.zeros(ROWS, LENGTH, dtype=torch.bool), Gate(2)
    hidden = torch.randn(ROWS, LENGTH, WIDTH)
    with inject(layers, mask, torch.zeros(2, 0, WIDTH), (1, 3), operation=gate):
        out = run(layers, hidden)
    assert torch.equal(out, run(layers, hidden))
    out.sum().backward()
    for parameter in gate.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_an_operation_in_float32_acts_on_a_bf16_stream():
    layers, mask = nn.ModuleList([nn.Identity()]), mask_()
    hidden, stacks = torch.randn(ROWS, LENGTH, WIDTH).bfloat16(), torch.randn(1, int(mask.sum()), WIDTH)
    with inject(layers, mask, stacks, (0,), operation=lambda number, rows, values: 0.5 * values.float()):
        out = layers[0](hidden)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out[mask], hidden[mask] + 0.5 * stacks[0].bfloat16())


class Looped(nn.Module):
    """Runs through its layers twice in a pass."""

    def __init__(self, times):
        super().__init__()
        self.layers, self.times = layers_(), times

    def forward(self, inputs_embeds):
        for _ in range(self.times):
            inputs_embeds = run(self.layers, inputs_embeds)
        return inputs_embeds


def test_a_layer_that_is_called_twice_in_a_pass_is_an_error_and_not_two_stacks():
    mask, hidden = mask_(), torch.randn(ROWS, LENGTH, WIDTH)
    stacks = torch.randn(1, int(mask.sum()), WIDTH)
    for model in (Looped(1), Looped(2)):
        with follow(model, LENGTH) as window, inject(model.layers, mask, stacks, (2,), window=window):
            if model.times == 1:
                assert torch.equal(model(inputs_embeds=hidden), model(inputs_embeds=hidden))  # two passes
            else:
                with pytest.raises(RuntimeError, match=r"layer 2 of Looped.* is called twice in a pass"):
                    model(inputs_embeds=hidden)


def test_a_stream_of_another_shape_is_an_error():
    layer, mask = nn.Identity(), mask_()
    with (
        inject([layer], mask, torch.randn(1, int(mask.sum()), WIDTH), (0,)),
        pytest.raises(ValueError, match=rf"called with \[{ROWS}, {LENGTH}, 4, {WIDTH}\], not with \[b, t, D\]"),
    ):
        layer(torch.randn(ROWS, LENGTH, 4, WIDTH))
