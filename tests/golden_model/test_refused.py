"""Stacks for layers that are not there vanish without a word in the authors' code; here they are an error."""

import pytest
import torch

from dslight.components import DeepStack, DeepStackL, DeepStackV, Stack

pytestmark = pytest.mark.golden_model


def test_stacks_without_a_layer_are_refused_by_name(refused_case):
    """On the meta device: before any weight is read."""
    part = "vision encoder" if refused_case.family == "deepstack_v" else "language model"
    last, depth = max(refused_case.wanted_sites), refused_case.depth
    message = rf"^stacking\.\w+: .* need {last + 1} layers; the {part} has {depth}$"
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        refused_case.compose()


@torch.no_grad()
def test_the_layers_that_are_there_give_the_authors_logits(refused_case, tmp_path, close):
    """Named one by one, with as many of the groups as there are layers."""
    sites = [site for site in refused_case.wanted_sites if site < refused_case.depth]
    sampler, tap = refused_case.sampler, refused_case.config["vision_select_layer"]
    if refused_case.family == "deepstack_v":
        scheduler = DeepStackV(num_stacks=len(sites), start=refused_case.start, sampler=sampler, tap=tap)
    elif refused_case.family == "deepstack_l":
        scheduler = DeepStackL(sites=sites, sampler=sampler, tap=tap)
    elif refused_case.family == "dummy_local":
        scheduler = DeepStackL(sites=sites, source="base", tap=tap)
    elif refused_case.family == "global_and_local" and len(sites) > 1:
        stacks = [Stack(sites[:1], "base", "identity"), Stack(sites[1:], "crops", sampler)]
        scheduler = DeepStack(stacks=stacks, base="zero", tap=tap)
    else:
        pytest.skip(f"{refused_case.family} without some of its stacks is no point on our axes")
    model = refused_case.load(tmp_path, scheduler)
    batch, theirs = refused_case.batch(model), refused_case.outputs
    real = batch.attention_mask.bool()
    close(model(batch)[real], theirs["logits"][real])
