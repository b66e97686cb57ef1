"""A checkpoint that holds what trains is continued where weights are sharded, and gathered to be compared."""

import json

import pytest
import tiny_world


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
    assert (run / "checkpoints" / "step-00000004.ckpt").is_dir()
    lm = world / tiny_world.LM / "model.safetensors"
    lm.write_bytes(lm.read_bytes()[:-4] + b"\0\0\0\0")
    (run / "result.json").unlink()
    for path in (run / "checkpoints").glob("step-00000004.ckpt/*"):
        path.unlink()
    (run / "checkpoints" / "step-00000004.ckpt").rmdir()
    changed = fit(file, tmp_path / "one", ranks=2)
    assert changed.code != 0
    assert "does not hold the weights of the language_model, which did not train" in changed.output
