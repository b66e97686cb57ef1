"""What the authors' released code gets wrong, on their own weights and samples: several images in a sample, text among
images, left padding, beams, prefill in chunks, and calls that cross each other or break off.

Where their numbers can be had at all they are the oracle (of the samples one by one); otherwise transformers' decoder
is, called without any hook of ours.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from dslight.nn.loss import next_token_loss
from dslight.types import IGNORE

pytestmark = pytest.mark.golden_model


def text_item(case, item):
    """The sample without its image."""
    ids = [token for token in item.ids if token != case.config["image_token_index"]]
    return replace(item, key="text", ids=ids, labels=ids, pixels=[], grids=[], sizes=[])


def by_hand(model, batch):
    """Transformers' own forward over rows without padding, each layer's forward wrapped to add a dense map first."""
    language_model, visual, mask = model.language_model, model.see(batch.views), batch.visual_mask
    embeds = language_model.embedding(batch.input_ids).clone()
    embeds[mask] = visual.base
    originals = [layer.forward for layer in language_model.layers]
    for site, layer in enumerate(language_model.layers):
        dense = torch.zeros_like(embeds)
        for at, stack in zip(visual.sites, visual.stacks, strict=True):
            if at == site:
                dense[mask] += stack
        layer.forward = lambda hidden, *a, _f=layer.forward, _d=dense, **k: _f(hidden + _d, *a, **k)
    try:
        return language_model.model(inputs_embeds=embeds, use_cache=False).logits
    finally:
        for layer, original in zip(language_model.layers, originals, strict=True):
            layer.forward = original


def theirs_of(case, row):
    """The authors' logits of a sample, without its padding."""
    return case.outputs["logits"][row][case.outputs["expanded_attention_mask"][row].bool()]


# --- batches


@torch.no_grad()
def test_several_images_in_a_sample_are_each_stacked_at_their_place(logits_case, tmp_path, close):
    """Their code looks for the second image where it would stand if the first took one position."""
    model, items = logits_case.load(tmp_path), logits_case.items()
    first, second = items[0], items[-1]
    both = replace(
        first,
        ids=first.ids + second.ids,
        labels=(first.labels or first.ids) + (second.labels or second.ids),
        pixels=first.pixels + second.pixels,
        grids=first.grids + second.grids,
        sizes=first.sizes + second.sizes,
    )
    batch = logits_case.collate(model)([both])
    logits = model(batch)
    close(logits, by_hand(model, batch))
    alone = theirs_of(logits_case, 0)
    close(logits[0, : len(alone)], alone)  # causal: what comes before the second image does not know of it
    other = model(replace(batch, views=replace(batch.views, pixels=batch.views.pixels.flip(0))))
    assert (other - logits).abs().max() > 1e-2


@torch.no_grad()
def test_text_among_images_is_text_and_shifts_no_image(logits_case, tmp_path, close):
    """Their code pairs the i-th image with the i-th sample, so that a text before it hands it another's stacks."""
    model, items = logits_case.load(tmp_path), logits_case.items()
    text = text_item(logits_case, items[0])
    mixed = [row for item in items for row in (text, item)]
    batch = logits_case.collate(model)(mixed)
    logits, real = model(batch), batch.attention_mask.bool()
    plain = model.language_model.model(input_ids=torch.tensor([text.ids]), use_cache=False).logits[0]
    for row in range(len(items)):
        close(logits[2 * row][real[2 * row]], plain)
        close(logits[2 * row + 1][real[2 * row + 1]], theirs_of(logits_case, row))


@torch.no_grad()
def test_left_padding_changes_nothing(logits_case, tmp_path, close):
    """Their code takes positions before the padding is moved."""
    model = logits_case.load(tmp_path)
    rows = list(range(len(logits_case.ids)))
    batch = logits_case.questions(model, [*rows, 0])
    assert batch.labels is None
    wide = replace(
        batch,
        input_ids=torch.nn.functional.pad(batch.input_ids, (5, 0)),
        attention_mask=torch.nn.functional.pad(batch.attention_mask, (5, 0)),
        visual_mask=torch.nn.functional.pad(batch.visual_mask, (5, 0)),
    )
    for padded in (batch, wide):
        logits, real = model(padded), padded.attention_mask.bool()
        for i, row in enumerate([*rows, 0]):
            close(logits[i][real[i]], theirs_of(logits_case, row))
    assert not wide.attention_mask[:, :5].any()


def test_the_loss_of_a_text_only_batch_is_transformers_own(logits_case, tmp_path):
    model = logits_case.load(tmp_path)
    text = text_item(logits_case, logits_case.items()[0])
    batch = logits_case.collate(model)([text])
    assert batch.views is None
    total, count = next_token_loss(model(batch), batch.labels)
    theirs = model.language_model.model(input_ids=batch.input_ids, labels=batch.labels).loss
    torch.testing.assert_close(total / count, theirs)
    assert not (batch.labels == IGNORE).any()


# --- answers


def answers(case, model, rows, **options):
    """Of one left-padded batch."""
    options = {"max_new_tokens": case.config["max_new_tokens"], "pad_token_id": case.config["pad_token_id"]} | options
    return model.generate(case.questions(model, rows), **options)


@torch.no_grad()
def beam_search(case, model, row, beams, steps):
    """Beam search written out: one plain pass of one row for every beam and step, nothing repeated, nothing cached."""
    prompt, found = case.questions(model, [row]), [(0.0, [])]
    for _ in range(steps):
        longer = []
        for score, ids in found:
            more = torch.tensor([ids], dtype=torch.int64)
            logits = model(
                replace(
                    prompt,
                    input_ids=torch.cat([prompt.input_ids, more], dim=1),
                    attention_mask=torch.cat([prompt.attention_mask, torch.ones_like(more)], dim=1),
                    visual_mask=torch.cat([prompt.visual_mask, torch.zeros_like(more, dtype=torch.bool)], dim=1),
                )
            )[0, -1]
            best = logits.log_softmax(-1).topk(beams)
            longer += [
                (score + value, [*ids, token])
                for value, token in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ]
        found = sorted(longer, key=lambda one: -one[0])[:beams]
    return [ids for _, ids in found]


def test_every_beam_has_the_stacks_of_its_row(generated_case, tmp_path):
    """Their code adds stacks to the first rows of the repeated batch only."""
    model, rows = generated_case.load(tmp_path), list(range(len(generated_case.ids)))
    expected = [ids for row in rows for ids in beam_search(generated_case, model, row, 3, 4)]
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 4}
    assert answers(generated_case, model, rows, **options).tolist() == expected
    assert answers(generated_case, model, rows, use_cache=False, **options).tolist() == expected
    single = [answers(generated_case, model, [row], **options) for row in rows]
    assert torch.cat(single).tolist() == expected


def test_several_samples_of_a_prompt_all_see_its_image(generated_case, tmp_path):
    """With one id to choose from, sampling is greedy: each of the answers has to be the authors'."""
    model, rows = generated_case.load(tmp_path), list(range(len(generated_case.ids)))
    ours = answers(generated_case, model, rows, do_sample=True, top_k=1, num_return_sequences=2)
    expected = [generated_case.outputs[f"generated_ids.{row}"].tolist() for row in rows for _ in range(2)]
    assert ours.tolist() == expected


@pytest.mark.parametrize("chunk", [1, 5, 16])
def test_prefill_in_chunks_gives_the_same_answers(generated_case, tmp_path, chunk):
    """Chunks begin and end inside an image."""
    model = generated_case.load(tmp_path)
    for row in range(len(generated_case.ids)):
        ours = answers(generated_case, model, [row], prefill_chunk_size=chunk)
        assert ours[0].tolist() == generated_case.outputs[f"generated_ids.{row}"].tolist()


def test_two_generations_may_run_on_one_model(generated_case, tmp_path):
    """Their code keeps the images of a call on the model. Here two threads take turns, step by step."""
    model, rows = generated_case.load(tmp_path), [0, len(generated_case.ids) - 1]
    turns, found, passes = threading.Barrier(2), {}, [0, 0]

    def meet(module, args, kwargs):
        passes[names[threading.get_ident()]] += 1
        turns.wait(timeout=240)

    names: dict[int, int] = {}
    handle = model.language_model.decoder.register_forward_pre_hook(meet, with_kwargs=True)

    def work(number):
        names[threading.get_ident()] = number
        found[number] = answers(generated_case, model, [rows[number]])[0].tolist()

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(work, number) for number in (0, 1)]:
            future.result(timeout=240)
    handle.remove()
    assert passes == [generated_case.config["max_new_tokens"]] * 2
    for number, row in enumerate(rows):
        assert found[number] == generated_case.outputs[f"generated_ids.{row}"].tolist()


def test_a_call_that_breaks_off_leaves_nothing_behind(generated_case, tmp_path):
    """Their code leaves the images of the broken call for the next one."""
    model = generated_case.load(tmp_path)
    last = model.language_model.layers[-1]

    def fail(module, args):
        raise RuntimeError("out of memory")

    handle = last.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        answers(generated_case, model, [0])
    handle.remove()
    assert answers(generated_case, model, [0])[0].tolist() == generated_case.outputs["generated_ids.0"].tolist()
    ids = [token for token in generated_case.ids[0] if token >= 0]
    plain = model.language_model.logits(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.int64))
    theirs = model.language_model.model(input_ids=torch.tensor([ids]), use_cache=False).logits
    torch.testing.assert_close(plain, theirs)
