"""Sets of short answers: what stands in the authors' files stands in the shards."""

import json
import zipfile

import pytest


def vqa_answers(*answers):
    return [
        {"answer": answer, "answer_confidence": "yes", "answer_id": i}
        for i, answer in enumerate((answers * 10)[:10], 1)
    ]


@pytest.fixture
def vqav2(put):
    """The fields that visualqa.org/download lists under "Input Questions Format" and "Annotation Format"."""
    head = {"info": {}, "license": {}, "data_type": "mscoco"}
    asked = [
        {"image_id": 42, "question": "What sport is this?", "question_id": 42000},
        {"image_id": 42, "question": "Is it day?", "question_id": 42001},
        {"image_id": 262148, "question": "How many people?", "question_id": 262148000},
    ]
    kinds = [("what sport is", "other", "tennis"), ("is it", "yes/no", "yes"), ("how many", "number", "2")]
    answered = [
        {
            "question_type": question_type,
            "multiple_choice_answer": answer,
            "answers": vqa_answers(answer, answer, "unknown"),
            "image_id": item["image_id"],
            "answer_type": answer_type,
            "question_id": item["question_id"],
        }
        for item, (question_type, answer_type, answer) in zip(asked, kinds, strict=True)
    ]
    questions = {**head, "task_type": "Open-Ended", "data_subtype": "val2014", "questions": asked}
    annotations = {**head, "data_subtype": "val2014", "annotations": answered}
    put("v2_OpenEnded_mscoco_val2014_questions.json", questions)
    put("v2_mscoco_val2014_annotations.json", annotations)
    return questions, annotations


def test_vqav2_keeps_ten_answers_and_stores_an_image_once(vqav2, save, convert, capsys):
    first = save("val2014/COCO_val2014_000000000042.jpg")
    second = save("val2014/COCO_val2014_000000262148.jpg")
    shards = convert("vqav2")
    assert [sample.images for sample in shards.samples] == [(first,), (second,)]
    assert [len(sample.questions) for sample in shards.samples] == [2, 1]
    questions = shards.questions
    assert list(questions) == ["42000", "42001", "262148000"]
    assert questions["42000"].text == "What sport is this?"
    assert questions["42000"].references == ("tennis", "tennis", "unknown") * 3 + ("tennis",)
    assert [question.type for question in questions.values()] == ["other", "yes/no", "number"]
    assert shards.facts["262148000"]["question_type"] == "how many"
    assert (shards.report["asked"], shards.report["questions"], shards.report["images"]) == (3, 3, 2)
    assert "3 of 3 questions; validate with:" in capsys.readouterr().out


def test_vqav2_reads_the_zip_of_images_and_takes_the_first_questions(vqav2, save, convert, tmp_path):
    data = save("val2014/COCO_val2014_000000000042.jpg")
    path = tmp_path / "val2014.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(
            tmp_path / "images/val2014/COCO_val2014_000000000042.jpg", "val2014/COCO_val2014_000000000042.jpg"
        )
    (tmp_path / "images/val2014/COCO_val2014_000000000042.jpg").unlink()
    shards = convert("vqav2", "--images", path, "--limit", 1)
    assert list(shards.questions) == ["42000"]
    assert shards.images["42000"] == (data,)


def test_vqav2_test_dev_has_no_answers_and_says_so(vqav2, put, save, convert, capsys):
    questions, _ = vqav2
    path = put("v2_OpenEnded_mscoco_test-dev2015_questions.json", {**questions, "data_subtype": "test-dev2015"})
    data = save("test2015/COCO_test2015_000000000042.jpg")
    save("test2015/COCO_test2015_000000262148.jpg")
    shards = convert("vqav2", annotations=[path])
    assert shards.images["42001"] == (data,)
    assert [question.references for question in shards.questions.values()] == [()] * 3
    assert [question.official_id for question in shards.questions.values()] == [42000, 42001, 262148000]
    assert shards.report["changed"] == {"answers hidden": 2}  # records
    assert "answers are hidden: dslight validate writes the model's own" in capsys.readouterr().out


def test_a_missing_image_stops_the_program_unless_it_is_allowed(vqav2, save, convert, capsys):
    save("val2014/COCO_val2014_000000000042.jpg")
    with pytest.raises(SystemExit, match=r"image-missing.*--max-bad 0\.0 allows 0 of 2"):
        convert("vqav2")
    shards = convert("vqav2", "--max-bad", "0.5")
    assert list(shards.questions) == ["42000", "42001"]
    assert shards.report["bad"] == {"image-missing": 1}
    assert (shards.report["asked"], shards.report["questions"]) == (3, 2)
    assert "COCO_val2014_000000262148.jpg" in shards.quarantine[0]["message"]
    assert "1 questions are missing" in capsys.readouterr().out


def test_a_question_without_annotation_is_quarantined_alone(vqav2, put, save, convert):
    _, annotations = vqav2
    put("v2_mscoco_val2014_annotations.json", {**annotations, "annotations": annotations["annotations"][1:]})
    save("val2014/COCO_val2014_000000000042.jpg")
    save("val2014/COCO_val2014_000000262148.jpg")
    shards = convert("vqav2", "--max-bad", "0.5")
    assert list(shards.questions) == ["42001", "262148000"]
    assert shards.report["bad"] == {"answer-missing": 1}
    assert shards.quarantine[0]["message"].startswith("question 42000: no answer in v2_mscoco_val2014_annotations.json")


def test_a_question_that_stands_twice_is_refused(vqav2, put, convert):
    questions, _ = vqav2
    put(
        "v2_OpenEnded_mscoco_val2014_questions.json",
        {**questions, "questions": questions["questions"] + questions["questions"][:1]},
    )
    with pytest.raises(SystemExit, match="question '42000': stands twice"):
        convert("vqav2")


def test_gqa_tells_open_questions_from_binary_ones(put, save, convert):
    """The fields of questions1.2.zip, as GQA's download page describes them."""

    def item(question, answer, structural):
        return {
            "semantic": [],
            "entailed": [],
            "equivalent": ["201307251"],
            "question": question,
            "imageId": "n161313",
            "isBalanced": True,
            "groups": {"global": None, "local": "13-tree"},
            "answer": answer,
            "semanticStr": "",
            "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
            "types": {"detailed": "x", "semantic": "attr", "structural": structural},
            "fullAnswer": f"{answer}.",
        }

    content = {
        "201307251": item("Is it overcast?", "no", "verify"),
        "201640614": item("Who is wearing the dress?", "woman", "query"),
    }
    put("testdev_balanced_questions.json", content)
    put("testdev_all_questions.json", {})
    data = save("n161313.jpg")
    shards = convert("gqa")
    assert len(shards.samples) == 1
    assert shards.images["201640614"] == (data,)
    assert {key: (q.text, q.references, q.type) for key, q in shards.questions.items()} == {
        "201307251": ("Is it overcast?", ("no",), "binary"),
        "201640614": ("Who is wearing the dress?", ("woman",), "open"),
    }


@pytest.fixture
def textvqa(put, save):
    """The fields of TextVQA_0.5.1_val.json and TextVQA_Rosetta_OCR_v0.2_val.json (textvqa.org/dataset)."""
    save("train_images/003a8ae2ef43b901.jpg")
    item = {
        "question": "what is the brand of this camera?",
        "image_id": "003a8ae2ef43b901",
        "image_classes": ["Camera"],
        "flickr_original_url": "",
        "flickr_300k_url": "",
        "image_width": 1024,
        "image_height": 664,
        "answers": ["nous les gosses", "dakota", *["dakota digital"] * 8],
        "question_tokens": ["what"],
        "question_id": 34602,
        "set_name": "val",
    }
    put("TextVQA_0.5.1_val.json", {"dataset_type": "val", "dataset_version": "0.5.1", "data": [item]})
    tokens = {"image_id": "003a8ae2ef43b901", "ocr_tokens": ["DAKOTA", "DIGITAL", "Single-Use"], "ocr_info": []}
    return put("TextVQA_Rosetta_OCR_v0.2_val.json", {"dataset_name": "textvqa", "data": [tokens]})


def test_textvqa_is_asked_without_ocr_tokens_or_with_them(textvqa, convert):
    plain = convert("textvqa").questions["34602"]
    assert plain.text == "what is the brand of this camera?"
    assert plain.references == ("nous les gosses", "dakota", *["dakota digital"] * 8)
    with_tokens = convert("textvqa", "--ocr", textvqa).questions["34602"]
    assert with_tokens.text == ("what is the brand of this camera?\nReference OCR token: DAKOTA, DIGITAL, Single-Use")


def test_ocr_tokens_are_refused_for_other_sets(textvqa, convert, put):
    put("mm-vet.json", {})
    with pytest.raises(SystemExit, match="--ocr: OCR tokens belong to textvqa, not to mmvet"):
        convert("mmvet", "--ocr", textvqa)


def test_docvqa_and_its_test_split_without_answers(put, save, convert):
    """The fields of the RRC's task 1 files."""
    item = {
        "questionId": 49153,
        "question": "What is the 'actual' value per 1000, during the year 1975?",
        "question_types": ["figure/diagram"],
        "image": "documents/pybv0228_81.png",
        "docId": 14465,
        "ucsf_document_id": "pybv0228",
        "ucsf_document_page_no": "81",
        "answers": ["0.28"],
        "data_split": "val",
    }
    head = {"dataset_name": "SP-DocVQA", "dataset_version": "1.0"}
    put("val_v1.0_withQT.json", {**head, "dataset_split": "val", "data": [item]})
    unanswered = {key: value for key, value in item.items() if key not in ("answers", "question_types")}
    put("test_v1.0.json", {**head, "dataset_split": "test", "data": [{**unanswered, "questionId": 57344}]})
    data = save("documents/pybv0228_81.png")
    shards = convert("docvqa")
    assert shards.images["49153"] == (data,)
    assert shards.questions["49153"].references == ("0.28",)
    assert shards.facts["49153"]["question_types"] == ["figure/diagram"]
    hidden = convert("docvqa", "--split", "test")
    assert hidden.questions["57344"].references == ()
    assert hidden.report["changed"] == {"answers hidden": 1}


def test_infovqa_names_its_images_locally(put, save, convert):
    """The fields of the RRC's task 3 files."""
    item = {
        "questionId": 98313,
        "question": "Which social platform has heavy female audience?",
        "image_local_name": "37313.jpeg",
        "image_url": "https://example.org/37313.jpeg",
        "ocr_output_file": "37313.json",
        "answers": ["pinterest", "Pinterest"],
        "answer_type": ["single span"],
        "evidence": ["text"],
        "operation/reasoning": [],
        "data_split": "val",
    }
    put("infographicsVQA_val_v1.0_withQT.json", {"dataset_name": "infographicVQA", "data": [item]})
    data = save("37313.jpeg")
    shards = convert("infovqa")
    assert shards.images["98313"] == (data,)
    assert shards.questions["98313"].references == ("pinterest", "Pinterest")


def test_chartqa_numbers_the_questions_of_its_two_files(put, save, convert, tmp_path):
    """The fields of the ChartQA Dataset folder; only these three."""
    put(
        "test/test_human.json",
        [
            {"imgname": "41699051005347.png", "query": "How many food item is shown in the bar graph?", "label": "14"},
            {"imgname": "41699051005347.png", "query": "What is the difference?", "label": "0.57"},
        ],
    )
    put("test/test_augmented.json", [{"imgname": "8127.png", "query": "What was the share?", "label": "3.1"}])
    put("val/val_human.json", [{"imgname": "gone.png", "query": "?", "label": "1"}])
    put("val/val_augmented.json", [])
    first, second = save("test/png/41699051005347.png"), save("test/png/8127.png")
    shards = convert("chartqa", "--images", tmp_path / "images" / "test")
    assert shards.images == {"human-0": (first,), "human-1": (first,), "augmented-0": (second,)}
    assert {key: (q.references, q.type) for key, q in shards.questions.items()} == {
        "human-0": (("14",), "human"),
        "human-1": (("0.57",), "human"),
        "augmented-0": (("3.1",), "augmented"),
    }


def test_pope_tells_equal_ids_of_its_three_files_apart(put, save, convert):
    """One object per line in files that end in .json, as in POPE's output/coco."""
    data = save("COCO_val2014_000000310196.jpg")
    for subset, thing, label in (
        ("random", "snowboard", "yes"),
        ("popular", "dining table", "no"),
        ("adversarial", "car", "no"),
    ):
        lines = [
            {
                "question_id": 1,
                "image": "COCO_val2014_000000310196.jpg",
                "text": f"Is there a {thing} in the image?",
                "label": label,
            }
        ]
        put(f"coco_pope_{subset}.json", "".join(json.dumps(line) + "\n" for line in lines))
    shards = convert("pope")
    assert len(shards.samples) == 1
    assert shards.images["popular-1"] == (data,)
    assert {key: (q.text, q.references, q.type) for key, q in shards.questions.items()} == {
        "random-1": ("Is there a snowboard in the image?", ("yes",), "random"),
        "popular-1": ("Is there a dining table in the image?", ("no",), "popular"),
        "adversarial-1": ("Is there a car in the image?", ("no",), "adversarial"),
    }
    assert {question.official_id for question in shards.questions.values()} == {1}


def test_mmvet_keeps_its_capabilities(put, save, convert):
    """A dict by id, as in mm-vet.zip."""
    item = {
        "imagename": "v1_0.png",
        "question": "What is x in the equation?",
        "answer": "-1<AND>-5",
        "imagesource": "https://example.org",
        "capability": ["ocr", "math"],
    }
    put("mm-vet.json", {"v1_0": item})
    data = save("images/v1_0.png")
    shards = convert("mmvet")
    assert shards.images["v1_0"] == (data,)
    assert shards.questions["v1_0"].references == ("-1<AND>-5",)
    assert shards.facts["v1_0"]["capability"] == ["ocr", "math"]


def test_files_of_another_set_are_refused_by_name(put, convert):
    put("mm-vet.json", {"v1_0": {"text": "?"}})
    with pytest.raises(SystemExit, match=r"mm-vet\.json: not in the layout of mmvet: KeyError: 'question'"):
        convert("mmvet")
    with pytest.raises(SystemExit, match=r"no file \*question\*\.json of split 'testdev_balanced'"):
        convert("gqa")
    with pytest.raises(SystemExit, match="none of the files of pope is there"):
        convert("pope")
    put("a/val_v1.0.json", {"data": []})
    put("b/val_v1.0_withQT.json", {"data": []})
    with pytest.raises(SystemExit, match=r"several files are the questions: val_v1\.0\.json, val_v1\.0_withQT\.json"):
        convert("docvqa")
