"""Every shipped recipe goes through the real command line: all are planned, those of the quickstart are trained.

Those of the paper are planned in ``test_paper``, which knows what they have to be.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from dslight.cli import main
from dslight.recipe.ablation import expand
from dslight.recipe.build import check
from dslight.recipe.compose import compose

ROOT = Path(__file__).parent.parent / "recipes"
FILES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.yaml"))
PAPER = [name for name in FILES if name.startswith("paper/")]
"""Driven by ``test_paper``."""
PARTS = [name for name in FILES if name.startswith("parts/")]
"""Not recipes by themselves."""
ABLATIONS = [name for name in FILES if name.startswith("ablations/")]
ENCODERS = ["quickstart/encoder.yaml", "quickstart/encoder_low.yaml"]
ARMS = [name for name in FILES if name.startswith("quickstart/") and name not in ENCODERS]
TWICE = [name for name in FILES if name.startswith("twice/")]
"""The quickstart's second task: its arms differ from the quickstart's in numbers, so they are not trained here."""
EVIDENCE = [name for name in FILES if name.startswith("evidence/")]
"""Trained, shrunk, in ``data_prep/evidence``'s tests, which draw their pages."""
VARIANTS = {
    "both_sides": (672, 2880, 576, [1, 2, 3, 4]),
    "compressed_attention_pool": (672, 2304, 576, []),
    "compressed_c_abstractor": (672, 2304, 576, []),
    "compressed_pixel_shuffle": (672, 2304, 576, []),
    "compressed_pool": (672, 2304, 576, []),
    "compressed_resampler": (672, 2304, 576, []),
    "conditioned_gate": (336, 576, 576, [1, 9, 17, 25]),
    "depth_fractions": (336, 576, 576, [2, 4, 6]),
    "flamingo_cross_attention": (672, 2880, 576, [1, 2, 3, 4]),
    "gated": (672, 2880, 576, [1, 2, 3, 4]),
    "granite_map": (672, 2880, 5 * 144 + 24, [0, 3, 6, 9, 12, 15, 18, 21]),  # 24 rows of the mosaic end in a newline
    "granite_docling": (512, 1024, 64, [1, 2, 3]),
    "level_lora": (336, 576, 576, [1, 9, 17, 25]),
    "lora": (672, 2880, 576, [1, 2, 3, 4]),
    "multi_layer_fusion": (336, 576, 576, []),
    "native_deepstack_l": (1024, 5120, 256, [1, 2, 3, 4]),
    "native_taps": (512, 1024, 256, [1, 2, 3]),
    "qwen3_vl_taps": (512, 1024, 256, [1, 2, 3]),
    "slimm_mid_layers": (448, 1024, 256, [1, 2, 3, 4]),
    "vip_llava": (336, 576, 576, []),
}
"""Effective resolution, visual tokens, context length, and the layers of the language model that something enters."""
ADAPTERS = 32 * 128 * (3072 + 9216 + 3072 + 3072 + 3072 + 16384 + 8192 + 3072)
"""Rank 128 beside the four linear layers of each of Phi-3-mini's 32: what goes in and what comes out."""
LANGUAGE_MODELS = {"slimm_mid_layers": 494_032_768, "lora": 3_821_079_552 + ADAPTERS}
QWEN3_8B = ["granite_docling", "qwen3_vl_taps", "native_deepstack_l", "native_taps"]
LANGUAGE_MODELS |= dict.fromkeys(QWEN3_8B, 8_190_735_360)
"""Parameters of Qwen/Qwen3-8B and Qwen/Qwen2-0.5B-Instruct; the others have Phi-3-mini's."""
SHAPES = [
    "paper/table1/llava_next_7b.yaml",
    "paper/table1/deepstack_v_7b.yaml",
    "paper/table1/deepstack_l_7b.yaml",
    "paper/table1/deepstack_l_hd_7b.yaml",
    "paper/table7/dimension_concat.yaml",
    "paper/table7/hi_res_string.yaml",
]
"""Every kind of row of the paper once; the others differ from these in numbers, or are in the quickstart."""
ALIKE = {
    "compressed_attention_pool", "compressed_pixel_shuffle", "compressed_pool",  # but for the projector's class
    *SHAPES[:3],  # the kinds of the quickstart's arms low, deepstack_v and deepstack_l, which are trained below
}  # fmt: skip
"""Of what is shrunk and trained, what differs from others by a class that is trained elsewhere: slow."""
PLANNED = [ENCODERS[0], *(f"quickstart/{name}.yaml" for name in ("deepstack_l", "deepstack_v", "sequence"))]
"""With their cost; the others pass through the same parts."""
_CLIP = "vision_encoder.init_args.config"
TINY_ENCODER = {
    "HFVisionEncoder": [
        "vision_encoder.init_args.pretrained=null",
        *(f"{_CLIP}.{size}" for size in ("hidden_size=16", "intermediate_size=32", "num_attention_heads=2")),
        *(f"{_CLIP}.{size}" for size in ("image_size=32", "patch_size=4")),
    ],
    "NativeVisionEncoder": [
        "vision_encoder.init_args.pretrained=null",
        *(f"{_CLIP}.{size}" for size in ("hidden_size=16", "intermediate_size=32", "num_heads=2")),
        *(f"{_CLIP}.{size}" for size in ("patch_size=4", "num_position_embeddings=16")),
    ],
    "TimmEncoder": [
        "vision_encoder.init_args.pretrained=false",
        "vision_encoder.init_args.model_args={img_size: 32, patch_size: 4, embed_dim: 16, num_heads: 2}",
    ],
}
TINY_VIEWS = {
    "NativeVisionEncoder": ["data.views.init_args.min_pixels=64", "data.views.init_args.max_pixels=256"],
}
_LM = "language_model.init_args"
TINY_DECODER = [
    f"{_LM}.pretrained=null",
    *(f"{_LM}.config.{size}" for size in ("hidden_size=16", "intermediate_size=32", "vocab_size=32")),
    *(f"{_LM}.config.{size}" for size in ("num_attention_heads=2", "num_key_value_heads=2", "pad_token_id=null")),
]
TINY_RUN = [
    "weights=null",
    *(f"data.{key}" for key in ("template=bare", "global_batch_size=2", "micro_batch_size=2", "val_batch_size=2")),
    *(f"trainer.{key}" for key in ("strategy=auto", "devices=1", "accelerator=cpu", "precision=32-true")),
    *("trainer.max_steps=1", "trainer.enable_progress_bar=false", "data.num_workers=0"),
]


def test_every_file_is_known_to_these_tests():
    """A new file changes these numbers: then see that it is planned (and trained, if it is tiny) below."""
    variants = [f"variants/{name}.yaml" for name in VARIANTS]
    assert set(FILES) == {*PAPER, *PARTS, *ABLATIONS, *ENCODERS, *ARMS, *TWICE, *EVIDENCE, *variants}
    kinds = (ABLATIONS, ENCODERS, ARMS, TWICE, PAPER, VARIANTS, EVIDENCE)
    assert [len(names) for names in kinds] == [8, 2, 7, 9, 60, 20, 10]


def test_every_part_is_used():
    used = {(path.parent / base).resolve() for path in ROOT.rglob("*.yaml") for base in bases(path)}
    assert [name for name in PARTS if (ROOT / name).resolve() not in used] == []


def bases(path: Path) -> list[str]:
    document = yaml.safe_load(path.read_text())
    variants = [variant for variant in document.get("variants", {}).values() if variant]
    return [base for node in [document, *variants] for base in node.get("bases", [])]


@pytest.mark.parametrize("name", [*ENCODERS, *ARMS, *TWICE])
def test_a_quickstart_recipe_can_be_planned(name, capsys):
    assert main(["plan", str(ROOT / name), *([] if name in PLANNED else ["--no-cost"])]) == 0
    assert capsys.readouterr().out.startswith(name.removesuffix(".yaml") + "\n")


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_has_its_models_tokens_and_layers(name, capsys):
    assert main(["plan", str(ROOT / f"variants/{name}.yaml"), "--json", "--no-cost"]) == 0
    plan = json.loads(capsys.readouterr().out)
    resolution, read, context, layers = VARIANTS[name]
    assert (plan["effective_resolution"], plan["visual_tokens"]) == ([resolution] * 2, read)
    assert plan["context_length"] == context
    placed = [(part, layer) for part, layer, what in plan["placements"] if "in the sequence" not in what]
    assert [layer for part, layer in placed if part == "language_model"] == layers
    assert [layer for part, layer in placed if part == "vision_encoder"] == (
        [20, 21, 22, 23] if name == "both_sides" else []
    )
    parameters = {part["name"]: part["parameters"] for part in plan["parts"]}
    assert parameters["language_model"] == LANGUAGE_MODELS.get(name, 3_821_079_552)


@pytest.mark.parametrize("name", ["variants/flamingo_cross_attention.yaml", "variants/granite_map.yaml"])
def test_what_others_made_of_it_costs_something(name, capsys):
    """FLOPs of what the paper has not: blocks beside the sequence, a Q-Former per level."""
    assert main(["plan", str(ROOT / name), "--json"]) == 0
    flops = {part["name"]: part["forward_flops"] for part in json.loads(capsys.readouterr().out)["parts"]}
    assert flops["stacking" if "flamingo" in name else "projector"] > 1e10
    assert flops["language_model"] > flops["vision_encoder"] > 1e12


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name for name in [*VARIANTS, *SHAPES]]
)
def test_a_recipe_of_a_large_model_trains_a_step_and_answers_when_it_is_shrunk(name, pages, tmp_path):
    """The recipe is as it is, but for widths, data and devices."""
    torch.set_num_threads(1)
    file = str(ROOT / (name if name in SHAPES else f"variants/{name}.yaml"))
    kind = compose(file)["model"]["vision_encoder"]["class_path"].rpartition(".")[2]
    shrunk = [f"model.{key}" for key in [*TINY_ENCODER[kind], *TINY_DECODER]] + TINY_RUN + TINY_VIEWS.get(kind, [])
    data = [f"data.train=[{pages / 'train'}]", "data.val=null", f"data.val.pages.root={pages / 'val'}"]
    data += ["data.val.pages.limit=2", f"model.language_model.init_args.tokenizer={pages / 'tokenizer'}"]
    assert main(["fit", file, *shrunk, *data, f"run_dir={tmp_path}"]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["steps"] == 1
    assert 0 <= result["scores"]["val/pages/vqa_accuracy"] <= 1


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_run_of_an_ablation_is_a_recipe(name, capsys):
    assert main(["sweep", str(ROOT / name), "--list"]) == 0
    listed = capsys.readouterr().out
    runs = expand(ROOT / name).runs
    assert len(runs) > 1
    for run in runs:
        assert run.arm in listed
    same = {"seed", "name", "run_dir"}  # nothing that a check looks into
    recipes = [{key: value for key, value in run.recipe.items() if key not in same} for run in runs]
    for number, recipe in enumerate(recipes):
        if recipe not in recipes[:number]:
            check(runs[number].recipe)


@pytest.fixture(scope="module")
def trained(pages, tmp_path_factory) -> dict[str, list[str]]:
    """Recipe name -> the arguments that ``dslight fit`` was called with."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("runs")
    calls: dict[str, list[str]] = {}
    short = ["trainer.max_steps=2", "data.global_batch_size=8", "data.val_batch_size=8", "trainer.accelerator=cpu"]
    quiet = ["trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1"]
    data = [f"data.train=[{pages / 'train'}]", f"data.val.pages.root={pages / 'val'}"]
    for name in [*ENCODERS, *ARMS]:
        run = root / Path(name).stem
        calls[name] = [str(ROOT / name), *short, *quiet, *data, f"run_dir={run}"]
        if name in ARMS:
            encoder = root / ("encoder_low" if "own_encoder" in name else "encoder")
            weights = encoder / "weights" / "vision_encoder.safetensors"
            tokenizer = f"model.language_model.init_args.tokenizer={pages / 'tokenizer'}"
            calls[name] += [f"weights.vision_encoder={weights}", tokenizer]
        assert main(["fit", *calls[name]]) == 0
    return calls


def _result(call: list[str]) -> tuple[Path, dict[str, Any]]:
    run = next(Path(text.removeprefix("run_dir=")) for text in call if text.startswith("run_dir="))
    return run, json.loads((run / "result.json").read_text())


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_of_the_quickstart_trains_and_is_scored_again(name, trained, capsys):
    run, result = _result(trained[name])
    assert result["steps"] == 2
    scores = result["scores"]
    assert ("val/crop_accuracy" in scores) == (name == "quickstart/encoder.yaml")
    assert 0 <= scores["val/base_accuracy"] <= 1
    assert main(["validate", *trained[name]]) == 0
    assert json.loads((run / "scores.json").read_text())["scores"] == pytest.approx(scores)


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_of_the_quickstart_trains_is_scored_again_and_answers(name, trained, capsys, tmp_path):
    run, result = _result(trained[name])
    assert result["steps"] == 2
    assert result["context_length"] == (16 * 5 if name == "quickstart/sequence.yaml" else 16)
    assert result["visual_tokens"] == (16 if Path(name).stem in ("low", "low_own_encoder", "repeated") else 80)
    assert main(["validate", *trained[name]]) == 0
    assert json.loads((run / "scores.json").read_text())["scores"] == result["scores"]
    capsys.readouterr()
    Image.new("L", (32, 32), 255).save(tmp_path / "page.png")
    asked = ["--image", str(tmp_path / "page.png"), "--question", "B3", "--max-new-tokens", "2"]
    assert main(["predict", *trained[name], *asked]) == 0
    assert len(capsys.readouterr().out.strip().splitlines()[-1].split()) <= 2
