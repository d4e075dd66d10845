"""Question programs: parsed, reproduced from real sentences, and run on histories made by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cjepa_dist.clevrer.descriptions import Describer, noun_phrase
from cjepa_dist.clevrer.events import MOVING_SPEED, VideoEvents
from cjepa_dist.clevrer.parser import matching_objects, parse
from cjepa_dist.clevrer.programs import LITERALS, OPERATORS, check_program, run_programs
from cjepa_dist.clevrer.scene import ATTRIBUTES, SIMULATED_FRAMES, Collision, History, SceneObject
from cjepa_dist.clevrer.templates import (
    TEMPLATES,
    Filler,
    event_filler,
    fill_template,
    fixed_filler,
)
from cjepa_dist.clevrer.vocabulary import MAX_CHOICE_WORDS, MAX_QUESTION_WORDS, encode_text
from cjepa_dist.errors import UserError
from tests.fixtures import explanatory_scenes, public_test_scenes

OBJECTS = [
    SceneObject(0, "red", "metal", "cube"),
    SceneObject(1, "red", "rubber", "sphere"),
    SceneObject(2, "blue", "metal", "cylinder"),
    SceneObject(3, "gray", "rubber", "cube"),
]


def history(collisions=((20, 0, 1), (60, 1, 2), (140, 2, 3)), removed=None):
    """Object 0 hits 1, which entered at 10; then 1 hits 2, which moves from frame 60 on.

    Object 3 exits at 100 and is in view again at 120.
    """
    present = np.ones((SIMULATED_FRAMES, 4), bool)
    present[:10, 1] = False
    present[100:120, 3] = False
    velocity = np.zeros((SIMULATED_FRAMES, 4, 2))
    velocity[:20, 0, 0] = 10 * MOVING_SPEED
    velocity[20:, 1, 1] = -10 * MOVING_SPEED
    velocity[60:, 2, 0] = 2 * MOVING_SPEED
    velocity[:, 3, 0] = 0.5 * MOVING_SPEED
    if removed is not None:
        present[:, removed] = False
    return History(
        objects=[o for o in OBJECTS if o.object_id != removed],
        collisions=[Collision(*c) for c in collisions],
        entries={1: 10},
        exits={3: 100},
        present=present,
        position=np.zeros((SIMULATED_FRAMES, 4, 2)),
        velocity=velocity,
    )


def answer(sentence, choice=None, counterfactual=None):
    world = VideoEvents(history(), counterfactual)
    return run_programs(world, *([parse(choice)[1]] if choice else []), parse(sentence)[1])


# --- real questions


def test_real_programs_type_check_and_follow_from_their_sentences():
    questions = [q for scene in explanatory_scenes() for q in scene["questions"]]
    assert len(questions) == 564
    for question in questions:
        form, program = parse(question["question"])
        assert form.kind == "explanatory" and program == question["program"]
        assert form.family == ("exit" if "filter_out" in program else "collision")
        for choice in question["choices"]:
            form, program = parse(choice["choice"])
            assert form.kind == "choice" and program == choice["program"]
            assert check_program(program) in (("object",), ("event",))
            assert check_program([*program, *question["program"]]) == ("answer",)


def test_real_test_questions_are_understood():
    questions = [q for scene in public_test_scenes() for q in scene["questions"]]
    families = set()
    for question in questions:
        form, program = parse(question["question"])
        assert form.kind == question["question_type"]
        families.add(form.family)
        if form.kind == "descriptive":
            asked = program[-1] if form.subtype == "query" else form.subtype
            assert asked == question["question_subtype"]
            assert check_program(program) == (
                ("number",) if form.subtype == "count" else ("answer",)
            )
        for choice in question.get("choices", []):
            assert check_program([*parse(choice["choice"])[1], *program]) == ("answer",)
    assert len(families) >= 10


def test_a_sentence_that_fits_no_template():
    with pytest.raises(UserError, match="no template"):
        parse("Where is the red cube?")


# --- types


@pytest.mark.parametrize(
    "program, message",
    [
        ("objects fly", "unknown operator 'fly'"),
        ("count", "needs"),
        ("objects red filter_shape", "needs"),
        ("objects negate", "needs"),
        ("events unique query_color", "needs"),
        ("objects first filter_order", "needs"),
    ],
)
def test_bad_program(program, message):
    with pytest.raises(UserError, match=message):
        check_program(program.split())


@given(st.lists(st.sampled_from([*OPERATORS, *LITERALS, "nonsense"]), max_size=8))
def test_any_tokens_give_an_answer_or_a_user_error(program):
    world = VideoEvents(history(), lambda removed: history(removed=removed))
    try:
        kinds = check_program(program)
    except UserError:
        with pytest.raises(UserError):
            run_programs(world, program)
        return
    try:
        result = run_programs(world, program)
    except UserError:
        return
    assert len(kinds) == 1 and isinstance(result, str)


# --- meaning


@pytest.mark.parametrize(
    "sentence, expected",
    [
        ("How many objects are moving?", "3"),
        ("How many objects are stationary?", "1"),
        ("How many moving red objects are there?", "2"),
        ("How many objects are moving when the video begins?", "1"),
        ("How many objects are moving when the video ends?", "2"),
        ("How many cubes are stationary when the red sphere enters the scene?", "1"),
        (
            "How many objects are stationary when the gray object exits the scene?",
            "1",
        ),  # the gray one itself is no longer in view
        ("How many spheres enter the scene?", "1"),
        ("How many cubes enter the scene?", "0"),
        ("How many objects exit the scene after the sphere enters the scene?", "1"),
        ("How many collisions happen?", "2"),  # the third is unseen
        ("How many collisions happen before the gray cube exits the scene?", "2"),
        ("Are there collisions before the sphere enters the scene?", "no"),
        ("Are there any metal objects that enter the scene?", "no"),
        ("Are there any stationary cylinders when the video begins?", "yes"),
        ("What color is the first object that enters the scene?", "red"),
        ("What is the shape of the last object that exits the scene?", "cube"),
        ("What shape is the first object to collide with the sphere?", "cube"),
        ("What shape is the second object to collide with the sphere?", "cylinder"),
        ("What is the material of the object to collide with the cylinder?", "rubber"),
        ("What material is the stationary cube?", "rubber"),
        ("What color is the rubber object that is moving when the video ends?", "red"),
    ],
)
def test_descriptive(sentence, expected):
    assert answer(sentence) == expected


@pytest.mark.parametrize(
    "choice, expected",
    [
        ("the collision between the red cube and the sphere", "yes"),
        ("the sphere's entrance", "yes"),
        ("the presence of the red cube", "yes"),
        ("the presence of the gray cube", "no"),
    ],
)
def test_explanatory(choice, expected):
    question = (
        "Which of the following is {}responsible for the sphere's colliding with the cylinder?"
    )
    assert answer(question.format(""), choice) == expected
    assert answer(question.format("not "), choice) == {"yes": "no", "no": "yes"}[expected]


def test_a_later_event_is_no_cause():
    question = (
        "Which of the following is responsible for the collision between"
        " the red cube and the sphere?"
    )
    assert answer(question, "the cylinder's colliding with the sphere") == "no"
    assert answer(question, "the presence of the cylinder") == "no"


def test_predictive_and_counterfactual():
    assert answer("What will happen next?", "The cylinder and the gray cube collide") == "yes"
    assert answer("Which event will happen next?", "The sphere collides with the cylinder") == "no"
    asked = []

    def without(removed):
        asked.append(removed)
        return history(collisions=((30, 2, 3), (150, 1, 2)), removed=removed)

    assert (
        answer(
            "What will happen without the red cube?",
            "The cylinder and the gray cube collide",
            without,
        )
        == "yes"
    )
    assert (
        answer(
            "If the red cube is removed, what will happen?",
            "The sphere and the cylinder collide",
            without,
        )
        == "no"
    )  # not shown
    assert (
        answer(
            "Without the red cube, which event will not happen?",
            "The red cube and the sphere collide",
            without,
        )
        == "yes"
    )
    assert asked == [0, 0, 0]
    with pytest.raises(UserError, match="no counterfactual"):
        answer("What will happen without the red cube?", "The cylinder and the gray cube collide")


def test_descriptions_that_do_not_fit():
    with pytest.raises(UserError, match="unique finds 2"):
        answer("What color is the first object to collide with the red object?")
    with pytest.raises(UserError, match="second of 1"):
        answer("What color is the second object to collide with the cylinder?")


def test_what_is_out_of_view_is_not_told():
    world = history()
    world.present[60, 2] = False
    assert run_programs(VideoEvents(world), parse("How many collisions happen?")[1]) == "1"
    world.present[:128, 3] = False  # never shown: no object for questions
    assert run_programs(VideoEvents(world), parse("How many objects are stationary?")[1]) == "0"


# --- language

descriptions = st.tuples(
    *(st.sampled_from(["", *values]) for values in ATTRIBUTES.values())
).filter(any)


@given(st.data())
def test_every_form_reads_back(data):
    form = data.draw(st.sampled_from(TEMPLATES))
    draw = data.draw
    item = noun_phrase(*draw(descriptions))
    event = event_filler(
        "TIME", "when", noun_phrase(*draw(descriptions)), draw(st.sampled_from(["enters", "exits"]))
    )
    order = event_filler(
        "ORD", draw(st.sampled_from(["before", "after"])), noun_phrase(*draw(descriptions)), "exits"
    )
    queried = draw(descriptions)
    blanks = {
        "X": item,
        "Y": noun_phrase(*draw(descriptions)),
        "D": noun_phrase("", *queried[1:]),
        "OBJS": noun_phrase(*draw(descriptions), plural=True),
        "TIME": draw(
            st.sampled_from(
                [event, Filler("", "null"), Filler(" when the video ends", "end get_frame")]
            )
        ),
        "ORD": draw(st.sampled_from([order, Filler("", "events")])),
        "A": fixed_filler("A", "color"),
        "STATE": fixed_filler("STATE", draw(st.sampled_from(["moving", "stationary"]))),
        "DO": fixed_filler("DO", "exit"),
        "DOES": fixed_filler("DOES", "enters"),
        "ORDER": fixed_filler("ORDER", draw(st.sampled_from(["first", "second", "last"]))),
        "NOT": fixed_filler("NOT", draw(st.sampled_from(["", "not "]))),
    }
    text, program = fill_template(form, blanks)
    found, read = parse(text)
    assert (found.kind, read) == (form.kind, program)
    encode_text(text, MAX_CHOICE_WORDS if form.kind == "choice" else MAX_QUESTION_WORDS)


@given(
    st.sets(st.tuples(*(st.sampled_from(v) for v in ATTRIBUTES.values())), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
)
def test_descriptions_are_definite(triples, random):
    objects = [SceneObject(i, *triple) for i, triple in enumerate(sorted(triples))]
    namer = Describer(objects, random)
    for item in objects:
        filler = namer(item.object_id)
        assert matching_objects(filler.program.split(), objects) == [item.object_id]
        assert set(filler.text.split()) <= {item.color, item.material, item.shape, "object"}


def test_twins_cannot_be_named():
    twins = [SceneObject(0, "red", "metal", "cube"), SceneObject(1, "red", "metal", "cube")]
    with pytest.raises(UserError, match="another object"):
        Describer(twins, None)
