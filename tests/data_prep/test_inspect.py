"""The page shows what training sees: its text is the row's, its colours the labels', its numbers the model's."""

import base64
import html
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sources import ROOT, chat, encode

from data_prep.inspect import Lens, card_of, main
from data_prep.llava import main as ingest
from dslight.data.conversation import IMAGE
from dslight.data.records import read_sample
from dslight.data.shards import ShardError, ShardReader
from dslight.recipe.compose import compose
from dslight.types import IGNORE

RECIPE = ROOT / "recipes" / "quickstart" / "deepstack_l.yaml"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """Byte-level: every text has ids, and every border is one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    root = tmp_path_factory.mktemp("bytes")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<s>", "</s>", *alphabet])}
    core = Tokenizer(models.BPE(vocab, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>").save_pretrained(root)
    return root


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("wide", (60, 120, 3)), ("high", (150, 70, 3))):
        (root / "images" / f"{name}.jpg").write_bytes(encode(rng.integers(0, 255, size, dtype=np.uint8), "JPEG"))
    entries = [
        {
            "id": "one",
            "image": "wide.jpg",
            "conversations": chat("<image>\nWhat <b>is</b> it?", "Noise.", "Sure?", "Yes."),
        },
        {"id": "two", "image": ["wide.jpg", "high.jpg"], "conversations": chat("<image> or <image>?", "The first.")},
        {"id": "none", "conversations": chat("Hello", "Good day & thanks")},
        {"id": "long", "conversations": chat("word " * 900, "Too late.")},
    ]
    (root / "data.json").write_text(json.dumps(entries))
    ingest(
        [
            "--json",
            str(root / "data.json"),
            "--images",
            str(root / "images"),
            "--out",
            str(root / "out"),
            "--workers",
            "1",
        ]
    )
    return root / "out"


@pytest.fixture(scope="module")
def lens(tokenizer) -> Lens:
    overrides = [
        f"model.language_model.init_args.tokenizer={tokenizer}",
        "model.language_model.init_args.config.vocab_size=300",
        "data.template=vicuna_v1",
    ]
    return Lens.of(compose(RECIPE, overrides))


def test_the_stretches_are_the_row_and_its_labels(shards, lens):
    reader = ShardReader(shards)
    for row in range(3):
        card, item = card_of(reader, row, lens), lens.rows.train(read_sample(reader, row))
        assert card.problem == ""
        decode = lens.rows.tokenizer.decode
        learnt = [token for token, label in zip(item.ids, item.labels, strict=True) if label != IGNORE]
        assert "".join(run.text for run in card.runs if run.supervised) == decode(learnt)
        rest = [t for t, label in zip(item.ids, item.labels, strict=True) if label == IGNORE and t != IMAGE]
        assert "".join(run.text for run in card.runs if not run.supervised) == decode(rest)
        assert [run.slots for run in card.runs if run.slots] == [16] * len(card.pictures)
    assert "".join(run.text for run in card_of(reader, 0, lens).runs if run.supervised) == " Noise.</s> Yes.</s>"


def test_the_numbers_are_those_of_the_batch_that_the_model_gets(shards, lens):
    reader = ShardReader(shards)
    for row in range(3):
        card = card_of(reader, row, lens)
        batch = lens.collate([lens.rows.train(read_sample(reader, row))])
        views = 0 if batch.views is None else len(batch.views.pixels)
        assert card.counts == {
            "positions": f"{batch.input_ids.shape[1]} of 2,048",
            "of images": str(int(batch.visual_mask.sum())),
            "of text": str(int((~batch.visual_mask).sum())),
            "supervised": str(int((batch.labels != IGNORE).sum())),
            "tokens of all views": str(views * 16),
        }
        assert sum(picture.views for picture in card.pictures) == views


def test_a_row_that_training_would_refuse_says_so(shards, lens):
    card = card_of(ShardReader(shards), 3, lens)
    assert "no supervised token in its first 2048 positions" in card.problem
    assert "(cut)" in card.counts["positions"]


def test_the_page_is_one_file_with_all_of_it(shards, tokenizer, tmp_path, program):
    out = tmp_path / "page.html"
    done = program(
        "inspect", shards, "--recipe", RECIPE, "--n", 4, "--out", out,
        f"model.language_model.init_args.tokenizer={tokenizer}",
        "model.language_model.init_args.config.vocab_size=300", "data.template=vicuna_v1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "4 of 4 records" in done.stdout
    page = out.read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing is loaded from elsewhere
    assert [html.unescape(text) for text in re.findall(r'<span class="learn">([^<]*)</span>', page)][1:] == [
        " Noise.</s>", " Yes.</s>", " The first.</s>", " Good day & thanks</s>", " Too late.</s>",
    ]  # fmt: skip
    assert "&lt;b&gt;is&lt;/b&gt;" in page
    assert "<b>is</b>" not in page
    pictures = re.findall(r'src="data:image/(?:png|jpeg);base64,([^"]+)"', page)
    assert len(pictures) == 3 * (1 + 1 + 4)  # three images: each itself, its base view and 2 x 2 crops
    sizes = [Image.open(io.BytesIO(base64.b64decode(data))).size for data in pictures]
    assert sizes[:6] == [(120, 60)] + [(16, 16)] * 5


def test_without_a_recipe_it_shows_pictures_and_text(shards, tmp_path):
    main([str(shards), "--out", str(tmp_path / "page.html"), "--keys", "out-000000001"])
    page = (tmp_path / "page.html").read_text()
    assert "&lt;image&gt; or &lt;image&gt;?" in page
    assert page.count("data:image/jpeg") == 2
    assert "What the model reads" not in page


def test_questions_are_shown_with_their_answers(pages, tmp_path):
    override = f"model.language_model.init_args.tokenizer={pages / 'tokenizer'}"
    main([str(pages / "val"), override, "--recipe", str(RECIPE), "--n", "2", "--out", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text()
    assert page.count('<section class="card">') == 2
    assert 'class="problem"' not in page


def test_what_cannot_be_shown_is_named(shards, tmp_path):
    with pytest.raises(SystemExit, match="has no 'x'; its first is 'out-000000000'"):
        main([str(shards), "--keys", "x", "--out", str(tmp_path / "page.html")])
    with pytest.raises(ShardError, match="gone: there is no such folder"):
        ShardReader(tmp_path / "gone")
    with pytest.raises(SystemExit, match="manifest"):
        main([str(tmp_path), "--out", str(tmp_path / "page.html")])
    with pytest.raises(SystemExit, match="nonsense"):
        main([str(shards), "--recipe", str(RECIPE), "nonsense=1", "--out", str(tmp_path / "page.html")])
