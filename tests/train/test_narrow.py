"""A share of a part trains: a range of its layers, and names by pattern."""

import pytest

from dslight.cli import main
from dslight.train.narrow import narrow
from dslight.train.optim import Stage


def trains(part) -> set[str]:
    return {name for name, parameter in part.named_parameters() if parameter.requires_grad}


def layers_of(names) -> set[str]:
    return {name.split(".layers.")[1].split(".")[0] if ".layers." in name else name for name in names}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [((-1, None), {"3"}), ((None, 2), {"0", "1"}), ((1, -1), {"1", "2"}), ((0, 4), {"0", "1", "2", "3"})],
)
def test_a_range_of_layers_trains_and_nothing_outside_of_layers(tiny_lm, layers, expected):
    lm = tiny_lm()
    narrow(lm, layers)
    assert layers_of(trains(lm)) == expected


def test_patterns_say_what_trains_and_what_does_not(tiny_lm):
    lm = tiny_lm()
    everything = trains(lm)
    narrow(lm, only=["*.self_attn.*", "*.norm.weight"], frozen=["*.k_proj.*"])
    expected = {n for n in everything if (".self_attn." in n and "k_proj" not in n) or n.endswith(".norm.weight")}
    assert trains(lm) == expected
    lm.requires_grad_(True)
    narrow(lm, layers=(2, None), only=["*.mlp.*"])
    assert trains(lm) == {n for n in everything if ".mlp." in n and (".2." in n or ".3." in n)}


def test_a_tied_tensor_goes_by_any_of_its_names(tiny_lm):
    lm = tiny_lm(tie_word_embeddings=True)
    narrow(lm, frozen=["model.lm_head.weight"])
    assert "model.model.embed_tokens.weight" not in trains(lm)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"layers": (4, None)}, r"layers: \[4, null\]: that is none of them; HFCausalLM has 4 layers"),
        ({"layers": (-9, None)}, r"layers: \[-9, null\]: -9 is beyond them; HFCausalLM has 4 layers"),
        ({"only": ["*.attention.*"]}, r"only: '\*\.attention\.\*' matches no parameter; there are model\."),
        ({"frozen": ["*"]}, "frozen: leaves nothing of HFCausalLM to train; leave the part out to freeze it"),
    ],
)
def test_what_means_nothing_is_refused_by_its_key(tiny_lm, how, said):
    with pytest.raises(ValueError, match=f"train.language_model.{said}"):
        Stage.of({"language_model": {"lr": 1e-3, **how}}).freeze({"language_model": tiny_lm()})


def test_adapters_and_a_share_exclude_each_other():
    with pytest.raises(ValueError, match=r"train\.language_model\.lora: adapters train alone"):
        Stage.of({"language_model": {"lr": 1e-3, "lora": {}, "layers": (0, 1)}})


def test_a_recipe_says_so_and_the_rest_stays_as_it_was(fit, recipe, tmp_path, capsys):
    run = fit(
        tmp_path / "run", "stage.train.language_model.layers=[-1, null]", "stage.train.vision_encoder.only=['*norm*']"
    )
    table = (run / "optimizer.txt").read_text()
    rows = [line.split() for line in table.splitlines() if line.startswith("language_model")]
    assert sum(int(row[2]) for row in rows) == 9  # of one layer of a Llama: 7 matrices, 2 norms
    capsys.readouterr()
    call = ["fit", str(recipe), f"run_dir={tmp_path / 'other'}", "stage.train.language_model.layers=[9, null]"]
    assert main(call) == 1
    assert "stage.train.language_model.layers: [9, null]: 9 is beyond them" in capsys.readouterr().err
