"""A plan says which files it did without."""

from pathlib import Path

from dslight.recipe.compose import compose
from dslight.run.unseen import unseen

ROOT = Path(__file__).parents[2]


def test_every_file_that_is_not_here_is_named_and_none_that_is(recipe, tmp_path, monkeypatch):
    assert unseen(compose(recipe)) == []
    monkeypatch.chdir(tmp_path)
    said = unseen(
        compose(
            ROOT / "recipes" / "quickstart" / "deepstack_l.yaml",
            [
                "weights.projector=other.safetensors",
                "model.language_model.init_args.pretrained=folder",
                'data.train=[{root: mine}, "s3://bucket/shards"]',
            ],
        )
    )
    assert said == [
        "not looked at: weights.vision_encoder (runs/quickstart/encoders/shared/weights/vision_encoder.safetensors is "
        "not here)",
        "not looked at: weights.projector (other.safetensors is not here)",
        "not looked at: model.language_model.init_args.tokenizer (runs/quickstart/data/tokenizer: not on this disk)",
        "not looked at: model.language_model.init_args.pretrained (folder: counted as its config says)",
        "not looked at: data.train.0 (no shards at mine)",
        "not looked at: data.val.pages (no shards at runs/quickstart/data/val)",
    ]


def test_parts_within_a_list_are_looked_at_too():
    encoders = [{"class_path": "x.Y", "init_args": {"pretrained": "nowhere/a/b"}}]
    model = {"vision_encoder": {"class_path": "dslight.components.FusedEncoder", "init_args": {"encoders": encoders}}}
    (said,) = unseen({"model": model})
    assert "model.vision_encoder.init_args.encoders.0.init_args.pretrained (nowhere/a/b: not on this disk)" in said
