"""A path is looked for on this disk, a hub name is not."""

import pytest

from dslight.components.checkpoint_names import check_checkpoint


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "~/nothing/here", "a/b/c", "models/clip/"])
def test_a_missing_folder_is_called_one(name):
    with pytest.raises(ValueError, match="pretrained: there is no folder"):
        check_checkpoint(name)


def test_a_name_below_a_folder_that_is_here_means_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(ValueError, match="there is no folder models/clip"):
        check_checkpoint("models/clip")
    check_checkpoint("openai/clip")


def test_a_folder_without_a_configuration_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json"):
        check_checkpoint(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    check_checkpoint(str(tmp_path))


@pytest.mark.parametrize("name", ["gpt2", "openai/clip-vit-large-patch14-336"])
def test_hub_names_are_left_to_the_hub(name):
    check_checkpoint(name)
