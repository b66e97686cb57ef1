"""Checkpoints that transformers keeps otherwise on disk than in memory, read strictly, whole and in shares."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from dslight.checkpoints import load_checkpoint
from dslight.checkpoints.converted import Converted
from dslight.components import HFCausalLM
from dslight.components.component import WeightsError
from dslight.components.unread import unread
from dslight.matrix.decoders import checkpoint

SAMPLE = ["mixtral", "gemma3", "qwen3_moe", "llama4_text", "gpt_oss"]
MORE = ["qwen2_moe", "olmoe", "deepseek_v3", "dbrx", "jamba", "phimoe", "granitemoe", "glm4_moe", "got_ocr2", "mllama"]


class Alone:
    """A model of one part."""

    def __init__(self, part: HFCausalLM) -> None:
        self.part = part

    def parts(self) -> dict[str, torch.nn.Module]:
        return {"language_model": self.part}


@pytest.mark.parametrize("kind", [*SAMPLE, *(pytest.param(kind, marks=pytest.mark.slow) for kind in MORE)])
def test_a_part_without_memory_is_filled_from_what_transformers_saved(kind, tmp_path):
    checkpoint(kind, tmp_path)
    expected = HFCausalLM(str(tmp_path))
    with unread():
        part = HFCausalLM(str(tmp_path))
    assert all(parameter.is_meta for parameter in part.parameters())
    assert load_checkpoint(Alone(part), tmp_path, read=False).fits
    part.to_empty(device="cpu")
    part.model.tie_weights()
    for buffer, other in zip(part.buffers(), expected.buffers(), strict=True):
        buffer.copy_(other)
    load_checkpoint(Alone(part), tmp_path)
    theirs = expected.state_dict()
    assert theirs.keys() == part.state_dict().keys()
    for name, tensor in part.state_dict().items():
        torch.testing.assert_close(tensor, theirs[name], atol=0, rtol=0, msg=name)


def test_a_share_of_joined_experts_is_that_share(tmp_path):
    checkpoint("mixtral", tmp_path)
    network: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    name = "model.layers.1.mlp.experts.gate_up_proj"
    whole = network.state_dict()[name]
    share = (slice(1, 3), slice(0, 5), slice(None))
    assert [(n, t.shape) for n, t in Converted(tmp_path, network).tensors({name: share})] == [
        (name, whole[share].shape)
    ]
    ((_, tensor),) = Converted(tmp_path, network).tensors({name: share})
    assert torch.equal(tensor, whole[share])


def test_an_expert_that_is_missing_is_an_error_and_not_a_random_one(tmp_path):
    checkpoint("mixtral", tmp_path)
    (file,) = Path(tmp_path).glob("*.safetensors")
    state = load_file(file)
    lost = next(name for name in state if "experts.2.w1" in name)
    save_file({name: tensor for name, tensor in state.items() if name != lost}, file, {"format": "pt"})
    with torch.device("meta"):
        part = HFCausalLM(config=AutoConfig.from_pretrained(tmp_path).to_diff_dict())
    with pytest.raises(WeightsError, match=r"does not fit HFCausalLM:\s+missing .*experts.gate_up_proj"):
        load_checkpoint(Alone(part), tmp_path, read=False)
