"""A model is asked in a terminal; what is switched off is left out, and slips are sentences."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image
from said import messages

import dslight
from dslight.cli import main
from dslight.data.sample import parse_sample
from dslight.data.shards import ShardReader
from dslight.diagnostics.groups import Groups
from dslight.nn.intervention import intervene
from dslight.run.chat import talk
from dslight.texts import printable


@pytest.fixture(scope="module")
def trained(fit, tmp_path_factory):
    return fit(tmp_path_factory.mktemp("trained") / "run", "trainer.max_steps=12", "trainer.limit_val_batches=1")


@pytest.fixture(scope="module")
def page(pages, tmp_path_factory) -> str:
    members = ShardReader(pages / "val").read(0)
    file = tmp_path_factory.mktemp("page") / "a page.png"
    Image.open(io.BytesIO(parse_sample("k", members).images[0])).save(file)
    return str(file)


def test_answers_are_the_models_with_and_without_stacks(trained, page):
    model, said = dslight.load(trained.path), []
    lines = [f"/image '{page}'", "A1", "/off 2", "A1", "/on", "A1", "/off", "A1", "/image", "A1", "/quit", "A1"]
    talk(model, lines, said.append, max_new_tokens=4)
    groups = Groups(model)
    whole = printable(model.answer("A1", page, max_new_tokens=4))
    with intervene(groups.without([2])):
        some = printable(model.answer("A1", page, max_new_tokens=4))
    with intervene(groups.without(range(1, 5))):
        none = printable(model.answer("A1", page, max_new_tokens=4))
        blind = printable(model.answer("A1", max_new_tokens=4))
    answers = [said[2], said[4], said[6], said[8]]
    assert answers == [whole, some, whole, none]
    assert said[-1] == blind
    assert said[3].count("(off)") == 1
    assert said[7].count("(off)") == 4


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("/image nowhere.png", "there is no file nowhere.png"),
        ("/off 9", "there is no stack 9; there are 1, 2, 3, 4"),
        ("/image 'a", "No closing quotation"),
        ("/what", "/image FILE"),
        ("", None),
    ],
)
def test_a_slip_is_a_sentence(trained, line, answer):
    said: list[str] = []
    talk(dslight.load(trained.path), [line], said.append)
    assert (said[1:] == []) if answer is None else said[1].startswith(answer)


def test_from_the_command_line(trained, page, monkeypatch, capsys):
    lines = iter([f"/image '{page}'", "A1"])

    def read(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    assert main(["chat", str(trained.path), "--text", "--max-new-tokens", "4"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-2] == f"about {page}"
    assert main(["chat", str(Path(page).parent)]) == 1
    assert messages(capsys.readouterr().err).startswith("dslight: ")
