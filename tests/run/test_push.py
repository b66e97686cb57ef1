"""``dslight push`` and ``hub_push``: what reaches a Hub on loopback, opens from there, and what goes nowhere."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from hub import TOKEN, Hub, serving
from huggingface_hub import constants

import dslight
from dslight.cli import main
from dslight.recipe.ablation import expand
from dslight.recipe.errors import RecipeError
from dslight.upstream.hub import stay_offline_without_network

ABLATION = Path(__file__).parents[2] / "recipes" / "ablations" / "quickstart.yaml"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that this process takes for the real one, and somebody who is logged in there."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    stay_offline_without_network.cache_clear()  # what another test found out
    with serving() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", running.address)
        yield running
        stay_offline_without_network.cache_clear()


@pytest.fixture(scope="module")
def exported(whole, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "mine"
    assert main(["export", str(whole.path), str(out), "--shard-size", "200KB"]) == 0
    return out


def test_a_run_is_uploaded_private_and_listed_first_and_opens_from_there(whole, hub, capsys, tmp_path):
    assert main(["push", str(whole.path), "me/mine"]) == 0
    said = capsys.readouterr().out
    there = hub.repositories["me/mine"]
    assert there.private
    assert there.messages == ["Upload of the run run"]
    assert there.lfs == {"model.safetensors"}
    assert all(f"    {name}  " in said for name in there.files)
    assert (
        said.index("model.safetensors") < said.index("me/mine: made, private") < said.index("me/mine: uploaded, http")
    )
    assert b'from_pretrained("me/mine")' in there.files["README.md"]
    downloaded = huggingface_hub.snapshot_download("me/mine")
    from transformers import AutoModelForImageTextToText

    opened = AutoModelForImageTextToText.from_pretrained(downloaded)
    ours = dslight.load(whole.path).state_dict()
    assert all(torch.equal(tensor, ours[name.removeprefix("vlm.")]) for name, tensor in opened.state_dict().items())
    shutil.copytree(downloaded, tmp_path / "mine")
    assert str(whole.path) not in (tmp_path / "mine" / "dslight.yaml").read_text().partition("data:")[0]
    assert "model: mine\n" in (tmp_path / "mine" / "dslight.yaml").read_text()


def test_a_second_upload_replaces_the_weights_of_the_first(whole, exported, hub, capsys):
    assert main(["push", str(exported), "me/mine"]) == 0
    shards = {name for name in hub.repositories["me/mine"].files if "safetensors" in name}
    assert len(shards) > 2
    assert dslight.Run(whole.path).push_to_hub("me/mine").startswith("http")
    said = capsys.readouterr().out
    assert {name for name in hub.repositories["me/mine"].files if "safetensors" in name} == {"model.safetensors"}
    assert all(name in said.partition("weights of an earlier upload go: ")[2] for name in shards)


def test_nothing_is_uploaded_to_a_public_repository_unless_that_is_said(exported, hub, capsys):
    assert main(["push", str(exported), "me/open", "--public"]) == 0
    there = hub.repositories["me/open"]
    assert not there.private
    before = len(there.messages)
    assert main(["push", str(exported), "me/open"]) == 1
    assert "OWNER/NAME: me/open can be read by anybody; say so: dslight push ... --public" in capsys.readouterr().err
    assert len(there.messages) == before
    assert main(["push", str(exported), "me/open", "--public", "--message", "Again"]) == 0
    assert there.messages[-1] == "Again"


def test_a_finished_run_is_uploaded_where_the_recipe_names_a_repository(whole, fit, hub):
    fit(whole.path, "hub_push=me/run")  # it has ended: only the upload is left
    assert "model.safetensors" in hub.repositories["me/run"].files


REFUSED = {
    "offline": "OWNER/NAME: nothing can be uploaded to me/mine: this environment is offline (HF_HUB_OFFLINE)",
    "unknown": "OWNER/NAME: me/mine takes uploads of those who are known; `hf auth login`, or set HF_TOKEN",
    "stranger": "OWNER/NAME: the Hub does not take it for me/mine (401: Invalid username or password.)",
    "no server": "OWNER/NAME: the Hub cannot be reached for me/mine (",
}


@pytest.mark.parametrize("why", REFUSED)
def test_an_upload_that_cannot_be_is_one_sentence(why, exported, hub: Hub, monkeypatch, capsys, tmp_path):
    match why:
        case "offline":
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        case "unknown":
            monkeypatch.delenv("HF_TOKEN")
            monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
        case "stranger":
            monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
        case _:
            monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert main(["push", str(exported), "me/mine"]) == 1
    error = capsys.readouterr().err
    assert REFUSED[why] in error
    assert error.count("\n") == 1
    assert not hub.repositories


def test_what_goes_is_listed_without_asking_anybody(exported, monkeypatch, hub, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["push", str(exported), "me/mine", "--list"]) == 0
    assert "me/mine: " in (said := capsys.readouterr().out)
    assert "    config.json  " in said
    assert not hub.asked
    assert main(["push", str(exported), "mine"]) == 1
    assert "OWNER/NAME: 'mine' is no repository of the Hub" in capsys.readouterr().err
    assert main(["push", str(exported.parent), "me/mine", "--list"]) == 1
    assert "is neither a run's folder (no recipe.yaml) nor an export" in capsys.readouterr().err
    assert main(["push", str(exported), "you/mine"]) == 1
    assert "(HF_HUB_OFFLINE)" in capsys.readouterr().err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    stay_offline_without_network.cache_clear()
    assert main(["push", str(exported), "you/mine"]) == 1
    assert "(403: You don't have the rights to create a model under this namespace)" in capsys.readouterr().err


def test_a_training_that_could_not_be_uploaded_does_not_begin(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["fit", str(recipe), f"run_dir={tmp_path / 'run'}", "hub_push=me/mine"]) == 1
    assert (
        "hub_push: nothing can be uploaded to me/mine: this environment is offline (HF_HUB_OFFLINE)"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()


def test_transformers_own_push_to_hub_uploads_what_opens_again(exported, hub, monkeypatch):
    """Of the model and the processor that the Auto classes make."""
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import hub as theirs

    monkeypatch.setattr(theirs, "_hf_api", None)  # it remembers the address of another Hub
    model: Any = AutoModelForImageTextToText.from_pretrained(exported)
    model.push_to_hub("me/auto", private=True)
    AutoProcessor.from_pretrained(exported).push_to_hub("me/auto")
    assert hub.repositories["me/auto"].private
    downloaded = huggingface_hub.snapshot_download("me/auto")
    again = AutoModelForImageTextToText.from_pretrained(downloaded).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())
    talk = [{"role": "user", "content": "B2"}]
    asked = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    one, other = (
        AutoProcessor.from_pretrained(folder).apply_chat_template(talk, **asked) for folder in (exported, downloaded)
    )
    assert torch.equal(one["input_ids"], other["input_ids"])


def test_runs_of_an_ablation_may_not_take_each_others_place():
    with pytest.raises(RecipeError, match=r"would take each other's place in me/one$"):
        expand(ABLATION, ["hub_push=me/one"])
