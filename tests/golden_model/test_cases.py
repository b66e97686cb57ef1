"""The folder itself: every case is understood and claimed by a test, and the folder is no empty one."""

import pytest

pytestmark = pytest.mark.golden_model

CLAIMED = {
    "logits": "test_logits.py",
    "truncated": "test_logits.py",
    "refused": "test_refused.py",
    "gradients": "test_gradients.py",
    "generated": "test_generation.py",
    "images": "test_images_to_logits.py",
    "preprocessing": "tests/data/test_images.py",
    "table": "tests/data/test_images.py",
}
"""What is compared -> the test that does it."""

LEAST = {"baseline", "deepstack_l", "deepstack_v", "deepstack_l_hd"}
ALL = LEAST | {
    "baseline_scaledown",
    "dummy_local",
    "only_global_features",
    "global_and_local",
    "string_woglobal",
    "string_withglobal",
}


def test_the_case_is_understood(any_case):
    assert any_case.kind in CLAIMED, f"{any_case.name}: no test knows what to do with kind {any_case.kind!r}"


def test_the_folder_holds_the_families(cases, committed):
    """All of them in this repository; elsewhere at least the four models and the three results."""
    models = [case for case in cases if "kind" not in case.config]
    kinds, families = {case.kind for case in cases}, {case.family for case in models}
    assert families >= (ALL if committed else LEAST)
    assert kinds >= (set(CLAIMED) if committed else {"logits", "gradients", "generated"})
    if committed:
        assert {case.config["sampling"] for case in models} == {"2d", "1d", "grid"}
        assert {case.config["architecture"] for case in models} == {"deepstack_llama", "deepstack_phi"}
        assert any(case.config.get("vision_post_encoder_layers") for case in models)
