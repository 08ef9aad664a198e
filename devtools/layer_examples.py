"""What the example graphs of layered edits show, with the toy model and with pictures of one's own."""

from dataclasses import dataclass
from typing import Any

PAINT = "Right-click it, *Open in MaskEditor*, paint over {}, and save."
AGAIN = "**{}:** choose the picture again, and paint over {} in the same way."


@dataclass(frozen=True)
class Piece:
    """A layer of an example: which object of the toy scene, and the widgets of its Add Layer."""

    object: int
    widgets: dict[str, Any]
    occluder: int = 0  # another object that hides part of it
    other_scene: dict[str, Any] | None = None  # a toy scene of its own


@dataclass(frozen=True)
class Real:
    """What differs where pictures and checkpoint are one's own."""

    widgets: tuple[dict[str, Any], ...]  # of Add Layer
    text: str
    paint: str = "the object"  # in the first picture; nothing where it only receives a layer
    more: tuple[str, ...] = ()  # what to do besides, a line each
    cut_out: bool = False  # the other picture's layer is what is not transparent there


@dataclass(frozen=True)
class Example:
    """A layered edit as two graphs."""

    title: str
    text: str
    seed: int
    objects: int
    pieces: tuple[Piece, ...]
    real: Real
    truth: str = ""  # the truth's moves of the first piece, where that is all
    plan: str = ""  # an edit plan, typed


EXAMPLES = {
    "move_object": Example(
        "move an object",
        "The star goes to the right, and the place where it was is filled. *Truth* shows how the scene really looks "
        "then.\n\n**Change:** *moves*, in *Add Layer* (and in *Toy Scene*, for the truth).",
        21,
        3,
        (Piece(1, {"name": "star", "moves": "75, 13"}),),
        Real(
            ({"name": "object", "moves": "20%, 0"},),
            "The object goes to the right, and the place where it was is filled.\n\n**Change:** *moves*, in *Add "
            "Layer*.",
        ),
        truth="75, 13",
    ),
    "resize_and_flip": Example(
        "resize and flip",
        "One heart grows, another one is turned over: size, angle and side are widgets of *Add Layer*.",
        31,
        3,
        (
            Piece(2, {"name": "black heart", "scale_x": 1.35, "scale_y": 1.35}),
            Piece(1, {"name": "purple heart", "flip": "vertical"}),
        ),
        Real(
            ({"name": "larger", "scale_x": 1.3, "scale_y": 1.3}, {"name": "mirrored", "flip": "horizontal"}),
            "The first object grows, the second is mirrored: size, angle and side are widgets of *Add Layer*.",
            more=(AGAIN.format("The same picture: object 2", "the second object"),),
        ),
    ),
    "duplicate_object": Example(
        "duplicate an object",
        "*0, 0* among the moves keeps the original where it is; every other move is a copy.",
        10,
        3,
        (Piece(1, {"name": "star", "moves": "0, 0; 62, 30; -10, 76"}),),
        Real(
            ({"name": "object", "moves": "0, 0; 25%, 0"},),
            "*0, 0* among the moves keeps the original where it is; every other move is a copy.",
        ),
    ),
    "swap_objects": Example(
        "swap two objects",
        "Two layers, each with the other one's place for a move.",
        15,
        3,
        (
            Piece(1, {"name": "circle", "moves": "-61, -97"}),
            Piece(2, {"name": "green T", "moves": "61, 97"}),
        ),
        Real(
            ({"name": "left one", "moves": "40%, 0"}, {"name": "right one", "moves": "-40%, 0"}),
            "Two layers, each with the other one's place for a move.\n\n**Change:** both *moves*, to the distance "
            "between the two.",
            "the left one",
            (AGAIN.format("The same picture: object 2", "the right one"),),
        ),
    ),
    "layered_poster": Example(
        "several layers at once",
        "One object is removed, one moved, one made smaller and one doubled, in a single run.",
        36,
        4,
        (
            Piece(3, {"name": "blue L", "remove": True}),
            Piece(4, {"name": "sun", "moves": "36, 12"}),
            Piece(2, {"name": "right ring", "scale_x": 0.7, "scale_y": 0.7}),
            Piece(1, {"name": "left ring", "moves": "0, 0; 64, 14"}),
        ),
        Real(
            (
                {"name": "goes", "remove": True},
                {"name": "moves", "moves": "15%, 0"},
                {"name": "shrinks", "scale_x": 0.7, "scale_y": 0.7},
                {"name": "doubles", "moves": "0, 0; 20%, 5%"},
            ),
            "The first object is removed, the second moved, the third made smaller and the fourth doubled, in a single "
            "run.",
            "the first object",
            (AGAIN.format("The same picture: objects 2, 3 and 4", "one more object in each"),),
        ),
    ),
    "compose_pictures": Example(
        "compose two pictures",
        "A layer may come from another picture, of another size: it is fitted into this one, then moved and resized.",
        29,
        2,
        (
            Piece(
                1,
                {"name": "guest", "moves": "-20, 60", "scale_x": 0.9, "scale_y": 0.9},
                other_scene={"seed": 13, "width": 320, "height": 256, "objects": 1},
            ),
        ),
        Real(
            ({"name": "guest", "moves": "10%, 0", "scale_x": 0.8, "scale_y": 0.8},),
            "A layer may come from another picture, of another size: it is fitted into this one, then moved and "
            "resized.",
            "",
            (f"**Another picture:** choose it. {PAINT.format('what is to be added')}",),
        ),
    ),
    "occluded_object": Example(
        "bring something out from behind",
        "The ring comes out from behind the H. *occluder* says what hid part of it: that part is completed in "
        "a second pass.",
        1000108,
        2,
        (Piece(2, {"name": "ring", "moves": "-61, 29"}, occluder=1),),
        Real(
            ({"name": "hidden object", "moves": "-25%, 0"},),
            "The object comes out from behind. *occluder* says what hid part of it: that part is completed in a second "
            "pass.",
            "what is seen of the object",
            (AGAIN.format("The same picture: what hides it", "what is in front of it"),),
        ),
    ),
    "retype_word": Example(
        "set lettering anew",
        "The T is removed, and an H from another picture is laid on in its place.",
        4,
        3,
        (
            Piece(2, {"name": "old letter", "remove": True}),
            Piece(
                1,
                {"name": "new letter", "moves": "11, 112"},
                other_scene={"seed": 5, "width": 256, "height": 256, "objects": 2},
            ),
        ),
        Real(
            ({"name": "old word", "remove": True}, {"name": "new word", "moves": "0, 0"}),
            "The old word is removed, and the new lettering is laid on.\n\n**Change:** *moves* of the second *Add "
            "Layer*, until the plan shows the lettering in its place; *scale_x* and *scale_y*.",
            "the word",
            ("**Another picture:** choose the new lettering, on a transparent background.",),
            cut_out=True,
        ),
    ),
    "plan_from_request": Example(
        "a plan in words",
        "A plan names layers and says what becomes of them: by hand, or by a language model from a request.",
        38,
        3,
        (
            Piece(1, {"name": "heart"}),
            Piece(2, {"name": "triangle"}),
            Piece(3, {"name": "cross"}),
        ),
        Real(
            ({"name": "first"}, {"name": "second"}),
            "**Plan Prompt** puts your request and the layers' places into words, a language model answers with a "
            "plan, and **Parse Plan** reads it.\n\n**Change:** *request*; the layers' names, by which it speaks of "
            "them.",
            "the first object",
            (
                AGAIN.format("The same picture: object 2", "the second object"),
                "**A language model:** choose one that *Generate Text* can use, such as Gemma 3 4B, from "
                "*models/text_encoders*.",
            ),
        ),
        plan='{"layers": [\n  {"name": "heart", "move": [{"direction": "down", "ratio": 0.2}]},\n'
        '  {"name": "triangle", "resize": {"height": 0.7, "width": 0.7}},\n  {"name": "cross", "remove": true}\n]}',
    ),
}
