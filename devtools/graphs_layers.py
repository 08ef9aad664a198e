"""Example graphs of layered edits: each with the toy model, and with a checkpoint and pictures of one's own."""

from collections.abc import Callable
from typing import Any

from draw_graphs import Drawing, Group, Info, Node, Port
from graphs_common import (
    BLUE,
    GREEN,
    GREY,
    KEY_NODE,
    PURPLE,
    checkpoint_node,
    matched_mask,
    preview,
    saved,
    scaled_picture,
)
from layer_examples import EXAMPLES, PAINT, Example, Real

CHECKPOINT = "**Load Checkpoint:** choose an SDXL checkpoint. (SD 1.5 works too: then set *megapixels* to 0.25.)"

LAYERS = """## Say what becomes of it

One **Add Layer** for each object. *moves* is right, down: pixels (120, -40) or percents (10%, 0); a semicolon between \
two places makes duplicates."""

EDIT = """## Edit

**Layered Edit** shows the plan at once, then works. It keeps the long parts: change a move and run again, only the \
last steps are new.

**Change:** *harmonize* up when a layer looks pasted on; *grow* up when a rim of an object stays behind."""

RESULT = """## The result

Away from the old and new places **every pixel is as it was**."""


def layered_edit(model: Port, vae: Port, text: Node, image: Port, layers: Port) -> Node:
    """The node that does it all, with its defaults."""
    inputs = {"model": model, "vae": vae, "conditioning": text[0], "image": image, "layers": layers}
    return Node("LatentLayersLayeredEdit", colour=KEY_NODE, height=640, inputs=inputs)


def edit_groups(
    model: Port, clip: Port, vae: Port, image: Port, layers: Port, planned: list[Node], name: str, mask: Port | None
) -> tuple[list[Group], Node]:
    """From layers to the saved result; with a mask, also the area that may have changed."""
    text = Node("CLIPTextEncode", "Empty prompt", height=110, inputs={"clip": clip, "text": ""})
    edit = layered_edit(model, vae, text, image, layers)
    shown: list[Node] = [saved(edit[0], f"latent_layers/{name}")]
    if mask is not None:
        joined = Node(
            "MaskComposite",
            "Old and new place",
            inputs={"destination": mask, "source": edit[1], "x": 0, "y": 0, "operation": "or"},
        )
        grown = Node("GrowMask", inputs={"mask": joined[0], "expand": 8, "tapered_corners": False})
        picture = Node("MaskToImage", inputs={"mask": grown[0]})
        shown += [joined, grown, picture, preview("Mask", picture[0])]
    return [
        Group("3  Edit", PURPLE, EDIT, 200, [[*planned, text, edit]], width=340),
        Group("4  Result", GREY, RESULT, 120, [shown]),
    ], edit


def add_layer(mask: Port, before: Node | None, widgets: dict[str, Any], **ports: Port) -> Node:
    """One Add Layer, after the one before it."""
    chained = {} if before is None else {"layers": before[0]}
    return Node("LatentLayersAddLayer", colour=KEY_NODE, inputs={"mask": mask, **widgets, **chained, **ports})


def planned_by_hand(layers: Node, image: Port, plan: str) -> tuple[Node, list[Node]]:
    """A typed plan on top of the layers."""
    parsed = Node(
        "LatentLayersParsePlan", colour=KEY_NODE, height=260, inputs={"text": plan, "layers": layers[0], "image": image}
    )
    return parsed, [parsed]


def planned_by_model(layers: Node, image: Port) -> tuple[Node, list[Node]]:
    """A request, a language model of the host's, and its answer parsed."""
    prompt = Node(
        "LatentLayersPlanPrompt",
        colour=KEY_NODE,
        height=200,
        inputs={
            "request": "Move the first object a little to the left and make the second one larger.",
            "layers": layers[0],
            "image": image,
        },
    )
    loader = Node("CLIPLoader", "A language model", inputs={"clip_name": "gemma_3_4b_it.safetensors", "type": "ltxv"})
    answer = Node(
        "TextGenerate",
        height=300,
        inputs={"clip": loader[0], "prompt": prompt[0], "max_length": 512, "sampling_mode": "off"},
    )
    parsed = Node(
        "LatentLayersParsePlan",
        colour=KEY_NODE,
        height=200,
        inputs={"text": answer[0], "layers": layers[0], "image": image},
    )
    return parsed, [prompt, loader, answer, parsed]


def toy_graph(name: str, example: Example) -> Callable[[Info], Drawing]:
    """The example with the toy model."""

    def draw(info: Info) -> Drawing:
        model = Node("LatentLayersToyModel", colour=KEY_NODE)
        settings = {"seed": example.seed, "objects": example.objects}
        first = example.pieces[0]
        scenes = {first.object: toy_scene({**settings, "object": first.object}, "Toy Scene", example.truth)}
        image = scenes[first.object][0]

        def scene_of(number: int) -> Node:
            if number not in scenes:
                scenes[number] = toy_scene({**settings, "object": number}, f"The same scene: object {number}")
            return scenes[number]

        layers: Node | None = None
        nodes, others = [], []
        for piece in example.pieces:
            ports: dict[str, Port] = {}
            if piece.other_scene is not None:
                scene = toy_scene({**piece.other_scene, "object": piece.object}, "Another scene")
                others += [scene, preview("Another picture", scene[0])]
                ports["image"] = scene[0]
            else:
                scene = scene_of(piece.object)
            if piece.occluder:
                ports["occluder"] = scene_of(piece.occluder)[1]
            layers = add_layer(scene[1], layers, piece.widgets, **ports)
            nodes.append(layers)
        assert layers is not None
        last, planned = planned_by_hand(layers, image, example.plan) if example.plan else (layers, [])
        mask = scenes[first.object][1] if example.truth else None
        after, _ = edit_groups(model[0], model[1], model[2], image, last[0], planned, name, mask)
        if example.truth:
            after[-1].columns.append([preview("Truth", scenes[first.object][2])])
        start = f"# Try me: {example.title}\n\nPress **Run**. {example.text}\n\nNo download is needed."
        return Drawing(
            info,
            [
                Group("1  Picture", BLUE, start, 280, [[model, preview("Source", image)], [*scenes.values(), *others]]),
                Group("2  Layers", GREEN, LAYERS, 170, _in_columns(nodes)),
                *after,
            ],
        )

    return draw


def toy_scene(settings: dict[str, Any], title: str, moves: str = "") -> Node:
    """A scene of which one object is chosen."""
    return Node("LatentLayersToyScene", title, colour=KEY_NODE, inputs={**settings, "moves": moves})


def real_graph(name: str, example: Example) -> Callable[[Info], Drawing]:
    """The example with a checkpoint and loaded pictures."""

    def draw(info: Info) -> Drawing:
        checkpoint = checkpoint_node()
        loaded = Node("LoadImage", "Load Image", height=360, inputs={"image": "example.png"})
        picture = scaled_picture(loaded)
        start_nodes: list[list[Node]] = [[checkpoint, loaded, picture]]
        layers: Node | None = None
        columns, masks = [], []
        for number, (piece, widgets) in enumerate(zip(example.pieces, example.real.widgets, strict=False)):
            ports: dict[str, Port] = {}
            if piece.other_scene is not None:
                other = Node("LoadImage", "Another picture", height=360, inputs={"image": "example.png"})
                start_nodes.append([other])
                mask, ports["image"] = other[1], other[0]
                if example.real.cut_out:  # Load Image masks what is transparent
                    mask = Node("InvertMask", "What is not transparent", inputs={"mask": other[1]})
            elif number == 0:
                mask = matched_mask(loaded[1], picture[0])
            else:
                again = Node("LoadImage", f"The same picture: object {number + 1}", 360, {"image": "example.png"})
                start_nodes.append([again])
                mask = matched_mask(again[1], picture[0])
            if isinstance(mask, Node):
                masks.append(mask)
                mask = mask[0]
            if piece.occluder:
                hides = Node("LoadImage", "The same picture: what hides it", 360, {"image": "example.png"})
                matched = matched_mask(hides[1], picture[0])
                start_nodes.append([hides])
                masks.append(matched)
                ports["occluder"] = matched[0]
            layers = add_layer(mask, layers, widgets, **ports)
            columns.append(layers)
        assert layers is not None
        last, planned = planned_by_model(layers, picture[0]) if example.plan else (layers, [])
        after, _ = edit_groups(checkpoint[0], checkpoint[1], checkpoint[2], picture[0], last[0], planned, name, None)
        start = f"# {example.title[0].upper()}{example.title[1:]}\n\n{_steps(example.real)}\n\n{example.real.text}"
        groups = [
            Group("1  Picture", BLUE, start, 360 + 60 * len(example.real.more), start_nodes, width=340),
            Group("2  Layers", GREEN, LAYERS, 170, [masks, *_in_columns(columns)] if masks else _in_columns(columns)),
        ]
        return Drawing(info, [*groups, *after])

    return draw


def _steps(real: Real) -> str:
    """What to do before the first run, numbered."""
    picture = "**Load Image:** choose your picture." + (f" {PAINT.format(real.paint)}" if real.paint else "")
    lines = [CHECKPOINT, picture, *real.more, "Press **Run**."]
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1))


def _in_columns(nodes: list[Node], rows: int = 2) -> list[list[Node]]:
    return [nodes[i : i + rows] for i in range(0, len(nodes), rows)]


GRAPHS = {
    **{f"try_me_{name}": toy_graph(name, example) for name, example in EXAMPLES.items()},
    **{name: real_graph(name, example) for name, example in EXAMPLES.items()},
}
