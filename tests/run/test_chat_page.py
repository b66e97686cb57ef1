"""The page of ``dslight chat`` in a real browser, and what its server refuses."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import dslight
from dslight.cli import main
from dslight.diagnostics.groups import Groups
from dslight.nn.intervention import intervene
from dslight.recipe.compose import compose
from dslight.recipe.errors import RecipeError

pytest.importorskip("starlette", reason="needs dslight[chat]")
uvicorn = pytest.importorskip("uvicorn", reason="needs dslight[chat]")


@pytest.fixture(scope="module")
def trained(fit, tmp_path_factory) -> Path:
    """A run whose answers depend on its stacks; its weights are made large, as so few steps would not do it."""
    import torch

    run = fit(tmp_path_factory.mktemp("trained") / "run", "trainer.max_steps=12", "trainer.limit_val_batches=1")
    checkpoint = sorted((run.path / "checkpoints").glob("*.ckpt"))[-1]
    content = torch.load(checkpoint, weights_only=True)
    torch.manual_seed(1)
    for name, tensor in content["state_dict"].items():
        if tensor.ndim >= 2:
            content["state_dict"][name] = tensor + 0.3 * torch.randn_like(tensor)
    torch.save(content, checkpoint)
    return run.path


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("page") / "a page.png"
    Image.effect_noise((64, 64), 120).convert("RGB").save(file)
    return file


@pytest.fixture(scope="module")
def models(trained) -> list[Any]:
    return [dslight.load(trained), dslight.load(trained)]


@pytest.fixture(scope="module")
def address(models, trained) -> Iterator[str]:
    """The page of two models, served on this machine."""
    from dslight.browser.examples import Examples
    from dslight.browser.models import Talker
    from dslight.browser.server import application

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    examples = Examples(compose(trained / "recipe.yaml"))
    app = application([Talker("one", models[0]), Talker("two", models[1])], max_new_tokens=6, examples=examples)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, which drives the browser")
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if found is None:
        pytest.skip("there is no Chromium on this machine (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield made
        made.close()


def opened(browser: Any, address: str, width: int = 1280, scheme: str = "light") -> Any:
    view = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    view.set_default_timeout(60_000)
    faults: list[str] = []
    view.on("pageerror", lambda error: faults.append(str(error)))
    view.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    view.faults = faults
    view.goto(address)
    view.wait_for_selector(".model")
    return view


def asked(view: Any, question: str) -> list[str]:
    """The answers of the models."""
    view.fill("#question", question)
    view.click("#ask")
    for number in (1, 2):
        view.wait_for_selector(f".model:nth-child({number}) .timing:not(:empty)")
    view.wait_for_selector("#ask:enabled")
    return view.locator(".answer").all_inner_texts()


def test_a_picture_is_asked_about_and_the_answer_changes_with_the_stacks(browser, address, models, page, tmp_path):
    view = opened(browser, address)
    view.set_input_files("#files", str(page))
    view.wait_for_selector("#pictures img")
    whole = models[0].answer("B2", page, max_new_tokens=6)
    assert asked(view, "B2") == [whole, whole]
    groups = Groups(models[0])
    with intervene(groups.without([1, 2, 3, 4])):
        none = models[0].answer("B2", page, max_new_tokens=6)
    with intervene(groups.permuted(0)):
        swapped = models[0].answer("B2", page, max_new_tokens=6)
    assert len({whole, none, swapped}) == 3
    first, second = view.locator(".model").all()
    first.locator(".none").click()
    second.locator(".swap").check()
    assert asked(view, "B2") == [none, swapped]
    first.locator(".all").click()
    first.locator("[data-stack='2']").uncheck()
    with intervene(groups.without([2])):
        some = models[0].answer("B2", page, max_new_tokens=6)
    assert asked(view, "B2")[0] == some
    first.locator(".look").click()
    first.locator(".maps img").first.wait_for()
    assert first.locator(".maps figcaption").count() == 4  # base tokens, and the three stacks that are on
    assert "stack 2" not in first.locator(".looked").inner_text()
    assert first.locator("tbody tr").count() == 3
    assert first.locator(".views img").count() == 5
    assert "16 visual" in first.locator(".prompt").inner_text()
    view.screenshot(path=str(tmp_path / "wide.png"), full_page=True)
    view.locator("#pictures button").click()
    blind = models[1]
    second.locator(".swap").uncheck()
    assert asked(view, "B2")[1] == blind.answer("B2", max_new_tokens=6)
    assert view.faults == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_narrow_and_wide_screens_light_and_dark(browser, address, page, width, scheme, tmp_path):
    view = opened(browser, address, width, scheme)
    view.set_input_files("#files", str(page))
    asked(view, "B2 C3 A1")
    view.locator(".look").first.click()
    view.locator(".maps img").first.wait_for()
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [each.bounding_box() for each in view.locator(".model").all()]
    beside = boxes[1]["y"] == boxes[0]["y"]
    assert beside == (width > 1000)
    back, text = view.evaluate(
        "(({backgroundColor, color}) => [backgroundColor, color])(getComputedStyle(document.body))"
    )
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (back, text)]
    assert (brightness[0] < brightness[1]) == (scheme == "dark")
    assert abs(brightness[0] - brightness[1]) > 400
    view.screenshot(path=str(tmp_path / "page.png"), full_page=True)
    assert view.faults == []


def test_an_example_of_the_runs_own_questions_can_be_asked(browser, address, models, trained):
    from dslight.browser.examples import Examples

    view = opened(browser, address)
    view.click("#example")
    view.wait_for_selector("#pictures img")
    known = Examples(compose(trained / "recipe.yaml"))(0)
    assert view.input_value("#question") == known["question"]
    assert view.inner_text("#known") == f"People answered: {known['references'][0]}"
    picture = base64.b64decode(known["pictures"][0].partition(",")[2])
    ours = models[0].answer(known["question"], picture, max_new_tokens=6) or "(nothing)"
    assert asked(view, known["question"]) == [ours, ours]


def test_slips_are_sentences_on_the_page(browser, address, tmp_path):
    view = opened(browser, address)
    view.click("#ask")
    view.wait_for_selector("#error:not(:empty)")
    assert view.inner_text("#error") == "question: ask something"
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    view.set_input_files("#files", str(broken))
    view.wait_for_selector("#pictures img")
    view.fill("#question", "A1")
    view.click("#ask")
    view.wait_for_selector(".answer.failed")
    assert "does not decode" in view.locator(".answer.failed").first.inner_text()
    (tmp_path / "text.txt").write_text("text")
    view.set_input_files("#files", str(tmp_path / "text.txt"))
    view.wait_for_selector("#error:not(:empty)")
    assert view.inner_text("#error") == "text.txt is no picture."


# --- without a browser


def sent(address: str, path: str, body: Any, **headers: str) -> tuple[int, Any]:
    import urllib.error
    import urllib.request

    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "question: ask something"),
        ({"question": "x" * 5000}, "5,000 characters; at most 4,000"),
        ({"question": "A1", "images": ["x"] * 9}, "at most 8 at a time"),
        ({"question": "A1", "images": ["http://127.0.0.1/a.png"]}, "picture 1: is none"),
        ({"question": "A1", "images": ["data:image/png;base64,?"]}, "its base64 cannot be read"),
        ({"question": "A1", "max_new_tokens": 9999}, "a whole number from 1 to 1,024"),
        ({"question": "A1", "switches": [{"off": "all"}]}, "switches: {off"),
        ({"question": "A1", "switches": [{}, {}, {}]}, "one for each of the 2 models"),
        (b"{", "the request is no JSON"),
        (b"[]", "the request is no object"),
    ],
)
def test_what_the_page_would_not_send_is_refused(address, body, said):
    status, text = sent(address, "/ask", body)
    assert status == 400
    assert said in json.loads(text)["error"]


def test_another_page_of_the_same_browser_is_refused(address):
    good = {"question": "A1", "max_new_tokens": 1}
    assert sent(address, "/ask", good)[0] == 200
    assert sent(address, "/ask", good, Origin=address)[0] == 200
    assert "is another page" in sent(address, "/ask", good, Origin="http://evil.example")[1]
    assert "application/json is what the page sends" in sent(address, "/ask", good, **{"Content-Type": "text/plain"})[1]
    assert sent(address, "/ask", good, Host="evil.example") == (400, "Invalid host header")


def test_uploads_are_bounded(address, monkeypatch):
    monkeypatch.setenv("DSLIGHT_MAX_UPLOAD_BYTES", "1000")
    held = io.BytesIO()
    Image.effect_noise((64, 64), 120).save(held, "PNG")
    picture = f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"
    status, text = sent(address, "/ask", {"question": "A1", "images": [picture]})
    assert (status, "at most 1,000" in text) == (400, True)


def test_another_address_is_asked_about_first_and_faults_are_sentences(trained, tmp_path, monkeypatch, capsys):
    from dslight.run.chat_page import chat_page

    questions: list[str] = []
    with pytest.raises(RecipeError, match=r"--host: 0\.0\.0\.0 is seen by others, and nobody agreed"):
        chat_page([trained], host="0.0.0.0", confirm=lambda text: bool(questions.append(text)))
    assert "Everybody who reaches 0.0.0.0:7860" in questions[0]
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert main(["chat", str(trained), "--host", "0.0.0.0"]) == 1  # nobody sits there to be asked
    assert "nobody agreed" in capsys.readouterr().err
    assert main(["chat", str(tmp_path)]) == 1
    assert "holds no run" in capsys.readouterr().err
    assert main(["chat", str(trained), str(trained), str(trained)]) == 1
    assert "one, or two to compare" in capsys.readouterr().err
    assert main(["chat", "--text", str(trained), str(trained)]) == 1
    assert "two stand side by side on the page" in capsys.readouterr().err
    monkeypatch.setattr("dslight.run.page.find_spec", lambda name: None)
    assert main(["chat", str(trained)]) == 1
    assert "needs starlette, uvicorn; pip install 'dslight[chat]'" in capsys.readouterr().err
