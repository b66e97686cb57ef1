"""A mix: what its file asks for is what its folder holds, and a recipe can train on it as it is."""

import json
from pathlib import Path

import pytest
import yaml
from sources import PHOTO, chat, encode

from data_prep import mix as mix_program
from data_prep.mix import Mix, main
from dslight.data.datamodule import Source, make_plan, open_train
from dslight.data.sample import parse_sample
from dslight.data.shards import ShardReader, verify
from dslight.recipe.compose import compose

MIXES = Path(mix_program.__file__).parent / "mixes"
SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
PAPER = {  # Table 9 of the paper, in thousands; VQAv2 and OKVQA stand together in the file
    "sharegpt": 40, "llava_instruct": 158, "sharegpt4v": 39, "laion_gpt4v": 11, "vqav2_okvqa": 83 + 9, "gqa": 72,
    "ocr_vqa": 80, "chartqa": 7, "dvqa": 16, "docvqa": 10, "ai2d": 2, "synthdog_en": 20, "a_okvqa": 66, "refcoco": 48,
    "vg": 86,
}  # fmt: skip


def texts(root: Path) -> list[list[str]]:
    reader = ShardReader(root)
    return [
        [turn.text for turn in parse_sample(reader.locate(row)[1], reader.read(row)).turns]
        for row in range(len(reader))
    ]


@pytest.fixture
def raw(tmp_path) -> Path:
    """A small 665K file: its parts are told apart as in the real one."""
    root = tmp_path / "raw"
    names = ["coco/train2017/1.png", "gqa/images/1.png", "ocr_vqa/images/1.png", "textvqa/train_images/1.png"]
    for name in [*names, "vg/VG_100K/1.png", "vg/VG_100K_2/1.png"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encode(PHOTO))

    def entries(kind: str, count: int, question: str, image: str | None) -> list[dict[str, object]]:
        mark = "<image>\n" if image else ""
        extra = {"image": image} if image else {}
        return [
            {"id": f"{kind}{i}", **extra, "conversations": chat(f"{mark}{question} {i}", "A")} for i in range(count)
        ]

    region = "Please provide the bounding box coordinate of the region this sentence describes:"
    data = [
        *entries("text", 4, "Q", None),
        *entries("instruct", 16, "What is it?", names[0]),
        *entries("vqa", 9, f"Q\n{SHORT}", names[0]),
        *entries("gqa", 7, "Q", names[1]),
        *entries("ocr", 8, f"Q\n{SHORT}", names[2].replace("png", "jpg")),
        *entries("choice", 6, f"Q\n{LETTER}", names[0]),
        *entries("ref", 5, region, names[0]),
        *entries("caption", 3, "Describe it.", names[3]),
        *entries("vg", 8, region, "vg/VG_100K_2/1.png"),
    ]
    (root / "llava_v1_5_mix665k.json").write_text(json.dumps(data))
    for name in ("sharegpt4v", "laion_gpt4v", "chartqa", "dvqa", "docvqa", "ai2d", "synthdog_en"):
        (root / name).mkdir()
        (root / name / "1.png").write_bytes(encode(PHOTO))
        (root / f"{name}.json").write_text(json.dumps(entries(name, 4, "Q", "1.png")))
    return root


def described(path: Path, body: object) -> Path:
    path.write_text(yaml.safe_dump(body))
    return path


def shrunk(path: Path, name: str, raw: Path) -> Path:
    """A shipped mix with counts that the small files hold, images in folders, and nothing else changed."""
    body = yaml.safe_load((MIXES / name).read_text())
    for source in body["sources"].values():
        if "count" in source:
            source["count"] = 3
        prefixes = {spec.partition("=")[0] for spec in source.get("images", ())}
        source["images"] = [
            f"{prefix}={prefix}" if (raw / prefix / "1.png").exists() is False else prefix for prefix in prefixes
        ]
    body["rounding"] = 1
    return described(path, body)


def test_the_papers_mix_has_the_counts_and_prompts_of_its_table():
    mix = Mix.load(MIXES / "deepstack_748k.yaml")
    assert {name: source.count for name, source in mix.sources.items()} == {n: k * 1000 for n, k in PAPER.items()}
    assert sum(PAPER.values()) == 747
    short = {name for name, source in mix.sources.items() if source.prompt == (SHORT,)}
    assert short == {"vqav2_okvqa", "gqa", "ocr_vqa", "chartqa", "dvqa", "docvqa", "ai2d", "synthdog_en"}
    assert mix.sources["a_okvqa"].prompt == (LETTER,)
    assert [text.split()[1] for text in mix.sources["refcoco"].prompt] == ["a", "the"]
    assert len(mix.sources["refcoco"].prompt) == 2


def test_the_papers_mix_takes_every_source_from_where_it_says(raw, tmp_path, program):
    file = shrunk(tmp_path / "deepstack.yaml", "deepstack_748k.yaml", raw)
    done = program("mix", file, "--raw", raw, "--out", tmp_path / "mix", "--workers", 1)
    assert done.returncode == 0, done.stderr
    asked = {name: [turns[0] for turns in texts(tmp_path / "mix" / name)] for name in PAPER}
    assert all(len(questions) == 3 for questions in asked.values())
    assert all(SHORT in text for name in ("vqav2_okvqa", "gqa", "ocr_vqa", "chartqa") for text in asked[name])
    assert all(text.count(SHORT) == 1 for text in asked["vqav2_okvqa"])
    assert all("What is it?" in text for text in asked["llava_instruct"])
    assert all(LETTER in text for text in asked["a_okvqa"])
    assert all("bounding box" in text for text in asked["refcoco"])
    assert not any("<image>" in text for text in asked["sharegpt"])
    report = json.loads((tmp_path / "mix" / "gqa" / "report.json").read_text())
    assert report["changed"] == {"prompt added": 3}


def test_the_665k_mix_is_all_of_its_file(raw, tmp_path):
    file = shrunk(tmp_path / "llava.yaml", "llava_665k.yaml", raw)
    main([str(file), "--raw", str(raw), "--out", str(tmp_path / "mix"), "--workers", "1"])
    whole = json.loads((raw / "llava_v1_5_mix665k.json").read_text())
    got = texts(tmp_path / "mix")
    assert sorted(got) == sorted([turn["value"] for turn in entry["conversations"]] for entry in whole)
    assert list(verify(tmp_path / "mix")) == []
    keys = [ShardReader(tmp_path / "mix").locate(row)[1] for row in range(len(got))]
    assert len(set(keys)) == len(keys)
    assert {key.rpartition("-")[0] for key in keys} == {"coco", "gqa", "ocr_vqa", "textvqa", "vg", "sharegpt"}
    whole = (tmp_path / "mix" / "gqa" / "shard-000000.tar").read_bytes()
    (tmp_path / "mix" / "gqa" / "shard-000007.tar").write_bytes(whole)
    (tmp_path / "mix" / "coco" / ".shard-000001.tar.tmp").write_bytes(whole[:600])
    assert [str(problem) for problem in verify(tmp_path / "mix")] == [
        f"{name}: is not in the manifest, so no reader sees it"
        for name in ("coco/.shard-000001.tar.tmp", "gqa/shard-000007.tar")
    ]


def test_a_recipe_with_the_snippet_as_a_base_trains_on_the_mix_with_its_weights(raw, tmp_path):
    sources = {
        "a": {"json": "chartqa.json", "images": ["chartqa"], "weight": 2.5},
        "b": {"json": "dvqa.json", "images": "dvqa", "count": 3},
    }
    file = described(tmp_path / "small.yaml", {"sources": sources})
    main([str(file), "--raw", str(raw), "--out", str(tmp_path / "mix"), "--workers", "1"])
    recipe = described(tmp_path / "recipe.yaml", {"bases": ["mix/train.yaml"]})
    composed = compose(recipe)
    assert composed["data"]["train"] == [
        {"root": str(tmp_path / "mix" / "a"), "weight": 2.5},
        {"root": str(tmp_path / "mix" / "b"), "weight": 1.0},
    ]
    sources = [Source(**source) for source in composed["data"]["train"]]
    readers = open_train(sources, "full")
    assert [len(reader) for reader in readers] == [4, 3]
    assert make_plan(readers, sources, seed=0, global_batch=1).items == 10 + 3
    assert not (tmp_path / "mix" / "manifest.json").exists()  # one folder could not hold the weights


def test_what_is_drawn_depends_on_the_seed_alone(raw, tmp_path):
    drawn = []
    for number, seed in enumerate((0, 0, 1)):
        body = {
            "seed": seed,
            "sources": {"a": {"json": "llava_v1_5_mix665k.json", "where": {"image": "gqa"}, "count": 4}},
        }
        body["sources"]["a"]["images"] = ["."]
        file = described(tmp_path / f"{number}.yaml", body)
        main([str(file), "--raw", str(raw), "--out", str(tmp_path / str(number)), "--workers", "1"])
        drawn.append([turns[0] for turns in texts(tmp_path / str(number) / "a")])
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(len(set(some)) == 4 for some in drawn)


def test_one_source_after_another_and_a_fraction(raw, tmp_path, capsys):
    sources = {name: {"json": f"{name}.json", "images": [name]} for name in ("dvqa", "docvqa")}
    file = described(tmp_path / "small.yaml", {"sources": sources})
    options = [str(file), "--raw", str(raw), "--out", str(tmp_path / "mix"), "--workers", "1", "--fraction", "0.5"]
    main([*options, "--only", "docvqa"])
    assert "still to be made: dvqa" in capsys.readouterr().out
    assert not (tmp_path / "mix" / "train.yaml").exists()
    main(options)
    assert len(ShardReader(tmp_path / "mix")) == 4
    with pytest.raises(SystemExit, match=r"--only: .* has no vqa; it has docvqa, dvqa"):
        main([*options, "--only", "vqa"])


def test_an_entry_without_any_of_several_prompts_is_bad(raw, tmp_path):
    source = {"json": "dvqa.json", "images": ["dvqa"], "prompt": ["Read it", "Name it"]}
    file = described(tmp_path / "small.yaml", {"sources": {"a": source}})
    with pytest.raises(SystemExit, match=r"bad entries and counting \(prompt 1\)"):
        main([str(file), "--raw", str(raw), "--out", str(tmp_path / "mix"), "--workers", "1"])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"json": "dvqa.json", "cuont": 3}, r"sources\.a\.cuont: there is no such key; there are count"),
        ({"json": "dvqa.json", "where": {"imgae": ""}}, r"sources\.a\.where\.imgae: there is no such key"),
        ({"count": 3}, r"sources\.a\.json: missing"),
        ({"json": "dvqa.json", "format": "parquet"}, r"sources\.a\.format: 'parquet' is none of llava, messages"),
        ({"json": "dvqa.json", "count": 0}, r"sources\.a\.count: must be greater than 0, not 0"),
        ({"json": "gone.json"}, r"sources\.a\.json: there is no .*gone\.json"),
        ({"json": "dvqa.json", "images": ["gone.zip"]}, r"sources\.a\.images: '.*gone\.zip' names no folder"),
        ({"json": "dvqa.json", "images": ["dvqa"], "count": 50}, "has 4 entries; a needs 50 or more"),
    ],
)
def test_what_is_wrong_with_a_mix_is_named(raw, tmp_path, source, message):
    file = described(tmp_path / "small.yaml", {"sources": {"a": source}})
    with pytest.raises(SystemExit, match=message):
        main([str(file), "--raw", str(raw), "--out", str(tmp_path / "mix")])
