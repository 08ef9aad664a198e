"""Layered Edit on the real server: the edit is right, the rest stays, and a change re-runs only what depends on it."""

import io
import re
from typing import Any

import numpy as np
import pytest
import torch
from host_client import Client, GraphError
from host_server import temporary_server
from PIL import Image
from scipy import ndimage

from latent_layers.fusion.host import EditSettings
from latent_layers.fusion.layered import lay_out
from latent_layers.fusion.layers import Layer, parse_moves
from latent_layers.toyscenes.host import draw_scene
from latent_layers.toyscenes.layer_run import LayeredRun
from latent_layers.toyscenes.pipeline import Toy

STEPS = 10  # enough to tell right from wrong, quick enough for a test
FILLED = 8
EVALUATIONS = re.compile(r"Latent Layers (\w[\w ]*): (\d+) model evaluations")


@pytest.fixture(scope="module")
def server():
    with temporary_server("test-layered") as running:
        yield running


@pytest.fixture
def client(server):
    return Client(server.url)


def graph(moves="45, -21", layer=None, size=(256, 256), scene=None, **edit):
    """Toy Scene -> Add Layer -> Layered Edit -> Result."""
    scene = {
        "seed": 21,
        "width": size[0],
        "height": size[1],
        "objects": 2,
        "object": 1,
        "moves": moves,
        **(scene or {}),
    }
    added = {"mask": ["scene", 1], "name": "thing", "remove": False, "moves": moves, "scale_x": 1.0, "scale_y": 1.0,
             "rotation": 0.0, "flip": "none", "order": 0, **(layer or {})}  # fmt: skip
    settings = {"steps": STEPS, "scheduler": "normal", "sampler": "euler", "harmonize": 0.2, "guidance": 7.5,
                "mode": "multiply", "grow": 0.0195, "refinements": 0, "blocks": "all", "ignore_layers": False,
                "keep_pixels": True,
                **edit}  # fmt: skip
    return {
        "model": {"class_type": "LatentLayersToyModel", "inputs": {}},
        "text": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": ""}},
        "scene": {"class_type": "LatentLayersToyScene", "inputs": scene},
        "layer": {"class_type": "LatentLayersAddLayer", "inputs": added},
        "edit": {
            "class_type": "LatentLayersLayeredEdit",
            "inputs": {
                "model": ["model", 0], "vae": ["model", 2], "conditioning": ["text", 0], "image": ["scene", 0],
                "layers": ["layer", 0], **settings,
            },
        },
        "source": {"class_type": "PreviewImage", "inputs": {"images": ["scene", 0]}},
        "truth": {"class_type": "PreviewImage", "inputs": {"images": ["scene", 2]}},
        "result": {"class_type": "PreviewImage", "inputs": {"images": ["edit", 0]}},
        "before": {"class_type": "MaskToImage", "inputs": {"mask": ["scene", 1]}},
        "mask": {"class_type": "PreviewImage", "inputs": {"images": ["before", 0]}},
        "masks": {"class_type": "MaskToImage", "inputs": {"mask": ["edit", 1]}},
        "places": {"class_type": "PreviewImage", "inputs": {"images": ["masks", 0]}},
    }  # fmt: skip


def picture(client, result, node):
    """An output's first picture, float (H, W, 3) in [0, 1]."""
    (reference, *_) = result.outputs[node]["images"]
    return np.asarray(Image.open(io.BytesIO(client.image(reference))).convert("RGB"), np.float64) / 255


def psnr(a, b, area):
    return -10 * np.log10(((a - b)[area] ** 2).mean())


def evaluations(server, position):
    """What ran since `position` of the log: [(node, evaluations)]."""
    return [(name, int(count)) for name, count in EVALUATIONS.findall(server.log_text()[position:])]


def test_a_move_is_right_and_everything_else_is_untouched(client):
    result = client.run(graph())
    source, truth, edited = (picture(client, result, name) for name in ("source", "truth", "result"))
    changed = np.abs(source - truth).max(2) > 0.02
    assert psnr(edited, truth, changed) > psnr(source, truth, changed) + 8
    place, before = (picture(client, result, name).max(2) > 0.5 for name in ("places", "mask"))
    # away from both places not one pixel differs
    away = np.logical_not(ndimage.binary_dilation(place | before, np.ones((3, 3)), iterations=7))
    assert np.abs(edited - source)[away].max() == 0.0
    assert psnr(edited, truth, place) > 20


def test_another_move_runs_only_the_tail(server, client):
    client.run(graph("45, -21"))
    position = len(server.log_text())
    client.run(graph("40, -16"))  # whole latent cells: no inversion at all
    assert evaluations(server, position) == [("Sample", STEPS - FILLED)]
    position = len(server.log_text())
    client.run(graph("41, -16"))
    assert evaluations(server, position) == [("Invert", STEPS - FILLED), ("Sample", STEPS - FILLED)]
    position = len(server.log_text())
    first = client.run(graph("41, -16"))
    assert evaluations(server, position) == []
    assert set(first.cached) >= {"edit", "model", "scene"}


def test_layers_keep_their_own_pixels(server, client):
    result = client.run(graph("40, -16"))
    source, kept = picture(client, result, "source"), picture(client, result, "result")
    # at the rim colours are taken from further inside
    solid: Any = ndimage.binary_erosion(picture(client, result, "mask").max(2) == 1, iterations=2)
    there = np.roll(solid, (-16, 40), (0, 1))
    assert np.array_equal(kept[there], np.roll(source, (-16, 40), (0, 1))[there])
    position = len(server.log_text())
    blended = picture(client, client.run(graph("40, -16", keep_pixels=False)), "result")
    assert sum(count for _, count in evaluations(server, position)) <= STEPS - FILLED  # the tail at most
    assert not np.array_equal(blended[there], kept[there])
    ring, within, filled = (
        np.asarray(ndimage.binary_dilation(mask, iterations=n)) for mask, n in ((there, 7), (there, 4), (solid, 12))
    )
    near = ring & np.logical_not(within) & np.logical_not(filled)  # what was filled is nobody's own
    assert near.any()
    lost, left = (np.abs(pixels - source)[near].mean() for pixels in (blended, kept))
    assert left < 0.7 * lost


def test_the_cost_of_a_first_edit(server, client):
    position = len(server.log_text())
    client.run(graph("37, 5", scene={"seed": 11}))
    costs = evaluations(server, position)
    tail = STEPS - FILLED
    assert sorted(costs) == sorted([("Invert", STEPS), ("Sample", 2 * FILLED), ("Invert", tail), ("Sample", tail)])


def test_duplicates_need_no_filling(server, client):
    position = len(server.log_text())
    client.run(graph("0, 0; 48, 16", scene={"seed": 12}))
    assert sum(count for _, count in evaluations(server, position)) == 2 * (STEPS - FILLED)


@pytest.mark.parametrize("changes", [{}, {"scale_x": 1.3, "rotation": 30.0}, {"moves": "40, -16"}])
def test_the_benchmark_does_what_the_node_does(client, changes):
    """What is measured in batches is the node's own result, to the rounding of a picture file."""
    result = picture(client, client.run(graph(layer=changes)), "result")
    scene = draw_scene(21, 256, 256, 2, 1)
    moves = parse_moves(changes.get("moves", "45, -21"), 256, 256, "test")
    fields = {name: value for name, value in changes.items() if name != "moves"}
    with torch.inference_mode():
        layout = lay_out(scene.image, [Layer("thing", scene.mask, moves=moves, **fields)], 0.0195)
        ours = LayeredRun.start(Toy(), [layout], EditSettings(steps=STEPS)).finish([layout])
    assert np.abs(ours[0].numpy() - result).max() < 2 / 255


@pytest.mark.parametrize("size", [(384, 256), (256, 448), (200, 264)])
def test_pictures_that_are_not_square(client, size):
    result = client.run(graph("30, 10", size=size))
    source, truth, edited = (picture(client, result, name) for name in ("source", "truth", "result"))
    assert edited.shape == (size[1], size[0], 3)
    changed = np.abs(source - truth).max(2) > 0.02
    assert psnr(edited, truth, changed) > psnr(source, truth, changed) + 6


def test_sides_that_are_no_multiples_of_a_cell_keep_their_last_pixels(client):
    cropped = graph("24, 8")
    cropped["crop"] = {
        "class_type": "ImageCrop",
        "inputs": {"image": ["scene", 0], "width": 251, "height": 253, "x": 0, "y": 0},
    }
    cropped["cut"] = {
        "class_type": "CropMask",
        "inputs": {"mask": ["scene", 1], "width": 251, "height": 253, "x": 0, "y": 0},
    }
    cropped["edit"]["inputs"]["image"] = ["crop", 0]
    cropped["layer"]["inputs"]["mask"] = ["cut", 0]
    result = client.run(cropped)
    source, edited = picture(client, result, "source")[:253, :251], picture(client, result, "result")
    assert edited.shape == (253, 251, 3)
    assert np.abs(edited - source)[248:].max() == 0 and np.abs(edited - source)[:, 248:].max() == 0


def test_the_layout_is_shown_before_anything_is_sampled(client):
    events = []
    result = client.run(graph("33, 3", scene={"seed": 13}), events.append)
    assert result.outputs["edit"]["images"]  # the node's own preview
    bars = [(event.value, event.maximum) for event in events if event.node == "LatentLayersLayeredEdit"]
    total = STEPS + FILLED + 2 * (STEPS - FILLED)  # inversion, filling, the layer's inversion, the rest
    values = [value for value, maximum in bars if maximum == total]
    assert values == sorted(values) and values[-1] == total and len(values) > 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moves": "12px, 3"}, "is not a number"),
        ({"moves": "900, 0"}, "takes it out of the frame"),
        ({"moves": "0, 0"}, "no layer is removed, moved or changed"),
        ({"layer": {"mask": ["none", 0]}}, "mask is empty"),
        ({"layer": {"mask": ["wide", 0]}}, "another shape"),
    ],
)
def test_bad_input_is_named_before_any_work(server, client, changes, message):
    bad = graph(**changes, scene={"moves": ""})
    solid = {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 256, "height": 256}}
    bad["none"] = solid
    bad["wide"] = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 512, "height": 256}}
    position = len(server.log_text())
    with pytest.raises(GraphError, match=message):
        client.run(bad)
    assert evaluations(server, position) == []
