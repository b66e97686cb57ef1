"""From the files of every set to what ``dslight validate`` says of a model whose answers are known, by hand."""

import json

import pytest
import torch
import yaml
from copying import SAID
from spoken_rows import CASES, JUDGED
from test_hub import encoded, filled
from tiny_world import byte_tokenizer

from data_prep.eval.__main__ import main as convert
from data_prep.eval.sets import SETS
from dslight.cli import main
from dslight.metrics import ocrbench_v2
from dslight.recipe.build import build
from dslight.recipe.compose import compose

pyarrow = pytest.importorskip("pyarrow")
MVBENCH = [
    {"video": "5", "question": f"<<{said}>> ?", "candidates": ["run", "sit"], "answer": "sit"}
    for said in ("B. sit", "A")
]
SIZES = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}


def shards(name, rows, root):
    """The questions of a set's rows, by the program that reads its files."""
    files, images = root / name, root / "images"
    files.mkdir()
    if name == "mvbench":
        (files / "object_count.json").write_text(json.dumps(rows))
    else:
        import pyarrow.parquet

        level = {"mme": lambda i: 10 + 40 * (i // 2)}.get(name, lambda i: 10 + 20 * i)
        table = [{key: filled(value, level(i)) for key, value in row.items()} for i, row in enumerate(rows)]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), files / "test-00000-of-00001.parquet")
    out = root / "shards" / name
    convert([name, "--annotations", str(files), "--images", str(images), "--out", str(out), "--workers", "1"])
    return {"root": str(out), "benchmark": SETS[name].benchmark}


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """The folder of a run after ``dslight validate`` on all sets at once."""
    root = tmp_path_factory.mktemp("sets")
    for name in ("images/n1.jpg", *(f"pages/report_{n}.png" for n in (1, 2, 12)), "5/1.jpg", "v_1QIUV7WYKXg/1.jpg"):
        file = root / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(100))
    byte_tokenizer().save_pretrained(root / "tokenizer")
    rows = {name: made for name, (made, _) in {**CASES, **JUDGED}.items()} | {"mvbench": MVBENCH}
    val = {name: shards(name, made, root) for name, made in rows.items()}
    language_model = {"model_type": "llama", "vocab_size": 300, "hidden_size": 16, "intermediate_size": 16}
    language_model |= {"num_hidden_layers": 5, "num_attention_heads": 2, "max_position_embeddings": 4096}
    recipe = {
        "name": "copying",
        "model": {
            "vision_encoder": {"TimmEncoder": {"name": "vit_tiny_patch16_224", "model_args": SIZES}},
            "projector": {"MLPProjector": {}},
            "stacking": {"DeepStackL": {"crops": 4}},
            "language_model": {"copying.Copying": {"config": language_model, "tokenizer": str(root / "tokenizer")}},
        },
        "data": {"val": val, "views": {"GridViews": {"rows": 2, "cols": 2}}, "template": "bare"},
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
    }
    file, checkpoint = root / "recipe.yaml", root / "made.ckpt"
    file.write_text(yaml.safe_dump(recipe))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ocrbench_v2, "missing", lambda: "")  # none of what is asked here needs WordNet
        torch.save({"state_dict": build(compose(file), opens="validate").model.state_dict()}, checkpoint)
        assert main(["validate", str(file), "--ckpt", str(checkpoint), f"run_dir={root / 'run'}"]) == 0
    return root / "run"


@pytest.fixture(scope="module")
def scores(scored):
    return json.loads((scored / "scores.json").read_text())["scores"]


def test_every_set_is_asked_here():
    assert set(SETS) == {*CASES, *JUDGED, "mvbench"}


def test_what_the_model_said_is_what_its_questions_hold(scored):
    for name, (rows, _) in CASES.items():
        said = [
            json.loads(line)["prediction"] for line in (scored / "questions" / f"{name}.jsonl").read_text().splitlines()
        ]
        assert sorted(said) == sorted(SAID.findall(json.dumps(rows, ensure_ascii=False).replace(r"\\", "\\"))), name


@pytest.mark.parametrize("name", [*CASES, "mvbench"])
def test_a_set_scores_what_its_rules_give_by_hand(name, scores):
    expected = CASES[name][1] if name in CASES else {"accuracy": 1 / 2}
    found = {key: scores[f"val/{name}/{key}"] for key in expected}
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", JUDGED)
def test_a_set_that_is_judged_elsewhere_has_no_score_and_a_file_for_its_judge(name, scored, scores):
    assert not [key for key in scores if key.startswith(f"val/{name}/")]
    for file, part in JUDGED[name][1].items():
        assert part in (scored / "submissions" / name / file).read_text()
