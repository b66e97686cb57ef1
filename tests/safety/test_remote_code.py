"""Code that a checkpoint or a tokenizer brings along is not run, and nobody is asked whether it may be."""

from __future__ import annotations

import ast
import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import dslight
from dslight.components import HFCausalLM, HFVisionEncoder, TimmEncoder
from dslight.components.unread import unread

ROOT = Path(__file__).parents[2]
PROMISE = "code of checkpoints is refused without a question"
CODE = "import os\nos.mkdir({sprung!r})\n{classes}"


@pytest.fixture(autouse=True)
def nobody_is_asked(monkeypatch):
    def asked(*_: Any) -> str:
        raise AssertionError("somebody was asked")

    monkeypatch.setattr(builtins, "input", asked)


@pytest.fixture
def folder(tmp_path, sprung) -> Path:
    """A checkpoint with a configuration, a model and a tokenizer of its own."""
    root = tmp_path / "checkpoint"
    root.mkdir()
    classes = "class A: pass\n"
    (root / "theirs.py").write_text(CODE.format(sprung=str(sprung), classes=classes))
    kinds = {"AutoConfig": "theirs.A", "AutoModel": "theirs.A", "AutoModelForCausalLM": "theirs.A"}
    (root / "config.json").write_text(json.dumps({"model_type": "theirs", "auto_map": kinds}))
    tokenizer = {"tokenizer_class": "TheirTokenizer", "auto_map": {"AutoTokenizer": ["theirs.A", None]}}
    (root / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return root


def tiny(**more: Any) -> HFCausalLM:
    shape = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    return HFCausalLM(config={"model_type": "llama", **shape, **heads}, **more)


def waiting(make: Callable[[], Any]) -> Any:
    with unread():
        return make()


TRIES: dict[str, Callable[[str], Any]] = {
    "language model": lambda name: HFCausalLM(pretrained=name),
    "language model, read in shares": lambda name: waiting(lambda: HFCausalLM(pretrained=name)),
    "vision encoder": lambda name: HFVisionEncoder(pretrained=name),
    "tokenizer": lambda name: tiny(tokenizer=name).load_tokenizer(),
}


@pytest.mark.promise(PROMISE, "a checkpoint with code, as")
@pytest.mark.parametrize("part", TRIES)
def test_code_of_a_checkpoint_is_not_run(part, folder, sprung, outcome):
    with pytest.raises(ValueError, match="trust_remote_code: true") as refused:
        TRIES[part](str(folder))
    assert not sprung.exists()
    said = str(refused.value)
    assert said.startswith("tokenizer: " if part == "tokenizer" else "pretrained: ")
    assert str(folder) in said
    assert "\n" not in said
    outcome(refused)


@pytest.mark.promise(PROMISE, "a known architecture that would rather bring its own code")
def test_a_known_architecture_is_built_from_transformers_own(folder, sprung, tmp_path):
    lm = tiny()
    lm.model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "theirs.A", "AutoModelForCausalLM": "theirs.A"}
    (folder / "config.json").write_text(json.dumps(config))
    again = HFCausalLM(pretrained=str(folder))
    assert not sprung.exists()
    assert type(again.model).__module__.startswith("transformers.")


@pytest.mark.promise(PROMISE, "a configuration that names a kernel of the hub")
def test_kernels_of_the_hub_are_code(folder, outcome):
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "_attn_implementation": "theirs/kernel"}))
    with pytest.raises(ValueError, match=r"config\.json\._attn_implementation: 'theirs/kernel' names code") as refused:
        HFCausalLM(pretrained=str(folder))
    with pytest.raises(ValueError, match="attention: theirs/kernel is code from the hub"):
        tiny(attention="theirs/kernel")
    outcome(refused)


@pytest.mark.promise(PROMISE, "an adapter, whose folder names another checkpoint")
def test_an_adapter_opens_no_other_checkpoint(folder, outcome):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "somebody/else"}))
    with pytest.raises(ValueError, match="names another checkpoint that would be opened") as refused:
        HFCausalLM(pretrained=str(folder))
    outcome(refused)


@pytest.mark.promise(PROMISE, "timm, by a name that is a place:")
@pytest.mark.parametrize("name", ["hf-hub:somebody/vit", "hf_hub:somebody/vit", "local-dir:/somewhere/vit"])
def test_timm_takes_names_of_its_own_models_only(name, outcome):
    with pytest.raises(ValueError, match="is a place and no model of timm") as refused:
        TimmEncoder(name)
    outcome(refused)


@pytest.mark.promise(PROMISE, "timm, with a pickle of weights in")
@pytest.mark.parametrize("key", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"])
def test_timm_reads_no_files_of_the_recipe(key, tmp_path, trap, sprung, outcome):
    torch.save({"state_dict": trap}, tmp_path / "weights.pth")
    value = str(tmp_path / "weights.pth")
    arguments = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 1}
    with pytest.raises(ValueError, match=f"model_args.{key}") as refused:
        TimmEncoder("vit_tiny_patch16_224", model_args={**arguments, key: value if "path" in key else {"file": value}})
    assert not sprung.exists()
    outcome(refused)


@pytest.mark.promise(PROMISE, "every call in the source that opens a checkpoint")
def test_every_call_says_whether_code_may_run(outcome):
    """``AutoX.from_pretrained`` and ``from_config``: transformers asks on the terminal where it is not said."""
    wrong, looked = [], 0
    for path in [*(ROOT / "dslight").rglob("*.py"), *(ROOT / "data_prep").rglob("*.py"), *ROOT.glob("benchmarks/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called.startswith("torch.hub."):
                wrong.append(f"{path.name}:{node.lineno}: {called}")
            if called.startswith("Auto") and called.endswith((".from_pretrained", ".from_config")):
                looked += 1
                given = {one.arg for one in node.keywords}
                splat = {ast.unparse(one.value) for one in node.keywords if one.arg is None}
                if "trust_remote_code" not in given and "options" not in splat:
                    wrong.append(f"{path.name}:{node.lineno}: {called}")
    assert wrong == []
    assert looked >= 6
    outcome(f"{looked} calls looked at")


def test_what_is_trusted_is_run(folder, sprung):
    """The other way round: with the key set, transformers does import the file."""
    with pytest.raises(Exception):  # noqa: B017, PT011 - it is no model, which shows once it has been imported
        HFCausalLM(pretrained=str(folder), trust_remote_code=True)
    assert sprung.exists()


@pytest.mark.promise(PROMISE, "a checkpoint that says of itself that its code is to be trusted")
def test_a_checkpoint_does_not_say_that_it_is_to_be_trusted(tmp_path, outcome):
    arguments = {"pretrained": "somebody/theirs", "trust_remote_code": True}
    model = {"language_model": {"class_path": "dslight.HFCausalLM", "init_args": arguments}}
    torch.save({"state_dict": {}, "recipe": {"model": model}}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="asks for code to be run") as refused:
        dslight.load(tmp_path / "last.ckpt")
    outcome(refused)
