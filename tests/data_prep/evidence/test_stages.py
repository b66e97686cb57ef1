"""The evidence's recipes, shrunk, one after the other as ``make evidence`` runs them."""

import json
from pathlib import Path

from data_prep.evidence.kinds import KINDS
from data_prep.evidence.native_encoder import main as to_native
from dslight.cli import main
from dslight.testing import byte_tokenizer

RECIPES = Path(__file__).parents[3] / "recipes" / "evidence"
LM = "model.language_model.init_args"
CONFIG = (
    "{model_type: llama, vocab_size: 300, hidden_size: 24, intermediate_size: 32, num_hidden_layers: 6, "
    "num_attention_heads: 3, num_key_value_heads: 3}"
)
ENCODER = (
    "init_args.model_args={img_size: 32, patch_size: 8, embed_dim: 16, depth: 6, num_heads: 2, class_token: false, "
    "global_pool: ''}"
)
NAFLEX = (
    "model.vision_encoder.init_args.config={model_type: siglip2_vision_model, hidden_size: 16, intermediate_size: 64, "
    "num_hidden_layers: 6, num_attention_heads: 2, patch_size: 8, num_patches: 16, hidden_act: gelu}"
)


def test_encoder_stage_1_and_an_arm_of_either_kind_of_encoder_are_trained_and_scored(evidence, tmp_path):
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")

    def fit(name: str, *more: str) -> dict[str, float]:
        run = tmp_path / name
        short = ["trainer.max_steps=1", "data.global_batch_size=2", "trainer.enable_progress_bar=false"]
        assert main(["fit", str(RECIPES / f"{name}.yaml"), *short, *more, f"run_dir={run}"]) == 0
        return json.loads((run / "result.json").read_text())["scores"]

    letters = [f"data.train=[{evidence / 'letters/train'}]", f"data.val.sheets.root={evidence / 'letters/val'}"]
    scores = fit("encoder", *letters, f"component.{ENCODER}")
    assert 0 <= scores["val/crop_accuracy"] <= 1
    weights = tmp_path / "encoder" / "weights"
    to_native(["--encoder", str(weights / "vision_encoder.safetensors"), "--out", str(weights / "native.safetensors")])

    tiny = [f"{LM}.pretrained=null", f"{LM}.config={CONFIG}", f"{LM}.tokenizer={tmp_path / 'tokenizer'}"]
    tiny += ["data.micro_batch_size=2", "data.template=bare", f"data.val.text.root={evidence / 'text'}"]
    of_timm = [f"model.vision_encoder.{ENCODER}", f"data.keep_features={tmp_path / 'features'}"]
    of_timm += [f"weights.vision_encoder={weights / 'vision_encoder.safetensors'}"]
    stage_1 = fit("align", *tiny, *of_timm, f"data.train=[{evidence / 'align/train'}]")
    assert stage_1["val/text/loss"] > 0

    tiny += [f"weights.projector={tmp_path / 'align/weights/projector.safetensors'}"]
    tiny += [f"data.train=[{evidence / 'train'}]", f"data.val.pages.root={evidence / 'val'}", "data.val.pages.limit=4"]
    of_any_size = [NAFLEX, "data.views.init_args.min_pixels=1024", "data.views.init_args.max_pixels=1024"]
    of_any_size += [f"weights.vision_encoder={weights / 'native.safetensors'}"]
    for name, encoder in (("deepstack_l", of_timm), ("native_deepstack_l", of_any_size)):
        scores = fit(name, *tiny, *encoder)
        assert 0 <= scores["val/pages/exact_match"] <= 1
        kinds = {key.rpartition("/")[2] for key in scores if key.startswith("val/pages/exact_match/")}
        assert {"chart"} <= kinds <= {"title", *KINDS}  # of the two pages that four questions are about
        assert scores["val/text/loss"] > 0
