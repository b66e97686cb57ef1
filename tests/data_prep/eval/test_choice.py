"""Sets of choices: what stands in the authors' files stands in the shards, the options as lines."""

import pytest

from dslight.metrics.benchmarks import BENCHMARKS, SHORT
from dslight.metrics.functional.multiple_choice import parse_options

CHOICES = {"choice_a": "One", "choice_b": "Two", "choice_c": "Three", "choice_d": "Four"}


def test_seed_asks_about_images_and_about_the_middle_frames_of_videos(put, save, convert):
    """The examples of SEED-Bench's DATASET.md; the frame's name is the one of LLaVA-1.5's extraction script."""
    image = {
        "answer": "A",
        **CHOICES,
        "data_id": "1454426_2591111986",
        "data_type": "image",
        "question": "How many towels are in the image?",
        "question_id": "101669",
        "question_type_id": 5,
    }
    video = {
        "answer": "B",
        **dict(zip(CHOICES, ("fill saucepan", "move saucepan", "lift saucepan", "pour\nsaucepan"), strict=True)),
        "data_id": "P03/P03_24.MP4",
        "data_type": "video",
        "question": "Please anticipate what action will occur following the end of this video.",
        "question_id": "v1962",
        "question_type_id": 11,
        "segment": [648.0, 658.0],
    }
    put(
        "SEED-Bench.json",
        {"questions": [image, video], "question_type": {"Instances Counting": 5, "Action Prediction": 11}},
    )
    first, second = save("SEED-Bench-image/1454426_2591111986"), save("SEED-Bench-video-image/11_v1962.png")
    shards = convert("seed")
    assert shards.images == {"101669": (first,), "v1962": (second,)}
    asked = shards.questions["101669"]
    assert asked.text == "How many towels are in the image?\nA. One\nB. Two\nC. Three\nD. Four"
    assert (asked.references, asked.type) == (("A",), "image")
    assert shards.questions["v1962"].type == "video"
    assert parse_options(shards.questions["v1962"].text)["D"] == "pour saucepan"
    assert shards.facts["v1962"]["dimension"] == "Action Prediction"


MMMU_FIELDS = {f"image_{n}": None for n in range(1, 8)} | {
    "explanation": "",
    "img_type": "['Tables']",
    "topic_difficulty": "Medium",
    "subfield": "Managerial Accounting",
}


@pytest.fixture
def mmmu(save):
    """The columns of MMMU's parquet files; images are structs of bytes and path."""

    def image(name):
        return {"bytes": save(f"elsewhere/{name}"), "path": name}

    return [
        MMMU_FIELDS
        | {
            "id": "validation_Accounting_1",
            "question": "<image 1> Baxter Company has the table <image 1>. What is the rate?",
            "options": "['$6', '$7', '$8', '$9']",
            "answer": "B",
            "question_type": "multiple-choice",
            "image_1": image("validation_Accounting_1_1.png"),
        },
        MMMU_FIELDS
        | {
            "id": "validation_Art_Theory_3",
            "question": "Which is by Klee?",
            "options": "['<image 2>', '<image 1>']",
            "answer": "A",
            "question_type": "multiple-choice",
            "image_1": image("a.png"),
            "image_2": image("b.png"),
        },
        MMMU_FIELDS
        | {
            "id": "validation_Math_9",
            "question": "Find x: <image 1>",
            "options": "[]",
            "answer": "['2.5', '5/2']",
            "question_type": "open",
            "image_1": image("c.png"),
        },
        MMMU_FIELDS
        | {
            "id": "validation_Public_Health_2",
            "question": "Not marked at all",
            "options": ["yes", "no"],
            "answer": "?",
            "question_type": "multiple-choice",
            "image_1": image("d.png"),
        },
    ]


def check_mmmu(shards, rows):
    data = {key: {n: row[f"image_{n}"]["bytes"] for n in (1, 2) if row[f"image_{n}"]} for key, row in rows.items()}
    accounting = shards.questions["validation_Accounting_1"]
    assert accounting.text == (
        "<image> Baxter Company has the table <image 1>. What is the rate?\nA. $6\nB. $7\nC. $8\nD. $9"
    )
    assert (accounting.references, accounting.type) == (("B",), "Business")
    assert shards.images["validation_Accounting_1"] == (data["validation_Accounting_1"][1],)
    art = shards.questions["validation_Art_Theory_3"]
    assert (art.text, art.type) == ("Which is by Klee?\nA. <image>\nB. <image>", "Art and Design")
    of_art = data["validation_Art_Theory_3"]
    assert shards.images["validation_Art_Theory_3"] == (of_art[2], of_art[1])  # in the order of the marks
    maths = shards.questions["validation_Math_9"]
    assert (maths.text, maths.references, maths.type) == ("Find x: <image>", ("2.5", "5/2"), "Science")
    assert maths.extra == {"subject": "Math", "question_type": "open"}
    assert (accounting.suffix, maths.suffix) == (None, SHORT)
    assert accounting.extra["options"] == ["$6", "$7", "$8", "$9"]


def test_mmmu_from_parquet_puts_each_image_where_it_is_marked_first(mmmu, convert, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    fields = {name: image if name.startswith("image_") else pyarrow.string() for name in mmmu[0]}
    rows = [{**row, "options": str(row["options"])} for row in mmmu[:3]]
    for i, row in enumerate(rows):  # one file per subject
        path = tmp_path / "annotations" / str(i) / "validation-00000-of-00001.parquet"
        path.parent.mkdir(parents=True)
        parquet.write_table(pyarrow.Table.from_pylist([row], pyarrow.schema(fields)), path)
        (path.parent / "test-00000-of-00001.parquet").write_bytes(b"of another split")
    shards = convert("mmmu")
    assert len(shards.questions) == 3
    check_mmmu(shards, {row["id"]: row for row in mmmu})
    assert shards.report["images"] == 4


def test_mmmu_from_json_reads_its_images_by_name_and_misses_no_hidden_answer(mmmu, put, convert, tmp_path):
    rows = [
        {key: value["path"] if key.startswith("image_") and value else value for key, value in row.items()}
        for row in mmmu
    ]
    path = put("mmmu.json", rows)
    arguments = ("mmmu", "--images", tmp_path / "images" / "elsewhere")
    shards = convert(*arguments, "--max-bad", "0.25", annotations=[path])
    check_mmmu(shards, {row["id"]: row for row in mmmu})
    assert [(line["id"], line["reason"]) for line in shards.quarantine] == [
        ("validation_Public_Health_2", "answer-missing")
    ]
    hidden = convert(*arguments, "--split", "test", annotations=[path]).questions["validation_Public_Health_2"]
    assert (hidden.text, hidden.references) == ("Not marked at all\nA. yes\nB. no", ())


def test_every_domain_of_mmmu_is_a_type_of_its_metric(mmmu, put, convert):
    rows = [{**mmmu[3], "id": f"validation_{subject}_1", "answer": "A"} for subject in MMMU_SUBJECTS]
    rows = [{**row, "image_1": None} for row in rows]
    types = {question.type for question in convert("mmmu", annotations=[put("m.json", rows)]).questions.values()}
    assert types == set(BENCHMARKS["mmmu"].build().types)


# of the dataset card
MMMU_SUBJECTS = [
    "Accounting",
    "Agriculture",
    "Architecture_and_Engineering",
    "Art",
    "Art_Theory",
    "Basic_Medical_Science",
    "Biology",
    "Chemistry",
    "Clinical_Medicine",
    "Computer_Science",
    "Design",
    "Diagnostics_and_Laboratory_Medicine",
    "Economics",
    "Electronics",
    "Energy_and_Power",
    "Finance",
    "Geography",
    "History",
    "Literature",
    "Manage",
    "Marketing",
    "Materials",
    "Math",
    "Mechanical_Engineering",
    "Music",
    "Pharmacy",
    "Physics",
    "Psychology",
    "Public_Health",
    "Sociology",
]


def test_scienceqa_asks_with_and_without_images_and_hints(put, save, convert):
    """The fields of data/scienceqa/problems.json and pid_splits.json."""

    def problem(question, choices, answer, hint="", image=None, split="test"):
        return {
            "question": question,
            "choices": choices,
            "answer": answer,
            "hint": hint,
            "image": image,
            "task": "closed choice",
            "grade": "grade4",
            "subject": "natural science",
            "topic": "biology",
            "category": "x",
            "skill": "y",
            "lecture": "long",
            "solution": "reason",
            "split": split,
        }

    put(
        "problems.json",
        {
            "4": problem("Which is a mammal?", ["frog", "cat"], 1, "See the picture.", "image.png"),
            "7": problem("What is 'to be'?", ["verb", "noun", "name"], 0),
            "9": problem("of training", ["a", "b"], 0, split="train"),
        },
    )
    put("pid_splits.json", {"train": ["9"], "val": [], "test": ["4", "7"], "minitest": ["4"]})
    data = save("test/4/image.png")
    shards = convert("scienceqa")
    assert {key: (q.text, q.references, q.type) for key, q in shards.questions.items()} == {
        "4": ("Context: See the picture.\nWhich is a mammal?\nA. frog\nB. cat", ("B",), "image"),
        "7": ("What is 'to be'?\nA. verb\nB. noun\nC. name", ("A",), "text"),
    }
    assert shards.images == {"4": (data,), "7": ()}
    assert shards.report["text_only"] == 1
    with pytest.raises(SystemExit, match="--split: 'dev' is none of train, val, test, minitest"):
        convert("scienceqa", "--split", "dev")
