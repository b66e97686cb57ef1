"""OpenAI's own client asks an exported model over the network of this machine: with a picture, streaming."""

from __future__ import annotations

import base64
import io
import json
import socket
from pathlib import Path

import pytest

import dslight
from dslight.cli import main
from dslight.data.sample import parse_sample
from dslight.data.shards import ShardReader


@pytest.fixture(scope="module")
def exported(fit, tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("served")
    run = fit(folder / "run", "trainer.max_steps=12", "trainer.limit_val_batches=1")
    assert main(["export", str(run.path), str(folder / "out")]) == 0
    return run.path, folder / "out"


def test_openais_client_streams_an_answer_about_a_picture(exported, pages):
    openai = pytest.importorskip("openai", reason="needs dslight[serve]")
    for name in ("fastapi", "uvicorn"):
        pytest.importorskip(name, reason="needs dslight[serve]")
    from dslight.run.serve import serve

    run, out = exported
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = serve(out, port=port, device="cpu", background=True)
    try:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=20)
        image = parse_sample("k", ShardReader(pages / "val").read(0)).images[0]
        url = f"data:image/png;base64,{base64.b64encode(image).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "A1"}]
        asked = {"model": str(out), "messages": [{"role": "user", "content": content}], "max_tokens": 6}
        ours = dslight.load(run).answer("A1", io.BytesIO(image).getvalue(), max_new_tokens=6)
        pieces = [
            chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**asked, stream=True)
        ]
        assert "".join(pieces).strip() == ours
        assert sum(bool(piece) for piece in pieces) > 1  # it came in pieces
        assert client.chat.completions.create(**asked).choices[0].message.content.strip() == ours
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(**{**asked, "model": "another"})
    finally:
        server.kill_server()


def test_what_cannot_be_served_is_a_sentence(exported, tmp_path, monkeypatch, capsys):
    pytest.importorskip("fastapi", reason="needs dslight[serve]")
    run, out = exported
    for option, value in (("--port", "99999"), ("--dtype", "int8"), ("--device", "tpu9")):
        assert main(["serve", str(out), option, value]) == 1
        assert f"dslight: {option}: " in (said := capsys.readouterr().err)
        assert value in said
    assert main(["serve", str(run)]) == 1
    assert f"FOLDER: {run} is a run; write its model first: dslight export {run} OUT" in capsys.readouterr().err
    assert main(["serve", str(tmp_path)]) == 1
    assert "is no model that dslight export wrote" in capsys.readouterr().err
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dslight"}))
    assert main(["serve", str(tmp_path)]) == 1
    assert "names no architecture" in capsys.readouterr().err
    monkeypatch.setattr("dslight.run.serve.find_spec", lambda name: None)
    assert main(["serve", str(run)]) == 1
    assert "needs fastapi, uvicorn, openai; pip install 'dslight[serve]'" in capsys.readouterr().err
