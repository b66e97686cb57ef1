"""Pages of what one arm gets right that another does not, with pictures out of real shards."""

import base64
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dslight.data.shards import ShardWriter, record_members
from dslight.report.benchmarks import Benchmarks, benchmarks
from dslight.report.page import Gallery
from dslight.report.pictures import Pictures
from dslight.report.question_pages import arm_page, pair_page, write_pages
from dslight.report.runs import collect

NOTHING = Benchmarks((), (), ())
COLOURS = [(250, 10, 10), (10, 250, 10), (10, 10, 250)]


def encoded(colour, size, kind="PNG", **options):
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, kind, **options)
    return out.getvalue()


@pytest.fixture
def shards(tmp_path):
    """page-0 is small, page-1 a large JPEG that lies on its side, page-2 a document of nine pages; page-3 has none."""
    root = tmp_path / "shards"
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    pictures = [
        [encoded(COLOURS[0], (32, 16))],
        [encoded(COLOURS[1], (1600, 800), "JPEG", exif=exif)],
        [encoded(COLOURS[2], (40 + i, 40)) for i in range(9)],
        [],
    ]
    with ShardWriter(root) as writer:
        for number, images in enumerate(pictures):
            record = {"questions": [{"id": f"q{number}", "question": "?", "answers": ["x"]}]}
            members = record_members(images, record)
            writer.write(f"page-{number}", images, json.loads(members["json"]) | record)
    return root


@pytest.fixture
def compared(tmp_path, finish, answer, shards):
    """``compared(ours, theirs, **fields)``: scores by seed -> the comparison of arm ``deepstack`` with ``low``."""

    def make(ours, theirs, root=shards, **fields):
        recipe = {"data": {"val": {"textvqa": {"root": str(root)}}}}
        for arm, scores in (("deepstack", ours), ("low", theirs)):
            for seed, row in enumerate(scores):
                run = finish(tmp_path / arm / str(seed), arm, seed, None, recipe={"name": arm, "seed": seed, **recipe})
                answer(run, "textvqa", row, **{"prediction": f"{arm}'s {seed}", **fields})
        (one,) = benchmarks(collect([tmp_path / "deepstack", tmp_path / "low"])[0], "low").comparisons
        return one

    return make


def test_questions_stand_by_the_difference_over_the_seeds_on_the_side_of_the_better_arm(compared):
    ours = [[1, 0, 1, 1, 0, 0.3], [1, 0, 1, 0, 0, 0.3], [1, 0, 1, 1, 1, 0.3]]
    theirs = [[0, 0, 1, 1, 1, 0.0], [0, 1, 1, 0, 1, 0.0], [0, 1, 1, 0, 1, 0.6]]
    page = pair_page(compared(ours, theirs), 10, Pictures())
    better, worse = page.sides
    assert [(side.title, side.total) for side in page.sides] == [("deepstack is better", 3), ("low is better", 2)]
    assert [card.id for card in better.cards] == ["q0", "q3", "q5"]
    assert {card.id for card in worse.cards} == {"q1", "q4"}
    assert [(seed, said.prediction, said.score) for seed, said in better.cards[2].answers["low"]] == [
        ("seed 0", "low's 0", 0.0),
        ("seed 1", "low's 1", 0.0),
        ("seed 2", "low's 2", 0.6),
    ]
    assert page.summary.startswith("Of 6 questions, 3 score higher with deepstack, 2 with low, 1 alike")


def test_the_counts_are_those_of_the_two_by_two_table_and_its_exact_test(compared):
    generator = np.random.default_rng(0)
    ours, theirs = generator.random((2, 60)) < 0.7, generator.random((2, 60)) < 0.5
    page = pair_page(compared(ours.astype(float).tolist(), theirs.astype(float).tolist()), 3, Pictures())
    assert [row[0] for row in page.counts.rows] == ["seed 0", "seed 1", "mean over seeds"]
    for seed in (0, 1):
        counts = [int(x) for x in page.counts.rows[seed][1:5]]
        assert counts[1] == sum(1 for a, b in zip(ours[seed], theirs[seed], strict=True) if a and not b)
        assert counts[2] == sum(1 for a, b in zip(ours[seed], theirs[seed], strict=True) if b and not a)
        assert counts[0] == sum(1 for a, b in zip(ours[seed], theirs[seed], strict=True) if a and b)
        assert sum(counts) == 60
    assert int(page.counts.rows[2][4]) == sum(not any(column) for column in np.vstack([ours, theirs]).T)


def test_more_questions_than_are_shown_are_counted_and_no_part_of_the_file_is_preferred(compared, tmp_path):
    one = compared([[1] * 300], [[0] * 300])
    write_pages(NOTHING, [one], tmp_path / "out", 30)
    html = next((tmp_path / "out/diffs").iterdir()).read_text()
    assert "deepstack is better: 300 questions" in html
    assert "30 of them are shown, picked by the difference, of those alike in it at random" in html
    shown = [int(number) for number in re.findall(r"What is in (\d+)\?", html)]
    assert len(shown) == 30
    assert np.mean(shown) == pytest.approx(150, abs=50)


def test_an_arm_s_page_shows_what_it_got_wrong_and_right_with_the_pictures_also_where_no_arm_differs(
    compared, tmp_path
):
    answers = [[1, 0, 0.2, 1], [1, 0, 0.9, 0]]
    compared(answers, answers, type=["a", "b", "b", "a"])
    made = benchmarks(collect([tmp_path / "deepstack", tmp_path / "low"])[0], "low")
    pages = write_pages(made, [], tmp_path / "out", 40)
    assert pages["deepstack", None, "textvqa"] == "answers/deepstack-textvqa.html"
    runs = {one.seed: one.answers["textvqa"] for one in made.rows[0].results}
    page = arm_page("deepstack", "textvqa", runs, 40, Pictures())
    assert page.counts.rows == [["seed 0", "2", "2"], ["seed 1", "2", "2"], ["mean over seeds", "3", "1"]]
    assert [(side.title, sorted(card.id for card in side.cards)) for side in page.sides] == [
        ("Wrong", ["q1"]),
        ("Right", ["q0", "q2", "q3"]),
    ]
    assert page.types is not None
    assert page.types.rows == [["a", "2", "75.0"], ["b", "2", "27.5"]]
    assert page.summary == "Of 4 questions, 3 right (means over 2 seeds); mean score 51.2 %."
    html = (tmp_path / "out/answers/deepstack-textvqa.html").read_text()
    assert html.count('src="data:image/') == 1 + 1 + 6  # page-2 has nine, of which six are shown; page-3 has none
    assert "deepstack&#39;s 1" in html
    assert "deepstack is better: 0 questions" in (tmp_path / "out/diffs/deepstack-low-textvqa.html").read_text()


def test_no_pages_are_written_where_none_are_asked_for(compared, tmp_path):
    assert write_pages(NOTHING, [compared([[1]], [[0]])], tmp_path / "out", 0) == {}
    assert not (tmp_path / "out").exists()


def test_a_line_that_says_no_more_than_its_score_has_a_card_and_references_keep_their_case(compared, tmp_path):
    one = compared([[1]], [[0]], references=[["Dog", "dog", "Dog", 7]])
    for answers in one.theirs:
        answers.path.write_text('{"question_id": "q0", "score": 0}\n')
    write_pages(NOTHING, [one], tmp_path / "out", 9)
    html = (tmp_path / "out/diffs/deepstack-low-textvqa.html").read_text()
    assert "Expected: Dog · dog · 7<" in html
    assert "(nothing)" in html


def test_a_long_answer_is_cut(compared, tmp_path):
    one = compared([[1]], [[0]], prediction="x" * 2000)
    write_pages(NOTHING, [one], tmp_path / "out", 9)
    html = (tmp_path / "out/diffs/deepstack-low-textvqa.html").read_text()
    assert html.count("x" * 1200 + " … (800 more characters)") == 2


def test_types_are_listed_where_there_are_several(compared):
    one = compared([[1, 1, 0, 0]], [[0, 1, 1, 1]], type=["number", "number", "other", "other"])
    page = pair_page(one, 3, Pictures())
    assert page.types is not None
    assert page.types.rows == [
        ["number", "2", "100.0", "50.0", "+50.0"],
        ["other", "2", "0.0", "100.0", "−100.0"],
    ]


def test_the_page_is_one_file_with_everything_escaped(compared, tmp_path):
    evil = "<script>alert(1)</script> & 'x'"
    one = compared([[1]], [[0]], prediction=evil, question=evil, references=[[evil]])
    addresses = write_pages(NOTHING, [one], tmp_path / "out", 9)
    assert addresses == {("deepstack", "low", "textvqa"): "diffs/deepstack-low-textvqa.html"}
    html = (tmp_path / "out/diffs/deepstack-low-textvqa.html").read_text()
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(1)") == 4
    sources = re.findall(r'src="([^"]*)"', html)
    assert [source[:22] for source in sources] == ["data:image/png;base64,"]
    image = Image.open(io.BytesIO(base64.b64decode(sources[0][22:])))
    assert (image.size, image.convert("RGB").getpixel((5, 5))) == ((32, 16), COLOURS[0])


def test_large_pictures_are_made_small_and_turned_as_they_are_looked_at(compared, shards):
    one = compared([[1]], [[0]])
    gallery = Pictures().of(one.ours[0].path.parent.parent, "textvqa", "page-1")
    assert isinstance(gallery, Gallery)
    (picture,) = gallery.pictures
    image = Image.open(io.BytesIO(picture.data))
    assert (image.format, image.size, picture.small) == ("JPEG", (180, 360), False)
    assert np.allclose(image.getpixel((90, 180)), COLOURS[1], atol=4)


def test_of_many_pictures_some_are_shown_and_the_others_counted(compared):
    run = compared([[1]], [[0]]).ours[0].path.parent.parent
    gallery = Pictures().of(run, "textvqa", "page-2")
    assert isinstance(gallery, Gallery)
    assert [Image.open(io.BytesIO(picture.data)).width for picture in gallery.pictures] == [40, 41, 42, 43, 44, 45]
    assert [picture.caption for picture in gallery.pictures] == [*[""] * 5, "3 more pictures are not shown"]
    assert Pictures().of(run, "textvqa", "page-3") == "a question without a picture"


def test_without_shards_the_page_says_that_pictures_are_missing(compared, tmp_path):
    one = compared([[1]], [[0]], root=tmp_path / "moved")
    write_pages(NOTHING, [one], tmp_path / "out", 9)
    assert "no picture: " in (tmp_path / "out/diffs/deepstack-low-textvqa.html").read_text()
    run = one.ours[0].path.parent.parent
    assert "moved: there is no such folder" in str(Pictures().of(run, "textvqa", "page-0"))
    assert Pictures().of(run, "docvqa", "page-0") == "the run's recipe names no shards of docvqa"
    (run / "recipe.yaml").unlink()
    assert Pictures().of(run, "textvqa", "page-0") == "the run's recipe names no shards of textvqa"


def test_a_key_that_is_not_there_and_a_picture_that_is_none_are_named(compared, tmp_path):
    broken = tmp_path / "broken"
    with ShardWriter(broken) as writer:
        writer.write(
            "page-0", [b"\xff\xd8\xff not a picture"], {"questions": [{"id": "a", "question": "?", "answers": ["x"]}]}
        )
    run = compared([[1]], [[0]], root=broken).ours[0].path.parent.parent
    assert str(Pictures().of(run, "textvqa", "page-0")).startswith("no picture: cannot identify image file")
    assert Pictures().of(run, "textvqa", "page-9") == f"no picture: {broken} has no sample page-9"


def test_arms_whose_names_make_the_same_file_name_get_pages_of_their_own(compared, tmp_path):
    one = compared([[1]], [[0]])
    pairs = [replace(one, arm=arm) for arm in ("a/b", "a b", "a/b", "A-B")]
    first, *others = write_pages(NOTHING, pairs, tmp_path / "out", 9).values()
    assert first == "diffs/a_b-low-textvqa.html"
    assert all(re.fullmatch(r"diffs/[aA]_[bB]-low-textvqa-[0-9a-f]{8}\.html", other) for other in others)
    assert {f"diffs/{path.name}" for path in (tmp_path / "out/diffs").iterdir()} == {first, *others}
    assert len(others) == 2


def test_names_of_pages_are_short_and_those_that_are_short_enough_stay_as_they_are(compared, tmp_path):
    one = compared([[1]], [[0]])
    arms = ["deepstack lr=0.002", "ä" * 300 + "1", "ä" * 300 + "2"]
    plain, *cut = write_pages(NOTHING, [replace(one, arm=arm) for arm in arms], tmp_path / "out", 9).values()
    assert plain == "diffs/deepstack_lr=0.002-low-textvqa.html"
    assert len(set(cut)) == 2
    assert max(len(name.removeprefix("diffs/").encode()) for name in cut) <= 125
