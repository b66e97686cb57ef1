#!/usr/bin/env bash
# transformers 5.24.0: `transformers serve` looks the class of a model up as an attribute of the package itself
# (`getattr(transformers, architectures[0])`), whatever `Auto*.register` was told and whatever `auto_map` says. So a folder with
# its own code, which `AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True)` and `pipeline` load and run, ends
# `transformers serve FOLDER --trust-remote-code`, the command's own flag for that, with an AttributeError; and so does a
# registered class in the server's model manager. Seen: AttributeError: module transformers has no attribute OwnForCausalLM
# from both; the same weights named LlamaForCausalLM load.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 numpy==2.4.6 accelerate==1.15.0 fastapi==0.165.0 \
    uvicorn==0.54.0 openai==3.57.0 pydantic==2.14.4 starlette==1.10.0
cat > "$folder/own.py" <<'PY'
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own_llama"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
PY
cat > "$folder/run.py" <<'PY'
import subprocess
import sys
from pathlib import Path

import tokenizers
import torch
import transformers
from own import OwnConfig, OwnForCausalLM
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.cli.serving import ModelManager

print("transformers", transformers.__version__, "torch", torch.__version__)
here = Path(__file__).parent
sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=4,
             max_position_embeddings=32, bos_token_id=1, eos_token_id=2, pad_token_id=0)
words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "a": 1, "b": 2, "<unk>": 3}, unk_token="<unk>"))
words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<pad>")


def saved(name, model):
    model.save_pretrained(here / name)
    tokenizer.save_pretrained(here / name)
    return str(here / name)


plain = saved("plain", LlamaForCausalLM(LlamaConfig(**sizes)))
own = saved("registered", OwnForCausalLM(OwnConfig(**sizes)))
AutoConfig.register("own_llama", OwnConfig)
AutoModelForCausalLM.register(OwnConfig, OwnForCausalLM)
print("AutoModelForCausalLM, registered:", type(AutoModelForCausalLM.from_pretrained(own)).__name__)
manager = ModelManager(device="cpu")
print("model manager, plain:", type(manager.load_model_and_processor(plain)[0]).__name__)
try:
    manager.load_model_and_processor(own)
except AttributeError as error:
    print("model manager, registered: AttributeError:", error)
    assert "OwnForCausalLM" in str(error)
else:
    raise SystemExit("the model manager loads a registered class now")
finally:
    manager.shutdown()

OwnConfig.register_for_auto_class()
OwnForCausalLM.register_for_auto_class("AutoModelForCausalLM")
remote = saved("remote", OwnForCausalLM(OwnConfig(**sizes)))
assert (here / "remote" / "own.py").exists()
answer = "import sys, transformers; p = transformers.pipeline('text-generation', sys.argv[1], trust_remote_code=True); " \
         "p('a', max_new_tokens=2); print('pipeline, own code:', type(p.model).__name__)"
print(subprocess.run([sys.executable, "-W", "ignore", "-c", answer, remote], cwd="/", check=True, text=True,
                     stdout=subprocess.PIPE).stdout.strip())
command = [str(Path(sys.executable).with_name("transformers")), "serve", remote, "--trust-remote-code", "--device", "cpu",
           "--port", "0"]
try:
    run = subprocess.run(command, cwd="/", text=True, capture_output=True, timeout=120)
except subprocess.TimeoutExpired:
    raise SystemExit("transformers serve loads a folder's own class now") from None
told = (run.stdout + run.stderr).strip()
print("transformers serve --trust-remote-code: status", run.returncode, "|", told.splitlines()[-1][-200:])
assert run.returncode != 0 and "AttributeError" in told and "OwnForCausalLM" in told, told
PY
export HF_HOME="$folder/hf" HF_HUB_OFFLINE=1 NO_COLOR=1 OMP_NUM_THREADS=1
"$folder/venv/bin/python" -W ignore "$folder/run.py"
