"""A checkpoint that holds what trains is continued where weights are sharded, and gathered to be compared."""

import json

import pytest
import tiny_world
from safetensors.torch import load_file

import dslight
from dslight.checkpoints.sharded import read_table


def test_a_sharded_run_goes_on_from_a_file_that_leaves_out_what_is_elsewhere(fit, tmp_path):
    world = tmp_path / "world"
    tiny_world.write(world)
    values = {
        "name": "holds",
        "model": {
            "vision_encoder": {"HFVisionEncoder": {"pretrained": str(world / tiny_world.CLIP)}},
            "projector": "MLPProjector",
            "stacking": {"DeepStackL": {"crops": 4}},
            "language_model": {"HFCausalLM": {"pretrained": str(world / tiny_world.LM)}},
        },
        "stage": {"train": {"projector": {"lr": 0.01}}, "warmup_steps": 0, "schedule": "constant"},
        "data": {"train": [str(world / "data/mine")], "global_batch_size": 4},
        "trainer": {**tiny_world.QUICK, "max_steps": 4, "log_every_n_steps": 1},
        "checkpoint_every": 2, "checkpoint_keep": 9,
    }  # fmt: skip
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(values))
    one = fit(file, tmp_path / "one")
    assert one.code == 0, one.output[-4000:]
    (run := tmp_path / "one" / "run").joinpath("result.json").unlink()
    (run / "checkpoints" / "step-00000004.ckpt").unlink()
    assert (run / "checkpoints" / "step-00000002.ckpt").stat().st_size < 60_000
    expected = one.losses()
    two = fit(file, tmp_path / "one", ranks=2)
    assert two.code == 0, two.output[-4000:]
    assert two.losses() == pytest.approx(expected, abs=1e-5)
    sharded = run / "checkpoints" / "step-00000004.ckpt"
    assert not [name for name in read_table(sharded).state_dict_metadata if ".language_model." in name]
    ours = dslight.load(run, device="cpu").state_dict()
    head = load_file(world / tiny_world.LM / "model.safetensors")["lm_head.weight"]
    assert ours["language_model.model.lm_head.weight"].equal(head)
    (run / "result.json").unlink()
    on = fit(file, tmp_path / "one", "trainer.max_steps=5", "--extend", ranks=2)
    assert on.code == 0, on.output[-4000:]
    assert len(on.losses()) == 5
    (run / "checkpoints" / "step-00000005.ckpt").rename(tmp_path / "gone")
    lm = world / tiny_world.LM / "model.safetensors"
    lm.write_bytes(lm.read_bytes()[:-4] + b"\0\0\0\0")
    (run / "result.json").unlink()
    changed = fit(file, tmp_path / "one", "trainer.max_steps=5", "--extend", ranks=2)
    assert changed.code != 0
    assert "does not hold the weights of the language_model, which did not train" in changed.output
