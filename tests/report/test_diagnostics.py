"""The section about the stacks: means over seeds, errors over questions, pictures of the first run."""

import io
import json

import numpy as np
import pytest
from markupsafe import escape
from PIL import Image

from dslight.report import report
from dslight.report.diagnostics import sections
from dslight.report.page import Figure, Table
from dslight.report.runs import collect

NAMES = {"all": "all stacks", "without_1": "without stack 1", "other_image": "stacks of another image"}


def png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (638, 388), "white").save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def diagnose():
    """``diagnose(folder, relative, scores)``: what a run leaves behind; ``scores``: by arm, of questions 0, 1, ..."""

    def write(folder, relative=(0.5, 0.125), scores=None, maps=0, note=None):
        scores = scores or {"all": [1.0, 0.0, 1.0]}
        (folder / "diagnostics").mkdir()
        stacks = [{"number": i, "part": "language_model", "layer": i - 1, "what": ""} for i in range(1, 3)]
        norms = [{**s, "relative": r, "cosine": -0.25, "filled": 1.0} for s, r in zip(stacks, relative, strict=False)]
        rows = [
            {"source": "digits", "number": number, "scores": {name: each[number] for name, each in scores.items()}}
            for number in range(len(scores["all"]))
        ]
        found = {
            "stacks": stacks if relative else [],
            "norms": norms,
            "parts": {"stacking": {"gate_1": relative[0]} if relative else {}, "projector": {"norm": 3.0}},
            "comparisons": {"digits": [{"name": name, "title": NAMES[name]} for name in scores] if relative else []},
            "heat_maps": [
                {
                    "file": None if note else f"digits-{i}.png",
                    "question": "<b>B3?</b>",
                    "references": ["7", "7"],
                    "answer": "1",
                    "log_likelihood": -0.5,
                    "heat": "gradient_x_input",
                    **({"note": note} if note else {}),
                }
                for i in range(maps)
            ],
        }
        for i in range(maps):
            (folder / "diagnostics" / f"digits-{i}.png").write_bytes(png())
        (folder / "diagnostics" / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "diagnostics.json").write_text(json.dumps(found))

    return write


def made(folder):
    (section,) = sections(collect([folder])[0])
    return section


def test_a_report_of_runs_that_were_not_diagnosed_has_no_such_section(tmp_path, finish):
    finish(tmp_path / "a", "deepstack")
    assert sections(collect([tmp_path])[0]) == []
    report([tmp_path])
    assert "Do the stacks" not in (tmp_path / "report.html").read_text()


def test_norms_are_means_over_seeds(tmp_path, finish, diagnose):
    for seed, relative in enumerate([(0.5, 0.1), (0.25, 0.3)]):
        diagnose(finish(tmp_path / f"{seed}", "deepstack", seed), relative)
    norms, gates = made(tmp_path).parts[:2]
    assert norms.head == ["arm", "stack 1", "stack 2"]
    assert [str(cell).split(">")[1].split("<")[0] for cell in norms.rows[0][1:]] == ["0.38 (−0.25)", "0.20 (−0.25)"]
    assert [cell.split("<small>")[1] for cell in map(str, norms.rows[0][1:])] == ["layer 0</small>", "layer 1</small>"]
    assert (gates.head, gates.rows) == (["arm", "gate_1"], [["deepstack", "0.375"]])


def test_differences_are_means_over_seeds_with_their_error_over_questions(tmp_path, finish, diagnose):
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 2, (2, 3, 40)).astype(float)
    for seed, each in enumerate(scores):
        diagnose(
            finish(tmp_path / f"{seed}", "deepstack", seed),
            scores={name: one.tolist() for name, one in zip(NAMES, each, strict=True)},
        )
    table = made(tmp_path).parts[2]
    assert table.head == ["scores", "deepstack"]
    whole, without, other = scores[:, 0], scores[:, 1], scores[:, 2]
    cells = [f"{100 * whole.mean():.1f}"]
    for each in (without, other):
        delta = (each - whole).mean(0)
        cells.append(f"{100 * delta.mean():+.1f} ± {100 * delta.std(ddof=1) / np.sqrt(40):.1f}".replace("-", "−"))
    assert table.rows == [["questions", "40"], *map(list, zip(NAMES.values(), cells, strict=True))]


def test_questions_without_another_image_are_left_out_of_that_comparison_alone(tmp_path, finish, diagnose):
    scores = {"all": [1.0, 0.0, 1.0], "without_1": [0.0, 0.0, 1.0], "other_image": [None, 1.0, 1.0]}
    diagnose(finish(tmp_path / "a", "deepstack"), scores=scores)
    assert [row[1] for row in made(tmp_path).parts[2].rows] == ["3", "66.7", "−33.3 ± 33.3", "+50.0 ± 50.0"]


def test_the_page_shows_the_first_heat_maps_and_says_where_the_others_are(tmp_path, finish, diagnose):
    diagnose(finish(tmp_path / "a", "deepstack"), maps=5)
    shown = [part for part in made(tmp_path).parts if isinstance(part, Figure)]
    assert len(shown) == 4
    assert "Reference 7, answered 1; log-likelihood of the reference -0.50" in shown[0].caption
    report([tmp_path])
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,iVBOR") == 4
    assert str(escape("deepstack: <b>B3?</b>")) in page
    assert "<b>B3?" not in page
    assert "1 more heat maps of deepstack are in" in page


def test_what_could_not_be_drawn_or_measured_is_said(tmp_path, finish, diagnose):
    diagnose(finish(tmp_path / "a", "resampled"), maps=2, note="the tokens of X show no place of the image")
    diagnose(finish(tmp_path / "b", "low"), relative=())
    said = [part for part in made(tmp_path).parts if isinstance(part, str)]
    assert said == [
        "No heat maps of resampled: the tokens of X show no place of the image.",
        "Without stacks, so with nothing to measure: low.",
    ]
    tables = [part for part in made(tmp_path).parts if isinstance(part, Table)]
    assert all("low" not in [*table.head, *(row[0] for row in table.rows)] for table in tables)
