"""Every combination that cannot be is refused by a sentence that begins with the argument and says what to change."""

import pytest

from dslight.components import (
    ChannelConcat,
    DeepStack,
    DeepStackHD,
    DeepStackL,
    DeepStackTaps,
    DeepStackV,
    FusedEncoder,
    GatedAdd,
    LowResolution,
    SequenceConcat,
    Stack,
)

FOUR = [0, 1, 2, 3]


def refusal(call, *args, **kwargs):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the whole message is compared
        call(*args, **kwargs)
    return str(caught.value)


ARGUMENTS = [
    # a stack by itself
    (lambda: DeepStack([Stack([1]), Stack([])]), "stacks.1.sites: empty; name at least one layer"),
    (lambda: DeepStack([Stack([2, -1])]), "stacks.0.sites: layers count from 0, got -1"),
    (lambda: DeepStack([Stack([1], merge=0)]), "stacks.0.merge: must be at least 1, got 0"),
    (
        lambda: DeepStack([Stack([1], "base")]),
        "stacks.0.sampler: 2d samples crops; a view by itself takes identity or corner",
    ),
    (
        lambda: DeepStack([Stack([1], "base", "pool")]),
        "stacks.0.sampler: pool samples crops; a view by itself takes identity or corner",
    ),
    (
        lambda: DeepStack([Stack([1], "crops", "identity")]),
        "stacks.0.sampler: identity samples a view by itself; choose 2d for crops, or view: base",
    ),
    (
        lambda: DeepStack([Stack([1], "fine", "corner")], sequence="tiles"),
        "stacks.0.sampler: corner samples a view by itself; choose 2d for crops, or view: base",
    ),
    (
        lambda: DeepStack([Stack(FOUR, "base", "corner", merge=1)], base="zero"),
        "stacks.0.sites: 4 layers, but blocks of 1 x 1 have fewer corners",
    ),
    # views and the sequence
    *(
        (
            lambda sequence=sequence: DeepStack([Stack(FOUR)], sequence=sequence),
            "stacks.0.view: the crops stand in the sequence already; choose fine, or sequence: base",
        )
        for sequence in ("crops", "tiles")
    ),
    *(
        (
            lambda sequence=sequence: DeepStack([Stack(FOUR, "fine")], sequence=sequence),
            "stacks.0.view: fine crops belong to base view and crops in the sequence; set sequence: tiles",
        )
        for sequence in ("base", "crops")
    ),
    *(
        (
            lambda count=count: DeepStack([Stack([1] * count, "fine")], sequence="tiles"),
            f"stacks.0.sites: {count} layers cannot take n x n groups; name 4 or 9",
        )
        for count in (2, 3, 5)
    ),
    (
        lambda: DeepStack([Stack([1], "fine")], sequence="tiles"),
        "stacks.0.sites: a view has at least 2 x 2 fine crops",
    ),
    (
        lambda: DeepStack([Stack([1], "fine", "pool", merge=1)], sequence="tiles"),
        "stacks.0.merge: a view has at least 2 x 2 fine crops",
    ),
    (
        lambda: DeepStack([Stack(FOUR, "fine"), Stack([1] * 9, "fine")], sequence="tiles"),
        "stacks.0.sites: samples 2 x 2 fine crops, and another stack 3 x 3; every view has one number of them",
    ),
    (
        lambda: DeepStack([Stack(FOUR, "fine")], sequence="tiles", order="2d"),
        "order: 2d takes crops apart that fine crops are stacked onto; set order: block",
    ),
    # into the encoder
    (
        lambda: DeepStack(encoder_stacks=[Stack([1], "base", "identity")]),
        "encoder_stacks.0.view: base cannot be stacked into the encoder that is just reading it; choose crops",
    ),
    (
        lambda: DeepStack(encoder_stacks=[Stack([1], sampler="patch_merge")]),
        "encoder_stacks.0.sampler: patch_merge changes the width, and the encoder has one width; choose 2d",
    ),
    (
        lambda: DeepStack([Stack(FOUR)], [Stack(FOUR)], base="zero"),
        "encoder_stacks: nothing reads the views that they are added to; set base: fill, or stack their view: base",
    ),
    # the base
    (
        lambda: DeepStack(base="zero"),
        "base: zero leaves the language model without visual tokens; add stacks, or set base: fill",
    ),
    (
        lambda: DeepStack([Stack(FOUR, "base", "corner")]),
        "base: fill lays whole maps into the sequence, but `corner` makes smaller groups; set base: zero",
    ),
    (
        lambda: DeepStack([Stack(FOUR, "base", "corner"), Stack([1], "base", "identity")], base="zero"),
        "stacks: corner groups are smaller than the groups of the other samplers; they cannot mix",
    ),
    (
        lambda: DeepStack([Stack(FOUR, "base", "corner"), Stack([1], "base", "corner", merge=4)], base="zero"),
        "stacks: corner groups are smaller than the groups of the other samplers; they cannot mix",
    ),
    (lambda: DeepStack(tap=[]), "tap: empty; name at least one, such as `final`"),
    (
        lambda: DeepStack(operation=GatedAdd),
        "operation: acts on stacks into the language model, and there are none",
    ),
    (
        lambda: DeepStack(encoder_stacks=[Stack([1])], operation=GatedAdd),
        "operation: acts on stacks into the language model, and there are none",
    ),
    # the sequence's slots
    *(
        (
            lambda order=order: DeepStack(sequence="tiles", order=order),
            f"order: {order} is no order of the crops' tokens; block, 2d and 1d are",
        )
        for order in ("pool", "patch_merge", "identity", "corner")
    ),
    (
        lambda: DeepStack(order="2d"),
        "order: 2d needs crops in the sequence without newlines; set order: block",
    ),
    (
        lambda: DeepStack(sequence="tiles", newline=True, order="1d"),
        "order: 1d needs crops in the sequence without newlines; set order: block",
    ),
    (lambda: DeepStack(newline=True), "newline: belongs to crops in the sequence; set sequence: tiles"),
    (lambda: DeepStack(fill_to=4), "fill_to: belongs to crops in the sequence; set sequence: tiles"),
    (
        lambda: DeepStack(sequence="crops", newline=True),
        "newline: the mosaic stands behind the base view; set sequence: tiles",
    ),
    (
        lambda: DeepStack(sequence="tiles", unpad=True),
        "unpad: leaves out parts of the mosaic, which only newline: true lays; set it too",
    ),
    (
        lambda: DeepStack(sequence="tiles", newline=True, fill_to=4),
        "fill_to: lays maps behind maps, but newline: true lays one mosaic; set one of the two",
    ),
    # the named points: their own arguments are blamed
    *(
        (lambda kind=kind, options=options: kind(**options), message)
        for kind in (DeepStackL, DeepStackV)
        for options, message in (
            ({"start": -1}, "start: must be at least 0, got -1"),
            ({"interval": 0}, "interval: must be at least 1, got 0"),
            ({"num_stacks": 0}, "crops: must be at least 1, got 0"),
        )
    ),
    (lambda: DeepStackL(sites=[3, -2]), "sites: layers count from 0, got -2"),
    (
        lambda: DeepStackL(sampler="identity"),
        "sampler: identity samples a view by itself; choose 2d for crops, or view: base",
    ),
    (
        lambda: DeepStackV(sampler="patch_merge"),
        "sampler: patch_merge changes the width, and the encoder has one width; choose 2d",
    ),
    (lambda: DeepStackHD(up=1), "up: must be at least 2, got 1"),
    (
        lambda: DeepStackHD(unpad=True, newline=False),
        "unpad: leaves out parts of the mosaic, which only newline: true lays; set it too",
    ),
    (lambda: DeepStackTaps([]), "taps: empty; name at least one"),
    (lambda: DeepStackTaps([1, 2], sites=[1]), "sites: 1 for 2 taps; name one for each"),
    (lambda: ChannelConcat(num_crops=0), "num_crops: must be at least 1, got 0"),
    (
        lambda: SequenceConcat(sampler="pool"),
        "sampler: pool is no order of the crops' tokens; block, 2d and 1d are",
    ),
    (
        lambda: SequenceConcat(sampler="2d", newline=True),
        "sampler: 2d needs crops in the sequence without newlines; set sampler: block",
    ),
    (
        lambda: SequenceConcat(base=False, newline=True),
        "newline: the mosaic stands behind the base view; set base: true",
    ),
]


@pytest.mark.parametrize(("make", "message"), ARGUMENTS, ids=[message.split(";")[0] for _, message in ARGUMENTS])
def test_arguments_that_contradict_each_other_are_refused_word_for_word(make, message):
    assert refusal(make) == message


PARTS = [
    (
        DeepStackL(num_stacks=4, start=1),
        "start: 4 stacks at layers 1, 2, 3, 4 need 5 layers; the language model has 4",
    ),
    (
        DeepStackL(num_stacks=2, start=0, interval=9),
        "start: 2 stacks at layers 0, 9 need 10 layers; the language model has 4",
    ),
    (DeepStackL(sites=[7]), "sites: 1 stack at layer 7 need 8 layers; the language model has 4"),
    (DeepStackTaps([1, 2], sites=[3, 4]), "sites: 2 stacks at layers 3, 4 need 5 layers; the language model has 4"),
    (DeepStackHD(start=2), "start: 4 stacks at layers 2, 3, 4, 5 need 6 layers; the language model has 4"),
    (
        DeepStack([Stack([1]), Stack([3], after=True)]),
        "stacks: 2 stacks at layers 1, 4 need 5 layers; the language model has 4",
    ),
    (
        DeepStackV(),
        "start: 4 stacks at layers 20, 21, 22, 23 need 24 layers; the vision encoder has 4",
    ),
    (DeepStackV(num_stacks=3, start=2), "start: 3 stacks at layers 2, 3, 4 need 5 layers; the vision encoder has 4"),
    (
        DeepStack(encoder_stacks=[Stack([4, 4], tap=1)]),
        "encoder_stacks: 2 stacks at layers 4, 4 need 5 layers; the vision encoder has 4",
    ),
    (
        DeepStackV(num_stacks=3, start=1, tap=-3),
        "tap: features are read at layer 2, before the last stack is added at layer 3",
    ),
    (LowResolution(tap=9), "tap: tap 9 is beyond the encoder's depth: it has 4 layers, so taps 0 to 4"),
    (LowResolution(tap=[1, -6]), "tap: tap -6 is beyond the encoder's depth: it has 4 layers, so taps 0 to 4"),
    (DeepStackTaps([1, 7]), "taps: tap 7 is beyond the encoder's depth: it has 4 layers, so taps 0 to 4"),
    (
        DeepStack([Stack([1]), Stack([2], "base", "identity", 8)]),
        "stacks.1.tap: tap 8 is beyond the encoder's depth: it has 4 layers, so taps 0 to 4",
    ),
    (
        DeepStack(encoder_stacks=[Stack([1], tap=5)]),
        "encoder_stacks.0.tap: tap 5 is beyond the encoder's depth: it has 4 layers, so taps 0 to 4",
    ),
    (
        DeepStackV(num_stacks=1, start=0, tap=-6),
        "tap: tap -6 is beyond the encoder's depth: it has 4 layers, so taps 0 to 4",
    ),
    (
        DeepStack([Stack([1], "base", "corner", merge=3)], base="zero"),
        "stacks.0.merge: corner takes blocks of 3 x 3; the encoder's map of 4 x 4 tokens does not divide",
    ),
]


@pytest.mark.parametrize(("scheduler", "message"), PARTS)
def test_parts_that_do_not_fit_are_refused_word_for_word(tiny_encoder, scheduler, message):
    assert refusal(scheduler.check, tiny_encoder(), 4) == message


def test_an_encoder_without_layers_takes_no_stacks(tiny_encoder):
    fused = FusedEncoder([tiny_encoder(), tiny_encoder()])
    DeepStackL(start=0).check(fused, 4)
    for scheduler, argument in ((DeepStackV(start=0), "start"), (DeepStack((), [Stack([1])]), "encoder_stacks")):
        assert refusal(scheduler.check, fused, 4) == (
            f"{argument}: FusedEncoder has no layers to add stacks to; stack in the language model instead"
        )


def test_a_width_that_the_position_code_cannot_fill_is_refused(tiny_encoder):
    scheduler = LowResolution(position=0.1)
    scheduler.check(tiny_encoder(), 4)
    assert refusal(scheduler.check, tiny_encoder(embed_dim=18), 4) == (
        "position: the 2-D sine-cosine code needs a width divisible by 4; the encoder's is 18"
    )


def test_parts_that_just_fit_are_taken(tiny_encoder):
    DeepStackL(num_stacks=4, start=0).check(tiny_encoder(), 4)
    DeepStackL(sites=[3, 3, 3]).check(tiny_encoder(), 4)
    DeepStackV(num_stacks=4, start=0).check(tiny_encoder(), 1)
    DeepStackV(num_stacks=3, start=1, tap=-2).check(tiny_encoder(), 1)  # read at the last site, as the authors do
    DeepStackTaps([0, 4, -5]).check(tiny_encoder(), 4)
    DeepStack([Stack([2], after=True)]).check(tiny_encoder(), 4)


NO_CROPS = "looks at high-resolution crops, but the views have none: choose views with a grid"
VIEWS = [
    (
        DeepStackL(num_stacks=3),
        [(1, 3), (2, 2)],
        0,
        "crops: 3 stacks cannot take the 4 crops that the views may cut",
    ),
    (DeepStackV(num_stacks=3), [(2, 2)], 0, "crops: 3 stacks cannot take the 4 crops that the views may cut"),
    (DeepStackL(sites=[1]), [(1, 2)], 0, "sites: 1 stack cannot take the 2 crops that the views may cut"),
    (
        DeepStack([Stack(FOUR), Stack([1, 2])]),
        [(2, 2)],
        0,
        "stacks.1.sites: 2 stacks cannot take the 4 crops that the views may cut",
    ),
    (
        DeepStack(encoder_stacks=[Stack([1])]),
        [(1, 2)],
        0,
        "encoder_stacks.0.sites: 1 stack cannot take the 2 crops that the views may cut",
    ),
    (ChannelConcat(num_crops=2), [(2, 2)], 0, "num_crops: 2 stacks cannot take the 4 crops that the views may cut"),
    (SequenceConcat(fill_to=3), [(2, 2)], 0, "fill_to: 3 maps cannot take the 4 crops that the views may cut"),
    *(
        (scheduler, [(0, 0)], 0, f"{type(scheduler).__name__} {NO_CROPS}")
        for scheduler in (
            DeepStackL(),
            DeepStackV(),
            SequenceConcat(),
            SequenceConcat(base=False),
            DeepStackHD(),
            ChannelConcat(),
            DeepStack([Stack([1], sampler="pool")]),
        )
    ),
    (DeepStackHD(), [(2, 2)], 0, "up: needs 2 x 2 fine crops of every view, but the views have none; choose HDViews"),
    (DeepStackHD(), [(2, 2)], 3, "up: needs 2 x 2 fine crops of every view, but the views have 3 x 3; set their `up`"),
    (
        DeepStack([Stack([1], "fine", "pool", merge=3)], sequence="tiles"),
        [(2, 2)],
        2,
        "stacks: needs 3 x 3 fine crops of every view, but the views have 2 x 2; set their `up`",
    ),
    *(
        (
            DeepStackL(sampler="patch_merge"),
            grids,
            0,
            "sampler: patch_merge needs 2 x 2 crops of every image, but the views may cut others; choose GridViews",
        )
        for grids in ([(1, 2)], [(2, 2), (0, 0)], [(2, 2), (1, 4)])
    ),
    (
        DeepStack([Stack([1], sampler="patch_merge", merge=3)]),
        [(2, 2)],
        0,
        "stacks.0.sampler: patch_merge needs 3 x 3 crops of every image, but the views may cut others; "
        "choose GridViews",
    ),
]


@pytest.mark.parametrize(("scheduler", "grids", "fine", "message"), VIEWS)
def test_views_that_cannot_be_placed_are_refused_word_for_word(scheduler, grids, fine, message):
    assert refusal(scheduler.check_views, grids, fine) == message


def test_padding_is_not_cut_from_pictures_that_have_none():
    scheduler = SequenceConcat(newline=True, unpad=True)
    scheduler.check_views([(2, 2)], padded=True)
    assert refusal(scheduler.check_views, [(2, 2)], padded=False) == (
        "unpad: would leave out parts of images that are squashed, not padded; set unpad: false, or the views' fit: pad"
    )
    SequenceConcat(newline=True).check_views([(2, 2)], padded=False)


@pytest.mark.parametrize(
    ("scheduler", "grids", "fine"),
    [
        (DeepStackL(num_stacks=3), [(1, 3), (0, 0)], 0),
        (DeepStackV(num_stacks=3), [(1, 3), (0, 0)], 0),
        (LowResolution(), [(0, 0)], 0),
        (LowResolution(), [(9, 9)], 2),
        (DeepStackL(num_stacks=1, source="base"), [(9, 9)], 0),
        (DeepStackL(num_stacks=1, sampler="pool"), [(3, 2), (0, 0)], 0),
        (DeepStackL(num_stacks=1, sampler="patch_merge"), [(2, 2)], 0),
        (DeepStackTaps([1, 2]), [(0, 0)], 0),
        (SequenceConcat(), [(9, 9)], 0),
        (DeepStackHD(), [(2, 2), (1, 4)], 2),
        (ChannelConcat(sampler="pool"), [(5, 5)], 0),
    ],
)
def test_views_that_can_be_placed_are_taken(scheduler, grids, fine):
    scheduler.check_views(grids, fine)
