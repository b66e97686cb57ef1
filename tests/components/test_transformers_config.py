"""A number that no model can have is refused by its own key, before transformers makes anything of it."""

import pytest

from dslight.components.transformers_config import check_numbers, configuration


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "llama", "num_hidden_layers": -1}, "config.num_hidden_layers: -1; at least 1"),
        ({"model_type": "llama", "num_hidden_layers": 0}, "config.num_hidden_layers: 0; at least 1"),
        ({"model_type": "gpt2", "n_layer": -2}, "config.n_layer: -2; at least 1"),
        ({"model_type": "mixtral", "num_local_experts": -2}, "config.num_local_experts: -2; at least 0"),
    ],
)
def test_a_number_of_layers_or_experts_that_cannot_be_is_refused_by_its_key(config, said):
    with pytest.raises(ValueError, match=f"^{said}$"):
        configuration(config)


def test_layers_that_are_counted_from_the_end_may_be_negative():
    check_numbers({"vision_feature_layer": -2, "text_config": {"num_nextn_predict_layers": 0}}, "config")
