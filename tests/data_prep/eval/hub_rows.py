"""Rows of evaluation sets with the columns that they have on the Hub (invented content); ``PICTURE`` is an image."""

PICTURE = "an image"
CELLS = ("a.png", "b.png")


def ten(*answers):
    return list((answers * 10)[:10])


def voted(*answers):
    return [{"answer": one, "answer_confidence": "yes", "answer_id": i} for i, one in enumerate(ten(*answers), 1)]


LETTERS = {"A": "red", "B": "blue", "C": "green", "D": "none of these"}

HUB: dict[str, list[dict]] = {
    "vqav2": [
        {
            "question_id": 1,
            "image_id": 7,
            "question": "Whose?",
            "answers": voted("the man's"),
            "answer_type": "other",
            "question_type": "whose",
            "multiple_choice_answer": "man's",
            "image": PICTURE,
        },
        {
            "question_id": 2,
            "image_id": 7,
            "question": "How many?",
            "answers": voted("Two."),
            "answer_type": "number",
            "question_type": "how many",
            "multiple_choice_answer": "2",
            "image": PICTURE,
        },
    ],
    "gqa": [
        {
            "id": "201",
            "imageId": "n1",
            "question": "Is it red?",
            "answer": "yes",
            "isBalanced": True,
            "types": {"structural": "verify", "semantic": "attr", "detailed": "x"},
        },
        {
            "id": "202",
            "imageId": "n1",
            "question": "What is it?",
            "answer": "cup",
            "isBalanced": True,
            "types": {"structural": "query", "semantic": "obj", "detailed": "x"},
        },
    ],
    "textvqa": [
        {
            "question_id": 34602,
            "image_id": "a",
            "question": "what brand?",
            "answers": ten("Mom's, Inc."),
            "ocr_tokens": ["NOKIA"],
            "set_name": "val",
            "image": PICTURE,
        },
    ],
    "docvqa": [
        {
            "questionId": "49153",
            "question": "What?",
            "question_types": ["form"],
            "docId": 1,
            "answers": ["$ 0.28 ", "28"],
            "data_split": "val",
            "image": PICTURE,
        },
    ],
    "infovqa": [
        {
            "questionId": "98313",
            "question": "Which?",
            "answers": ["Lack of work"],
            "answer_type": ["single span"],
            "operation/reasoning": ["counting"],
            "image_url": "",
            "image": PICTURE,
        },
    ],
    "multidocvqa": [
        {
            "questionId": "24581",
            "question": "Who?",
            "doc_id": "nkbl0226",
            "answers": "['Dr. No']",
            "page_ids": "['p1', 'p2']",
            "answer_page_idx": "1",
            "image_1": PICTURE,
            "image_2": PICTURE,
            "image_3": None,
        },
    ],
    "chartqa": [
        {"type": "human_test", "question": "How much?", "answer": "14.5%", "image": PICTURE},
        {"type": "augmented_test", "question": "Which?", "answer": "Blue", "image": PICTURE},
    ],
    "pope": [
        {
            "id": "0",
            "question_id": "1",
            "question": "Is there a dog?",
            "answer": "yes",
            "image_source": "COCO_1",
            "category": "random",
            "image": PICTURE,
        },
        {
            "id": "1",
            "question_id": "1",
            "question": "Is there a cat?",
            "answer": "no",
            "image_source": "COCO_1",
            "category": "popular",
            "image": PICTURE,
        },
        {
            "id": "2",
            "question_id": "2",
            "question": "Is there a cup?",
            "answer": "yes",
            "image_source": "COCO_1",
            "category": "popular",
            "image": PICTURE,
        },
        {
            "id": "3",
            "question_id": "1",
            "question": "Is there a cow?",
            "answer": "yes",
            "image_source": "COCO_1",
            "category": "adversarial",
            "image": PICTURE,
        },
    ],
    "mmvet": [
        {
            "question_id": "v1_0",
            "question": "What is x?",
            "answer": "-1<AND>-5",
            "image_source": "x",
            "capability": "ocr,math",
            "image": PICTURE,
        },
    ],
    "seed": [
        {
            "question_id": "101669",
            "question": "Which?",
            "answer": "C",
            "data_id": "1_2",
            "data_type": "image",
            "question_type_id": 1,
            "segment": None,
            "image": [PICTURE],
            **{f"choice_{c.lower()}": text for c, text in LETTERS.items()},
        },
    ],
    "mmmu": [
        {
            "id": "validation_Art_1",
            "question": "Look at <image 1>",
            "options": "['red', 'blue']",
            "answer": "B",
            "question_type": "multiple-choice",
            "subfield": "x",
            "image_1": PICTURE,
            "image_2": None,
        },
        {
            "id": "validation_Math_2",
            "question": "How long?",
            "options": "[]",
            "answer": "2.5",
            "question_type": "open",
            "subfield": "x",
            "image_1": PICTURE,
            "image_2": None,
        },
    ],
    "mmmu_pro": [
        {
            "id": "validation_Art_1",
            "question": "Look at <image 1>",
            "options": str([f"o{i}" for i in range(10)]),
            "answer": "J",
            "subject": "Art",
            "image_1": PICTURE,
            "image_2": None,
        },
    ],
    "scienceqa": [
        {"question": "Which?", "choices": ["a", "b"], "answer": 1, "hint": "Look.", "subject": "x", "image": PICTURE},
        {"question": "Which?", "choices": ["a", "b"], "answer": 0, "hint": "", "subject": "x", "image": None},
    ],
    "mme": [
        {
            "question_id": "existence/b.png",
            "category": "existence",
            "question": "Dog? Please answer yes or no.",
            "answer": "Yes",
            "image": PICTURE,
        },
        {
            "question_id": "existence/b.png",
            "category": "existence",
            "question": "Cat? Please answer yes or no.",
            "answer": "No",
            "image": PICTURE,
        },
    ],
    "mmbench": [
        {
            "index": 20241,
            "question": "Which?",
            "hint": "nan",
            "answer": "A",
            "A": "x",
            "B": "y",
            "C": "nan",
            "D": "nan",
            "category": "c",
            "l2-category": "d",
            "split": "dev",
            "image": PICTURE,
        },
        {
            "index": 1020241,
            "question": "Which?",
            "hint": "nan",
            "answer": "B",
            "A": "y",
            "B": "x",
            "C": "nan",
            "D": "nan",
            "category": "c",
            "l2-category": "d",
            "split": "dev",
            "image": PICTURE,
        },
    ],
    "ai2d": [{"question": "Which?", "options": ["a", "b", "c", "d"], "answer": "2", "image": PICTURE}],
    "ocrbench": [
        {
            "dataset": "IIIT5K",
            "question": "what is written?",
            "question_type": "Regular Text Recognition",
            "answer": ["CENTRE"],
            "image": PICTURE,
        },
        {
            "dataset": "HME100k",
            "question": "what formula?",
            "answer": ["\\frac { A } { B }"],
            "image": PICTURE,
            "question_type": "Handwritten Mathematical Expression Recognition",
        },
    ],
    "vizwiz": [
        {
            "question_id": "VizWiz_val_00000000.jpg",
            "question": "What is it?",
            "answers": ten("Coca-Cola's can"),
            "category": "other",
            "image": PICTURE,
        },
    ],
    "nextqa": [
        {
            "video": "5",
            "frame_count": 9,
            "width": 8,
            "height": 8,
            "question": "what",
            "answer": 4,
            "qid": 0,
            "type": "CW",
            **{f"a{i}": text for i, text in enumerate(("run", "sit", "eat", "cry", "fall"))},
        },
    ],
    "egoschema": [
        {
            "question_idx": "0",
            "question": "what",
            "video_idx": "5",
            "answer": "3",
            "option": [f"{c}. {text}" for c, text in zip("ABCDE", ("run", "sit", "eat", "cry", "fall"), strict=True)],
        },
    ],
    "activitynetqa": [
        {
            "video_name": "1QIUV7WYKXg",
            "question": "is it red",
            "question_id": "v_1QIUV7WYKXg_3",
            "answer": "no",
            "type": "3",
        },
    ],
    "msvdqa": [{"video_name": "5.avi", "question": "what?", "question_id": 37092, "answer": "chop"}],
    "mmstar": [
        {
            "index": 0,
            "question": "Which?\nOptions: A: red, B: blue, C: green, D: none",
            "answer": "C",
            "category": "c",
            "l2_category": "d",
            "image": PICTURE,
        },
    ],
    "realworldqa": [
        {
            "question": "Which?\n\nA. red\nB. blue\nPlease answer directly with only the letter.",
            "answer": "B",
            "image": PICTURE,
        },
        {
            "question": "How many?\nPlease answer directly with a single word or number.",
            "answer": "3",
            "image": PICTURE,
        },
    ],
    "blink": [
        {
            "idx": "val_Art_1",
            "sub_task": "Art",
            "question": "Which?",
            "choices": ["the second", "the third"],
            "answer": "(B)",
            "prompt": "",
            "image_1": PICTURE,
            "image_2": PICTURE,
            "image_3": None,
        },
    ],
    "hrbench": [
        {
            "index": 0,
            "question": "Which?",
            "answer": "D",
            "category": "single",
            "cycle_category": "0",
            **LETTERS,
            "image": PICTURE,
        },
    ],
    "vstar": [
        {
            "question_id": "3",
            "text": "Which?\n(A) red\n(B) blue\nAnswer with the letter of the option directly.",
            "label": "A",
            "category": "direct_attributes",
            "image": PICTURE,
        },
    ],
    "cvbench": [
        {
            "source": "COCO",
            "idx": 0,
            "type": "2D",
            "task": "Count",
            "question": "How many?",
            "choices": ["3", "2"],
            "answer": "(A)",
            "prompt": "",
            "image": PICTURE,
        },
    ],
    "countbench": [{"question": "How many headsets?", "number": 10, "text": "ten headsets", "image": PICTURE}],
    "hallusionbench": [
        {
            "category": "VD",
            "subcategory": "figure",
            "visual_input": "1",
            "set_id": "0",
            "figure_id": f,
            "question_id": q,
            "question": f"Is it {f}{q}?",
            "gt_answer": answer,
            "image": PICTURE,
        }
        for f, q, answer in (("0", "0", "1"), ("0", "1", "0"), ("1", "0", "0"))
    ],
    "mathvista": [
        {
            "pid": "1",
            "question": "Which?",
            "query": "Hint: answer.\nQuestion: Which?\nChoices:\n(A) red\n(B) blue",
            "choices": ["red", "blue"],
            "answer": "blue",
            "question_type": "multi_choice",
            "answer_type": "text",
            "precision": None,
            "decoded_image": PICTURE,
            "image": "images/1.jpg",
        },
        {
            "pid": "2",
            "question": "How long?",
            "query": "Hint: answer.\nQuestion: How long?",
            "choices": None,
            "answer": "1.2",
            "question_type": "free_form",
            "answer_type": "float",
            "precision": 1.0,
            "decoded_image": PICTURE,
            "image": "images/2.jpg",
        },
    ],
    "chartqapro": [
        {
            "Question": ["Which?"],
            "Answer": ["['2019', 'Blue']"],
            "Question Type": "Factoid",
            "Year": ["YES", "NO"],
            "Paragraph": "",
            "image": PICTURE,
        },
        {
            "Question": ["Is it?", "And now?"],
            "Answer": ["yes", "12.5%"],
            "Question Type": "Conversational",
            "Year": ["NO", "NO"],
            "Paragraph": "Once.",
            "image": PICTURE,
        },
    ],
    "refcoco": [
        {
            "question_id": "9",
            "question": "?",
            "answer": ["the left dog", "dog"],
            "bbox": [1.0, 1.0, 5.0, 4.0],
            "iscrowd": 0,
            "file_name": "x.jpg",
            "image": PICTURE,
        },
    ],
    "screenspot": [
        {
            "file_name": "x.png",
            "bbox": [0.1, 0.2, 0.3, 0.4],
            "instruction": "close it",
            "data_type": "icon",
            "data_source": "ios",
            "image": PICTURE,
        },
    ],
    "videomme": [
        {
            "video_id": "001",
            "duration": "short",
            "domain": "Knowledge",
            "sub_category": "x",
            "videoID": "5",
            "question_id": "001-1",
            "task_type": "Counting",
            "question": "what",
            "answer": "C",
            "options": ["A. run", "B. sit", "C. eat", "D. cry"],
        },
    ],
    "longvideobench": [
        {
            "video_id": "5",
            "id": "5_0",
            "video_path": "5.mp4",
            "subtitle_path": "5_en.json",
            "correct_choice": 1,
            "question": "Which?",
            "option0": "run",
            "option1": "sit",
            "option2": "N/A",
            "option3": "N/A",
            "option4": "N/A",
            "duration": 12.5,
            "duration_group": 15,
            "question_category": "S2E",
            "topic_category": "x",
            "starting_timestamp_for_subtitles": 0.0,
        },
    ],
    "ocrbench_v2": [
        {
            "id": number,
            "dataset_name": "made up",
            "question": "What?",
            "type": kind,
            "answers": answers,
            "eval": rule,
            "bbox": None,
            "bbox_list": None,
            "content": None,
            "image": PICTURE,
        }
        for number, (kind, answers, rule) in enumerate(
            (
                ("text recognition en", ["STOP"], "None"),
                ("text grounding en", ["10", "20", "300", "400"], "None"),
                ("text counting en", ["8"], "regression"),
                ("cognition VQA cn", ["停车"], "None"),
            )
        )
    ],
    "mlvu": [
        {
            "video_name": "5.mp4",
            "duration": 240.0,
            "question": f"What?\n(A) run\n(B) sit\n(C) eat\n(D) {word}",
            "candidates": ["run", "sit", "eat", word],
            "answer": "D",
            "task_type": kind,
            "question_id": f"{kind}_0",
        }
        for kind, word in (("ego", "go"), ("needleQA", "cry"))
    ],
    "mmlongbench_doc": [
        {
            "doc_id": "report.pdf",
            "doc_type": "Research report",
            "question": "?",
            "answer": answer,
            "evidence_pages": pages,
            "evidence_sources": "['Chart']",
            "answer_format": form,
        }
        for answer, pages, form in (
            ("8", "[2]", "Int"),
            ("12.5%", "[1]", "Float"),
            ("Less", "[1, 12]", "Str"),
            ("['a', 'b']", "[2]", "List"),
            ("Not answerable", "[]", "None"),
        )
    ],
    "charxiv": [
        {
            "category": "cs",
            "year": "20",
            "original_figure_path": "a.jpg",
            "original_id": "1",
            "figure_path": "images/7.jpg",
            "num_subplots": 2,
            "subplot_row": 1,
            "subplot_col": 2,
            "subplot_loc": None,
            **{f"descriptive_q{n}": q for n, q in enumerate((7, 13, 11, 18), 1)},
            **{f"descriptive_a{n}": a for n, a in enumerate(("60", "x, y", "Yes", "1 by 2"), 1)},
            "reasoning_q": "How much?",
            "reasoning_a": "0.25",
            "reasoning_q_source": 1,
            "reasoning_a_type": 4,
            "image": PICTURE,
        },
    ],
    "llava_bench": [
        {
            "question_id": number,
            "question": "What is this?",
            "category": kind,
            "caption": "A dog at the sea.",
            "gpt_answer": "It is a dog.",
            "image_id": "001.jpg",
            "image": PICTURE,
        }
        for number, kind in enumerate(("conv", "detail"))
    ],
    "choice": [{"index": 3, "question": "Which?", "answer": "blue", **LETTERS, "E": "black", "image": PICTURE}],
    "yes_no": [{"index": 3, "question": "Is it?", "answer": "No", "image": PICTURE}],
    "short": [{"index": 3, "question": "What?", "answer": "['a dog', 'dog']", "image": PICTURE}],
}
HUB["mmlongbench_doc_evidence"] = HUB["mmlongbench_doc"]
