"""Runs are watched in a browser: those that have not begun, that train, that stand still and that are done."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from dslight.browser.watching import folders_of, watched
from dslight.cli import main
from dslight.recipe.errors import RecipeError


def written(folder: Path, step: int, steps: int = 100, loss: float = 2.0, seconds: float = 10.0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text("name: x\n")
    at = {"step": step, "max_steps": steps, "loss": loss, "seconds": seconds}
    (folder / "progress.json").write_text(json.dumps(at))
    return folder


def logged(folder: Path, attempt: int, *rows: str) -> None:
    log = folder / "logs" / f"attempt-{attempt}"
    log.mkdir(parents=True)
    (log / "metrics.csv").write_text("\n".join(["step,train/loss,val/pages/acc", *rows]))


def test_a_run_that_trains_says_how_far_it_is_and_how_long_it_will_take(tmp_path):
    run = written(tmp_path / "run", step=25)
    logged(run, 0, "0,4.0,", "10,3.0,", "20,2.5,0.5", "30,nan,")
    logged(run, 1, "20,2.4,", "x,1,", "24,2.2")
    found = watched("run", run)
    assert (found["state"], found["step"], found["steps"], found["loss"]) == ("training", 25, 100, 2.0)
    assert found["left"] == pytest.approx(10 / 25 * 75)
    assert found["curves"] == {"train/loss": [(0, 4.0), (10, 3.0), (20, 2.4), (24, 2.2), (25, 2.0)]}


def test_a_run_that_is_done_has_its_scores_and_one_that_writes_nothing_is_silent(tmp_path):
    run = written(tmp_path / "run", step=97)
    os.utime(run / "progress.json", (time.time() - 1000,) * 2)
    assert watched("run", run)["state"] == "silent"
    (run / "result.json").write_text(json.dumps({"steps": 100, "scores": {"val/pages/acc": 0.5, "odd": None}}))
    found = watched("run", run)
    assert (found["state"], found["step"], found["left"]) == ("finished", 100, None)
    logged(run, 0, "99,1.5,")
    assert watched("run", run)["loss"] == 1.5  # what was said last while it trained is older
    assert found["scores"] == {"val/pages/acc": 0.5}
    assert watched("none", tmp_path / "none")["state"] == "waiting"
    (run / "result.json").write_text("{")
    (run / "progress.json").write_text("[]")
    assert watched("run", run)["state"] == "starting"


def test_long_curves_are_thinned_and_keep_their_end(tmp_path):
    run = written(tmp_path / "run", step=5000)
    logged(run, 0, *(f"{i},{i / 10}," for i in range(5000)))
    points = watched("run", run)["curves"]["train/loss"]
    assert len(points) <= 301
    assert points[0] == (0, 0.0)
    assert points[-1] == (5000, 2.0)


def test_runs_are_found_in_folders_and_ablations_as_they_begin(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    find = folders_of([tmp_path])
    assert find() == []
    written(tmp_path / "arms" / "a" / "seed=0", 1)
    written(tmp_path / "arms" / "b" / "seed=0", 1)
    assert [name for name, _ in find()] == ["a/seed=0", "b/seed=0"]
    ablation = Path(__file__).parents[2] / "recipes" / "ablations" / "quickstart.yaml"
    named = folders_of([ablation])()
    assert ("deepstack_l/seed=1", Path("runs/quickstart/arms/deepstack_l/seed=1")) in named
    with pytest.raises(RecipeError, match="RUNS: there is no folder"):
        folders_of([tmp_path / "none"])


def test_curves_are_drawn_and_refreshed_in_a_browser(tmp_path):
    pytest.importorskip("starlette", reason="needs dslight[chat]")
    uvicorn = pytest.importorskip("uvicorn", reason="needs dslight[chat]")
    sync = pytest.importorskip("playwright.sync_api", reason="needs playwright, which drives the browser")
    import shutil

    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no Chromium on this machine (Debian: apt-get install chromium)")
    from dslight.browser.server import watching

    logged(written(tmp_path / "a", step=25), 0, "0,4.0,", "20,2.5,0.5")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = watching(folders_of([tmp_path]))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    with sync.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        view = browser.new_page(viewport={"width": 400, "height": 800}, color_scheme="dark")
        faults: list[str] = []
        view.on("pageerror", lambda error: faults.append(str(error)))
        while not server.started:
            assert thread.is_alive()
        view.goto(f"http://127.0.0.1:{port}")
        view.wait_for_selector("polyline[data-run='a']", state="attached")
        assert "0 of 1 runs finished, 1 training; about 30 s of training to go" in view.inner_text("#about")
        (tmp_path / "a" / "result.json").write_text(json.dumps({"steps": 100, "scores": {"val/pages/acc": 0.5}}))
        logged(written(tmp_path / "b", step=5), 0, "0,4.0,")
        view.wait_for_selector("polyline[data-run='b']", state="attached", timeout=30_000)
        assert view.inner_text("#about").startswith("1 of 2 runs finished, 1 training")
        assert "pages/acc 0.5000" in view.inner_text("#runs")
        view.select_option("#key", "val/pages/acc")
        view.locator("#runs input").first.uncheck()
        view.wait_for_selector("polyline", state="detached")
        assert view.evaluate("document.documentElement.scrollWidth") <= 400
        view.screenshot(path=str(tmp_path / "watch.png"), full_page=True)
        browser.close()
        assert faults == []
    server.should_exit = True
    thread.join(20)


def test_only_names_of_this_machine_are_answered(tmp_path):
    """A page of another name that leads here (DNS rebinding) reads no run."""
    pytest.importorskip("starlette", reason="needs dslight[chat]")
    uvicorn = pytest.importorskip("uvicorn", reason="needs dslight[chat]")
    from http.client import HTTPConnection

    from dslight.browser.server import watching

    written(tmp_path / "a", step=1)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        app = watching(folders_of([tmp_path]), hosts=["lab.example"])
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        found = {}
        for name in ("127.0.0.1", "localhost", "lab.example", "evil.example"):
            asked = HTTPConnection("127.0.0.1", port, timeout=60)
            asked.request("GET", "/", headers={"Host": name})
            found[name] = asked.getresponse().status
            asked.close()
        server.should_exit = True
        thread.join(60)
    assert found == {"127.0.0.1": 200, "localhost": 200, "lab.example": 200, "evil.example": 400}


def test_what_cannot_be_watched_is_a_sentence(tmp_path, capsys, monkeypatch):
    pytest.importorskip("uvicorn", reason="needs dslight[chat]")
    assert main(["watch", str(tmp_path / "none")]) == 1
    assert "RUNS: there is no folder" in capsys.readouterr().err
    assert main(["watch", str(tmp_path), "--port", "99999"]) == 1
    assert "--port: 99999; 0 to 65535" in capsys.readouterr().err
    assert main(["watch", str(tmp_path), "--host", "0.0.0.0"]) == 1
    assert "nobody agreed" in capsys.readouterr().err
