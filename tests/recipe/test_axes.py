"""Every value of every axis of stacking, written in YAML: taken as it is meant, or refused at its key.

Built with ``dslight.recipe.build.check`` on the quickstart's parts: an encoder of 5 layers, 4 x 4 tokens and width 64,
a language model of 6 layers. ``dslight plan`` reads one recipe per scheduler through the command line.
"""

import json
from pathlib import Path

import pytest
import yaml
from said import messages

from dslight.cli import main
from dslight.components import ConditionedGate, GatedAdd
from dslight.recipe.build import check
from dslight.recipe.compose import compose, to_yaml
from dslight.recipe.errors import RecipeError

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart" / "deepstack_l.yaml"
AT = "model.stacking.init_args"
IMAGES = "dslight.data.images"
GRID = {"class_path": f"{IMAGES}.GridViews", "init_args": {"rows": 2, "cols": 2}}
PADDED = GRID | {"init_args": {"rows": 2, "cols": 2, "fit": "pad"}}
HD = {"class_path": f"{IMAGES}.HDViews"}
ANY = {"class_path": f"{IMAGES}.AnyResViews"}
SINGLE = {"class_path": f"{IMAGES}.SingleView"}


def recipe(kind, arguments, views, per_level=True, train=True):
    """The quickstart's recipe with this stacking (``arguments`` are YAML) and these views."""
    values = compose(QUICKSTART, [])
    del values["weights"]
    stacking = {"class_path": f"dslight.components.{kind}", "init_args": yaml.safe_load(arguments) or {}}
    values["model"] |= {"stacking": stacking}
    if per_level:
        values["model"]["projector"] = {
            "class_path": "dslight.components.MLPProjector", "init_args": {"per_level": True}
        }  # fmt: skip
    values["data"]["views"] = views
    if train and ("newline: true" in arguments or "operation" in arguments or kind == "DeepStackHD"):
        values["stage"]["train"]["stacking"] = {"lr": 1e-3}
    return values


TAKEN = {
    # key: (scheduler, arguments, views, sites, sites in the encoder, slots of an image, width of each level)
    "no stacks": ("DeepStack", "", SINGLE, (), (), 16, [64]),
    "stacks null": ("DeepStack", "stacks: null", SINGLE, (), (), 16, [64]),
    # fractions of depth: of 6 layers in the language model
    "fractions": (
        "DeepStack",
        "{tap: 0.5, stacks: [{sites: [0.5, 0.75], view: base, sampler: identity, tap: 1.0}]}",
        SINGLE,
        (3, 5),
        (),
        16,
        3 * [64],
    ),
    # view
    "view base": (
        "DeepStack",
        "stacks: [{sites: [1, 2], view: base, sampler: identity}]",
        SINGLE,
        (1, 2),
        (),
        16,
        3 * [64],
    ),
    "view crops": (
        "DeepStack",
        "stacks: [{sites: [1, 2, 3, 4], view: crops, sampler: 2d, tap: -2}]",
        GRID,
        (1, 2, 3, 4),
        (),
        16,
        5 * [64],
    ),
    "view fine": (
        "DeepStack",
        "{stacks: [{sites: [1, 2, 3, 4], view: fine}], sequence: tiles}",
        HD,
        (1, 2, 3, 4),
        (),
        80,
        5 * [64],
    ),
    # tap
    "tap final": ("DeepStack", "tap: final", SINGLE, (), (), 16, [64]),
    "tap number": ("DeepStack", "tap: -2", SINGLE, (), (), 16, [64]),
    "several taps": ("DeepStack", "tap: [1, 3, final]", SINGLE, (), (), 16, [192]),
    "tap of a stack": (
        "DeepStack",
        "{stacks: [{sites: [1], view: base, sampler: identity, tap: final}, "
        "{sites: [2], view: base, sampler: identity, tap: 2}]}",
        SINGLE,
        (1, 2),
        (),
        16,
        3 * [64],
    ),
    # sampler
    "sampler 1d": ("DeepStack", "stacks: [{sites: [0, 1, 2, 3], sampler: 1d}]", GRID, (0, 1, 2, 3), (), 16, 5 * [64]),
    "sampler block": (
        "DeepStack",
        "stacks: [{sites: [0, 1, 2, 3], sampler: block}]",
        GRID,
        (0, 1, 2, 3),
        (),
        16,
        5 * [64],
    ),
    "sampler patch_merge": ("DeepStack", "stacks: [{sites: [1], sampler: patch_merge}]", GRID, (1,), (), 16, [64, 256]),
    "sampler patch_merge of 3": (
        "DeepStack",
        "stacks: [{sites: [1], sampler: patch_merge, merge: 3}]",
        GRID | {"init_args": {"rows": 3, "cols": 3}},
        (1,),
        (),
        16,
        [64, 576],
    ),
    "sampler pool": ("DeepStack", "stacks: [{sites: [1, 3], sampler: pool}]", GRID, (1, 3), (), 16, 3 * [64]),
    "sampler corner": (
        "DeepStack",
        "{stacks: [{sites: [0, 1, 2, 3], view: base, sampler: corner}], base: zero}",
        SINGLE,
        (0, 1, 2, 3),
        (),
        4,
        4 * [64],
    ),
    # target
    "encoder": ("DeepStack", "encoder_stacks: [{sites: [0, 1, 2, 3]}]", GRID, (), (0, 1, 2, 3), 16, [64]),
    "both": (
        "DeepStack",
        "{stacks: [{sites: [1, 2, 3, 4]}], encoder_stacks: [{sites: [1, 1, 2, 2], tap: 0}]}",
        GRID,
        (1, 2, 3, 4),
        (1, 1, 2, 2),
        16,
        5 * [64],
    ),
    # sites
    "sites after": ("DeepStack", "stacks: [{sites: [0, 1, 2, 3], after: true}]", GRID, (1, 2, 3, 4), (), 16, 5 * [64]),
    "sites repeated": ("DeepStack", "stacks: [{sites: [5, 5, 0, 5]}]", GRID, (5, 5, 0, 5), (), 16, 5 * [64]),
    # base
    "base zero": ("DeepStack", "{stacks: [{sites: [0, 1, 2, 3]}], base: zero}", GRID, (0, 1, 2, 3), (), 16, 4 * [64]),
    # operation
    "GatedAdd": (
        "DeepStack",
        "{stacks: [{sites: [1, 2, 3, 4]}], "
        "operation: {class_path: dslight.components.GatedAdd, init_args: {init: 0.0}}}",
        GRID,
        (1, 2, 3, 4),
        (),
        16,
        5 * [64],
    ),
    "GatedAdd tanh": (
        "DeepStackL",
        "{operation: {class_path: dslight.components.GatedAdd, init_args: {init: 1, activation: tanh}}}",
        GRID,
        (1, 2, 3, 4),
        (),
        16,
        5 * [64],
    ),
    "ConditionedGate": (
        "DeepStackTaps",
        "{taps: [1, 2], operation: {class_path: dslight.components.ConditionedGate}}",
        SINGLE,
        (1, 2),
        (),
        16,
        3 * [64],
    ),
    # sequence
    "sequence crops": ("DeepStack", "sequence: crops", GRID, (), (), 64, [64]),
    "sequence tiles": ("DeepStack", "sequence: tiles", GRID, (), (), 80, [64]),
    "order": ("DeepStack", "{sequence: tiles, order: 2d}", GRID, (), (), 80, [64]),
    "newline": ("DeepStack", "{sequence: tiles, newline: true}", GRID, (), (), 88, [64]),
    "newline in the sequence only": (
        "DeepStack",
        "{sequence: tiles, newline: true, newline_in_stacks: false, "
        "stacks: [{sites: [1], view: base, sampler: identity}]}",
        GRID,
        (1,),
        (),
        88,
        2 * [64],
    ),
    "unpad": ("DeepStack", "{sequence: tiles, newline: true, unpad: true}", PADDED, (), (), 16 + 4 * 9, [64]),
    "fill_to": ("DeepStack", "{sequence: tiles, fill_to: 6}", GRID, (), (), 112, [64]),
    "position": ("DeepStack", "{position: 0.5, stacks: [{sites: [1, 2, 3, 4]}]}", GRID, (1, 2, 3, 4), (), 16, 5 * [64]),
    # the named points
    "LowResolution": ("LowResolution", "", SINGLE, (), (), 16, [64]),
    "LowResolution of taps": ("LowResolution", "tap: [-3, -2]", SINGLE, (), (), 16, [128]),
    "DeepStackL": (
        "DeepStackL",
        "{num_stacks: 4, start: 0, interval: 1, sampler: 2d}",
        GRID,
        (0, 1, 2, 3),
        (),
        16,
        5 * [64],
    ),
    "DeepStackL at sites": ("DeepStackL", "sites: [4, 2, 0, 0]", GRID, (4, 2, 0, 0), (), 16, 5 * [64]),
    "DeepStackL of the base": ("DeepStackL", "{source: base, num_stacks: 2}", SINGLE, (1, 2), (), 16, 3 * [64]),
    "DeepStackV": ("DeepStackV", "{start: 1, tap: -1}", GRID, (), (1, 2, 3, 4), 16, [64]),
    "DeepStackHD": ("DeepStackHD", "", HD, (1, 2, 3, 4), (), 88, 5 * [64]),
    "DeepStackTaps": ("DeepStackTaps", "{taps: [1, 2, 4], tap: -2}", SINGLE, (1, 2, 3), (), 16, 4 * [64]),
    "DeepStackTaps alone": (
        "DeepStackTaps",
        "{taps: [1, 2], sites: [0, 3], base: zero}",
        SINGLE,
        (0, 3),
        (),
        16,
        2 * [64],
    ),
    "SequenceConcat": ("SequenceConcat", "", GRID, (), (), 80, [64]),
    "SequenceConcat alone": ("SequenceConcat", "{base: false, sampler: 1d}", GRID, (), (), 64, [64]),
    "LLaVA-NeXT": ("SequenceConcat", "{newline: true, unpad: true, tap: -2}", ANY, (), (), 16 + 4 * 9, [64]),
    "ChannelConcat": ("ChannelConcat", "", GRID, (), (), 16, [320]),
    "ChannelConcat pooled": ("ChannelConcat", "sampler: pool", GRID, (), (), 16, [128]),
}

# a picture twice as wide as high in a grid of 2 x 2: half of its rows are padding
WIDE = (20, 40)


@pytest.mark.parametrize("name", TAKEN)
def test_every_value_of_every_axis_is_taken_as_it_is_meant(name):
    kind, arguments, views, sites, inside, slots, widths = TAKEN[name]
    experiment = check(recipe(kind, arguments, views))
    stacking, encoder = experiment.model.stacking, experiment.encoder
    assert stacking.sites == sites
    assert stacking.encoder_sites == inside
    assert stacking.widths(encoder) == widths
    assert experiment.model.projector.in_widths == tuple(widths)
    assert experiment.slots(experiment.largest_grid, WIDE) == slots
    assert all(parameter.is_meta for parameter in experiment.model.parameters())


def test_operations_come_with_their_arguments():
    for name, kind in (("GatedAdd", GatedAdd), ("GatedAdd tanh", GatedAdd), ("ConditionedGate", ConditionedGate)):
        scheduler, arguments, views, sites, *_ = TAKEN[name]
        operation = check(recipe(scheduler, arguments, views)).model.stacking.operation
        assert isinstance(operation, kind)
        assert (operation.width, operation.stacks) == (64, len(sites))
        if name == "GatedAdd tanh":
            assert (operation.activation, operation.starts_closed) == ("tanh", False)


GATE = "operation: {class_path: dslight.components.%s, init_args: {%s}}"
CROPS = "stacks: [{sites: [1, 2, 3, 4]%s}]"
TAKES = "it takes sites, view, sampler, tap, merge, after"
REFUSED = {
    # names and types
    CROPS % ", samplr: 2d": f"stacks.0.samplr: there is no such argument; did you mean sampler?; {TAKES}",
    "stacks: [{sites: [1]}, {sitez: [1]}]": f"stacks.1.sitez: there is no such argument; did you mean sites?; {TAKES}",
    "stacks: [{view: crops}]": "stacks.0.sites: missing; Stack needs it",
    "stacks: {sites: [1]}": "stacks: expected a list or null, got {'sites': [1]}",
    "stacks: [[1, 2]]": "stacks.0: expected a mapping with sites, view, sampler, tap, merge, after, got [1, 2]",
    "stacks: [{sites: 1}]": "stacks.0.sites: expected a list, got 1",
    "stacks: [{sites: [1, two]}]": "stacks.0.sites.1: expected a whole number or a number, got 'two'",
    CROPS % ", view: crop": "stacks.0.view: expected base, crops or fine, got 'crop'; did you mean crops?",
    CROPS % ", sampler: 2dd": "stacks.0.sampler: expected 2d, block, 1d, patch_merge, pool, identity or corner, "
    "got '2dd'; did you mean 2d?",
    CROPS % ", tap: finale": "stacks.0.tap: expected a whole number, a number, final or null, got 'finale'; "
    "did you mean final?",
    CROPS % ", merge: two": "stacks.0.merge: expected a whole number, got 'two'",
    CROPS % ", after: perhaps": "stacks.0.after: expected true or false, got 'perhaps'",
    "encoder_stacks: [{sites: [1], vew: crops}]": "encoder_stacks.0.vew: there is no such argument; "
    f"did you mean view?; {TAKES}",
    "tap: [1, last]": "tap.1: expected a whole number, a number or final, got 'last'",
    "base: zeros": "base: expected fill or zero, got 'zeros'; did you mean zero?",
    "sequence: tile": "sequence: expected base, crops or tiles, got 'tile'; did you mean tiles?",
    "newlines: true": "newlines: there is no such argument; did you mean newline?; it takes stacks, encoder_stacks, "
    "sequence, base, tap, order, newline, newline_in_stacks, unpad, fill_to, operation, position, most, thumbnail",
    "unpad: sometimes": "unpad: expected true or false, got 'sometimes'",
    "fill_to: all": "fill_to: expected a whole number, got 'all'",
    GATE % ("GatedAdd", "inti: 0.0"): "operation.init_args.inti: there is no such argument; did you mean init?; "
    "it takes init, activation",
    GATE % ("GatedAdd", "width: 3"): "operation.init_args.width: there is no such argument; it takes init, activation",
    GATE % ("GatedAdd", "activation: sigmoid"): "operation.init_args.activation: expected none or tanh, got 'sigmoid'",
    GATE % ("ConditionedGate", "init: much"): "operation.init_args.init: expected a number, got 'much'",
    GATE % ("GatedAd", ""): "operation.class_path: dslight.components has no GatedAd; did you mean GatedAdd?",
    GATE % ("MLPProjector", ""): "operation.class_path: dslight.components.MLPProjector is no Operation; there are "
    "dslight.components.ConditionedGate, dslight.components.GatedAdd",
    # combinations
    "stacks: [{sites: []}]": "stacks.0.sites: empty; name at least one layer",
    "stacks: [{sites: [-1]}]": "stacks.0.sites: layers count from 0, got -1",
    CROPS % ", sampler: identity": "stacks.0.sampler: identity samples a view by itself; choose 2d for crops, or "
    "view: base",
    CROPS % ", view: base": "stacks.0.sampler: 2d samples crops; a view by itself takes identity or corner",
    "{%s, sequence: tiles}" % (CROPS % ""): "stacks.0.view: the crops stand in the sequence already; choose fine, or "
    "sequence: base",
    "base: zero": "base: zero leaves the language model without visual tokens; add stacks, or set base: fill",
    "{sequence: tiles, unpad: true}": "unpad: leaves out parts of the mosaic, which only newline: true lays; "
    "set it too",
    GATE % ("GatedAdd", ""): "operation: acts on stacks into the language model, and there are none",
    # the other parts
    CROPS % ", tap: 9": "stacks.0.tap: tap 9 is beyond the encoder's depth: it has 5 layers, so taps 0 to 5",
    "stacks: [{sites: [3, 4, 5, 6]}]": "stacks: 4 stacks at layers 3, 4, 5, 6 need 7 layers; the language model has 6",
    "stacks: [{sites: [5], view: base, sampler: identity, after: true}]": "stacks: 1 stack at layer 6 need 7 layers; "
    "the language model has 6",
    "encoder_stacks: [{sites: [5]}]": "encoder_stacks: 1 stack at layer 5 need 6 layers; the vision encoder has 5",
    "{encoder_stacks: [{sites: [0, 1, 2, 4]}], tap: 2}": "tap: features are read at layer 2, before the last stack is "
    "added at layer 4",
    "{stacks: [{sites: [1], view: base, sampler: corner, merge: 3}], base: zero}": "stacks.0.merge: corner takes "
    "blocks of 3 x 3; the encoder's map of 4 x 4 tokens does not divide",
    "stacks: [{sites: [1, 2]}]": "stacks.0.sites: 2 stacks cannot take the 4 crops that the views may cut",
    "stacks: [{sites: [1], sampler: patch_merge, merge: 3}]": "stacks.0.sampler: patch_merge needs 3 x 3 crops of "
    "every image, but the views may cut others; choose GridViews",
    "{stacks: [{sites: [1, 2, 3, 4], view: fine}], sequence: tiles}": "stacks: needs 2 x 2 fine crops of every view, "
    "but the views have none; choose HDViews",
    "{sequence: tiles, newline: true, unpad: true}": "unpad: would leave out parts of images that are squashed, not "
    "padded; set unpad: false, or the views' fit: pad",
    "{sequence: tiles, fill_to: 3}": "fill_to: 3 maps cannot take the 4 crops that the views may cut",
}  # fmt: skip


@pytest.mark.parametrize("arguments", REFUSED)
def test_what_cannot_be_is_refused_at_its_key(arguments):
    with pytest.raises(RecipeError) as caught:
        check(recipe("DeepStack", arguments, GRID))
    assert str(caught.value) == f"{AT}.{REFUSED[arguments]}"


def test_the_rest_of_the_recipe_is_blamed_where_it_is_at_fault():
    """Crops that are not there, widths that one projector cannot take, gates that never open."""
    cases = (
        (
            ("DeepStack", CROPS % "", SINGLE),
            "model.stacking: DeepStack looks at high-resolution crops, but the views have none: "
            "choose views with a grid",
        ),
        (
            ("DeepStack", "stacks: [{sites: [1], sampler: patch_merge}]", GRID, False),
            "model.projector.MLPProjector.per_level: levels of widths 64, 256 cannot share one net; set "
            "per_level: true",
        ),
        (
            ("DeepStackL", GATE % ("GatedAdd", "init: 0.0"), GRID, True, False),
            "stage.train: the stacking's gates start closed, so nothing would ever come through; give stacking a "
            "learning rate, or its gates an init other than 0",
        ),
    )
    for arguments, message in cases:
        with pytest.raises(RecipeError) as caught:
            check(recipe(*arguments))
        assert str(caught.value) == message


# --- the command line -----------------------------------------------------------------------------------------------

PLANNED = {
    # scheduler: (arguments, views, views of an image, positions of an image, layers of the language model with stacks)
    "LowResolution": ("", SINGLE, 1, 16, []),
    "DeepStack": ("{stacks: [{sites: [2], view: base, sampler: identity, tap: 2}], tap: -2}", SINGLE, 1, 16, [2]),
    "DeepStackL": ("start: 0", GRID, 5, 16, [0, 1, 2, 3]),
    "DeepStackV": ("start: 1", GRID, 5, 16, []),
    "DeepStackHD": ("", HD, 25, 88, [1, 2, 3, 4]),
    "DeepStackTaps": ("taps: [1, 3]", SINGLE, 1, 16, [1, 2]),
    "SequenceConcat": ("newline: true", GRID, 5, 88, []),
    "ChannelConcat": ("", GRID, 5, 16, []),
}


@pytest.mark.parametrize("kind", PLANNED)
def test_dslight_plan_reads_every_scheduler(kind, tmp_path, capsys):
    arguments, views, seen, positions, layers = PLANNED[kind]
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe(kind, arguments, views)))
    assert main(["plan", str(tmp_path / "recipe.yaml"), "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["visual_tokens"] == 16 * seen
    assert planned["context_length"] == positions
    assert main(["plan", str(tmp_path / "recipe.yaml"), "--no-cost"]) == 0
    printed = capsys.readouterr().out
    assert [layer for layer in range(6) if f"language_model layer {layer}     + stack" in printed] == layers


def test_dslight_plan_refuses_at_the_key(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe("DeepStack", CROPS % ", samplr: 2d", GRID)))
    assert main(["plan", str(tmp_path / "recipe.yaml")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert messages(captured.err) == (
        f"dslight: {AT}.stacks.0.samplr: there is no such argument; did you mean sampler?; {TAKES}\n"
    )


def test_a_point_makes_a_fraction_of_a_number_in_yaml_and_on_the_command_line():
    """``1`` is a layer and ``1.0`` the whole depth, and both stay what they are in the recipe of the run."""
    taps = {}
    for tap in ("1", "1.0", "0.5"):
        given = compose(QUICKSTART, ["weights=null", "model.stacking.DeepStackTaps.taps=[1]",
                                     f"model.stacking.DeepStackTaps.tap={tap}"])  # fmt: skip
        given["data"]["views"] = SINGLE
        stacking = check(given).model.stacking
        taps[tap] = (stacking.base_taps, yaml.safe_load(to_yaml(given))["model"]["stacking"]["init_args"]["tap"])
    assert taps == {"1": ([1], 1), "1.0": ([-1], 1.0), "0.5": ([0.5], 0.5)}
    assert [type(written) for _, written in taps.values()] == [int, float, float]
