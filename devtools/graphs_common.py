"""What the example graphs have in common: colours, and nodes that most of them begin and end with."""

from draw_graphs import Node, Port

STEPS = 50
CANVAS_FILL = {"mode": "exclude", "guidance": 1.0}  # of pans and zooms: the best of `bench fills`, and the cheapest
FADE = {"radius": 0.0088, "blur": 0.0049}  # of the width: radius + 4 blur reach not quite to the grown border
WORD_STEPS = 20  # of the mask of an edit by words
WORD_FILL = {"steps": 25, "denoise": 0.5}  # of the picture in it, which is drawn again from half of its own noise
WORD_GROW = 80  # pixels at 1024: what comes may be wider than what goes
CFG, TOY_CFG = 7.5, 4.5  # of what is drawn anew in a mask; with more, the toy model's colours burn out
SCHEDULER = "normal"
PREVIEW = 290  # height of a node that shows a picture

BLUE, GREEN, YELLOW, PURPLE, RED, GREY = "#3f789e", "#88aa66", "#b58b2a", "#8a5fa8", "#a1566a", "#666666"
KEY_NODE = "#233"  # of the pack's own nodes, which do the work


def preview(title: str, image: Port, width_to_height: int = PREVIEW) -> Node:
    """A node that shows a picture."""
    return Node("PreviewImage", title, width_to_height, {"images": image})


def saved(image: Port, prefix: str) -> Node:
    """The result, shown and saved."""
    return Node("SaveImage", "Result", PREVIEW + 40, {"images": image, "filename_prefix": prefix})


def grown_mask(mask: Port, pixels: int) -> Node:
    """The paper grows masks by 20 pixels at 1024."""
    return Node("GrowMask", inputs={"mask": mask, "expand": pixels, "tapered_corners": False})


def checkpoint_node(title: str = "") -> Node:
    """A Stable Diffusion XL checkpoint to choose."""
    return Node("CheckpointLoaderSimple", title, inputs={"ckpt_name": "sd_xl_base_1.0.safetensors"})


def scaled_picture(loaded: Node) -> Node:
    """A loaded picture at the size that SDXL knows, in whole latent cells."""
    return Node(
        "ImageScaleToTotalPixels",
        "Scale to the model's size",
        inputs={"image": loaded[0], "upscale_method": "lanczos", "megapixels": 1.0, "resolution_steps": 8},
    )


def matched_mask(mask: Port, picture: Port) -> Node:
    """A mask scaled to a picture's size."""
    return Node(
        "ResizeImageMaskNode",
        "Scale the mask likewise",
        inputs={
            "input": mask, "resize_type": "match size", "resize_type.match": picture,
            "resize_type.crop": "disabled", "scale_method": "bilinear",
        },
    )  # fmt: skip


def start_nodes(toy: bool, seed: int = 7, objects: int = 2) -> tuple[Node, Node, list[Node], Port]:
    """Model, picture node (its first output is the IMAGE), what to show of them, and a mask."""
    if toy:
        model = Node("LatentLayersToyModel", colour=KEY_NODE)
        scene = Node("LatentLayersToyScene", colour=KEY_NODE, inputs={"seed": seed, "objects": objects})
        return model, scene, [model, scene, preview("Source", scene[0])], scene[1]
    model = checkpoint_node()
    loaded = Node("LoadImage", height=360, inputs={"image": "example.png"})
    picture = scaled_picture(loaded)
    resized = matched_mask(loaded[1], picture[0])
    return model, picture, [model, loaded, picture], resized[0]


def text_node(clip: Port, text: str, title: str) -> Node:
    """A prompt."""
    return Node("CLIPTextEncode", title, height=110, inputs={"clip": clip, "text": text})
