"""The example graph that shows a layered edit step by step, built of single nodes."""

from draw_graphs import Drawing, Group, Info, Node
from graphs_common import BLUE, GREEN, GREY, KEY_NODE, PURPLE, RED, SCHEDULER, STEPS, YELLOW, preview, saved

FILLED = 40  # steps before the fusion

START = """# Try me: a move, step by step

Press **Run**. This is what **Layered Edit** does, node by node: read it from left to right when you want to \
build something that it cannot do."""

NOISE = """## Find the picture's noise

**Invert** finds the noise and every step between. **SplitSigmas** parts the schedule: 40 steps that fill the old \
place, 10 that blend the layer in."""

FORGET = """## Fill the old place

As in *remove an object*, over the first 40 steps only. **Trajectory To Latent** with *predict* shows where that \
leads: the picture without the object."""

LAY = """## Lay the layer on

**Transform Layer** lays the object on that picture, at its new place. Encoded and inverted as far as step 40, it is \
fused with the filled canvas."""

BLEND = """## Blend

The last 10 steps, with everything else held in place, and a composite in pixels."""


def try_me_move_step_by_step(info: Info) -> Drawing:
    """A move with the toy model, of single nodes."""
    model = Node("LatentLayersToyModel", colour=KEY_NODE)
    scene = Node(
        "LatentLayersToyScene", colour=KEY_NODE, inputs={"seed": 21, "objects": 3, "object": 1, "moves": "75, 13"}
    )
    text = Node("CLIPTextEncode", "Empty prompt", height=110, inputs={"clip": model[1], "text": ""})
    encoded = Node("VAEEncode", inputs={"pixels": scene[0], "vae": model[2]})
    schedule = Node(
        "BasicScheduler", inputs={"model": model[0], "scheduler": SCHEDULER, "steps": STEPS, "denoise": 1.0}
    )
    parts = Node("SplitSigmas", inputs={"sigmas": schedule[0], "step": FILLED})
    source = Node(
        "LatentLayersInvert",
        colour=KEY_NODE,
        inputs={"model": model[0], "conditioning": text[0], "latent": encoded[0], "sigmas": schedule[0]},
    )
    hole = Node("GrowMask", "The old place", inputs={"mask": scene[1], "expand": 5, "tapered_corners": False})
    hidden = Node(
        "LatentLayersKeyMaskedSelfAttention",
        colour=KEY_NODE,
        inputs={"model": model[0], "mask": hole[0], "end_percent": 1.0},
    )
    sampler = Node("KSamplerSelect", inputs={"sampler_name": "euler"})
    filled = _sampled(hidden, source, hole, text, sampler, parts, 0, source)
    ahead = Node(
        "LatentLayersTrajectoryToLatent", colour=KEY_NODE, inputs={"trajectory": filled[-1][0], "predict": True}
    )
    decoded = Node("VAEDecode", inputs={"samples": ahead[0], "vae": model[2]})
    behind = Node(
        "ImageCompositeMasked",
        "What lies behind",
        inputs={
            "destination": scene[0], "source": decoded[0], "x": 0, "y": 0, "resize_source": False, "mask": hole[0],
        },
    )  # fmt: skip
    layer = Node(
        "LatentLayersTransformLayer",
        colour=KEY_NODE,
        inputs={"image": scene[0], "mask": scene[1], "moves": "75, 13", "canvas": behind[0]},
    )
    placed = Node("VAEEncode", inputs={"pixels": layer[0], "vae": model[2]})
    own = Node(
        "LatentLayersInvert",
        "Invert as far as needed",
        colour=KEY_NODE,
        inputs={"model": model[0], "conditioning": text[0], "latent": placed[0], "sigmas": parts[1]},
    )
    fused = Node(
        "LatentLayersFuseLayer",
        colour=KEY_NODE,
        inputs={"canvas": filled[-1][0], "layer": own[0], "mask": layer[1], "moves": "0, 0", "placed": placed[0]},
    )
    arrived = Node("GrowMask", "The new place", inputs={"mask": layer[1], "expand": 5, "tapered_corners": False})
    both = Node(
        "MaskComposite",
        "Old and new place",
        inputs={"destination": hole[0], "source": arrived[0], "x": 0, "y": 0, "operation": "add"},
    )
    blended = _sampled(model, source, both, text, sampler, parts, 1, fused)
    last = Node("VAEDecode", inputs={"samples": blended[-1][1], "vae": model[2]})
    result = Node(
        "ImageCompositeMasked",
        "Only the two places",
        inputs={
            "destination": scene[0], "source": last[0], "x": 0, "y": 0, "resize_source": False, "mask": both[0],
        },
    )  # fmt: skip
    area = Node("MaskToImage", inputs={"mask": both[0]})
    return Drawing(
        info,
        [
            Group("1  Picture", BLUE, START, 220, [[model, scene, preview("Source", scene[0])]]),
            Group("2  Noise", YELLOW, NOISE, 190, [[text, encoded, schedule, parts, source]]),
            Group("3  Fill", PURPLE, FORGET, 200, [[hole, hidden, *filled[:-1]], [sampler, filled[-1]]], width=340),
            Group("4  Lay on", GREEN, LAY, 160, [[ahead, decoded, behind, preview("Behind", behind[0])],
                                                  [layer, placed, own, fused]]),
            Group("5  Blend", RED, BLEND, 130, [[arrived, both, *blended, last, result]], width=340),
            Group("6  Result", GREY, "## The result", 80, [[saved(result[0], "latent_layers/move_step_by_step"),
                  preview("Truth", scene[2]), area, preview("Mask", area[0])]]),
        ],
    )  # fmt: skip


def _sampled(
    model: Node, source: Node, mask: Node, text: Node, sampler: Node, sigmas: Node, part: int, start: Node
) -> list[Node]:
    """Keep Source, guider and Sample Trajectory over one part of the schedule."""
    kept = Node(
        "LatentLayersKeepSource",
        colour=KEY_NODE,
        inputs={"model": model[0], "trajectory": source[0], "mask": mask[0]},
    )
    guider = Node("BasicGuider", inputs={"model": kept[0], "conditioning": text[0]})
    sampled = Node(
        "LatentLayersSample",
        colour=KEY_NODE,
        inputs={"guider": guider[0], "sampler": sampler[0], "sigmas": sigmas[part], "trajectory": start[0]},
    )
    return [kept, guider, sampled]


GRAPHS = {"try_me_move_step_by_step": try_me_move_step_by_step}
