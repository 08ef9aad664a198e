"""The layer nodes by themselves: what they pass on, what they refuse."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from host_client import Client
from host_server import temporary_server
from PIL import Image

from latent_layers.fusion.fuse import fuse
from latent_layers.inversion.trajectory import Trajectory
from latent_layers.nodes.canvas import PanAndZoom
from latent_layers.nodes.layered import LayeredEdit, Remember, Value
from latent_layers.nodes.layers import AddLayer, FuseLayer, LayoutPreview, TransformLayer
from latent_layers.toyscenes.host import draw_scene

AS_IS = {"scale_x": 1.0, "scale_y": 1.0, "rotation": 0.0, "flip": "none"}


@pytest.fixture
def scene():
    return draw_scene(7, 256, 256, 2, 1)


def add(mask, layers=None, name="", remove=False, moves="0, 0", order=0, **more):
    return AddLayer.execute(mask, name, remove, moves, order=order, layers=layers, **{**AS_IS, **more})[0]


def trajectory(sigmas=(3.0, 1.0, 0.0), size=(32, 32), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Trajectory(sigmas, [torch.randn(1, 4, *size, generator=generator) for _ in sigmas])


def test_layers_are_chained_and_named(scene):
    one = add(scene.mask, moves="10%, -5%; 3, 4")
    two = add(scene.mask, layers=one, name=" logo ", remove=True, order=-1)
    assert [layer.name for layer in two] == ["layer 1", "logo"]
    assert two[0].moves == ((25.6, -12.8), (3.0, 4.0)) and two[1].moves == () and len(one) == 1
    assert add(scene.mask, flip="both")[0].flip_x and add(scene.mask, flip="vertical")[0].flip_y
    assert not add(scene.mask, flip="vertical")[0].flip_x


def test_a_layer_that_only_moves_by_cells_is_the_picture_itself(scene):
    image, mask, moves = TransformLayer.execute(scene.image, scene.mask, moves="16, -8; 0, 24", **AS_IS)
    assert torch.equal(image, scene.image) and torch.equal(mask, scene.mask) and moves == "16, -8; 0, 24"


def test_remainders_that_differ_need_a_canvas(scene):
    with pytest.raises(ValueError, match=r"Transform Layer: moves '16, 0; 3, 0' .* connect a canvas"):
        TransformLayer.execute(scene.image, scene.mask, moves="16, 0; 3, 0", **AS_IS)
    image, mask, moves = TransformLayer.execute(
        scene.image, scene.mask, moves="16, 0; 3, 0", canvas=scene.truth, **AS_IS
    )
    assert moves == "0, 0" and image.shape == scene.image.shape
    for right in (16, 3):
        there = torch.roll(scene.mask, right, dims=2) == 1
        assert bool((mask[there] > 0.99).all())
    untouched = mask[0] == 0
    assert torch.equal(image[0][untouched], scene.truth[0][untouched])


def test_pictures_of_odd_sides_are_cut_to_whole_cells(scene):
    image, mask = scene.image[:, :250, :253], scene.mask[:, :250, :253]
    for moves in ("16, 8", "5, 3"):
        for canvas in (None, scene.truth[:, :250, :253]):
            result = TransformLayer.execute(image, mask, moves=moves, canvas=canvas, **AS_IS)
            assert result[0].shape == (1, 248, 248, 3) and result[1].shape == (1, 248, 248)


@pytest.mark.parametrize("moves", ["16, 8", "5, 3"])
def test_pictures_in_half_precision(scene, moves):
    """As --fp16-intermediates makes them."""
    image, canvas = scene.image.half(), scene.truth.half()
    picture, mask, *_ = TransformLayer.execute(image, scene.mask, moves=moves, canvas=canvas, **AS_IS)
    want = TransformLayer.execute(image.float(), scene.mask, moves=moves, canvas=canvas.float(), **AS_IS)
    assert torch.equal(picture, want[0]) and torch.equal(mask, want[1])
    layers = add(scene.mask, moves=moves)
    assert torch.equal(LayoutPreview.execute(image, layers)[1], LayoutPreview.execute(image.float(), layers)[1])


def test_every_picture_of_a_batch_gets_the_layer(scene):
    images = torch.cat([scene.image, 0 * scene.image])
    both = TransformLayer.execute(images, scene.mask, layer_image=scene.image, moves="5, 3", **AS_IS)[0]
    for picture, background in zip(both, images, strict=True):
        one = TransformLayer.execute(background[None], scene.mask, layer_image=scene.image, moves="5, 3", **AS_IS)[0]
        assert torch.equal(picture, one[0])


def test_a_canvas_of_another_size_is_refused(scene):
    with pytest.raises(ValueError, match="canvas is 128x256, image 256x256"):
        TransformLayer.execute(scene.image, scene.mask, moves="3, 0", canvas=scene.truth[:, :, :128], **AS_IS)


def test_fuse_layer_is_the_equation(scene):
    canvas, layer = trajectory(seed=1), trajectory(seed=2)
    fused, area = FuseLayer.execute(canvas, layer, scene.mask, "16, 8; -8, 0")
    expected, expected_area = fuse(canvas, layer, scene.mask, [(2, 1), (-1, 0)])
    assert torch.equal(area, expected_area)
    assert all(torch.equal(a, b) for a, b in zip(fused.latents, expected.latents, strict=True))


def test_fuse_layer_takes_whole_cells_only(scene):
    with pytest.raises(ValueError, match=r"moves '12, 8' are not whole latent cells \(8 pixels\).*Transform Layer"):
        FuseLayer.execute(trajectory(), trajectory(), scene.mask, "12, 8")


def test_fuse_layer_needs_a_common_noise_level(scene):
    with pytest.raises(ValueError, match="no noise level in common.*same scheduler and steps"):
        FuseLayer.execute(trajectory(), trajectory((2.0, 0.5)), scene.mask, "8, 8")


def test_the_layout_shows_the_final_masks(scene):
    layers = add(scene.mask, moves="24, 0")
    preview, masks = LayoutPreview.execute(scene.image, layers)
    assert preview.shape == scene.image.shape and not torch.equal(preview, scene.image)
    assert torch.equal(masks[0, :, 24:], scene.mask[0, :, :-24])


def test_inner_nodes_say_that_they_are_inner():
    for node in (Value, Remember):
        assert node.define_schema().is_dev_only
    with pytest.raises(ValueError, match="part of Layered Edit"):
        Value.execute("typed by hand")


def test_defaults_do_something(scene):
    """Dropped into a graph, Pan And Zoom exposes something; Layered Edit has the paper's numbers."""
    given: dict[str, Any] = {entry.id: getattr(entry, "default", None) for entry in PanAndZoom.define_schema().inputs}
    del given["image"]
    image, exposed = PanAndZoom.execute(scene.image, **given)[:2]
    assert 0 < float(exposed.mean()) < 1 and image.shape == scene.image.shape
    edit = {entry.id: getattr(entry, "default", None) for entry in LayeredEdit.define_schema().inputs}
    assert (edit["steps"], edit["harmonize"], edit["guidance"], edit["mode"]) == (50, 0.2, 7.5, "multiply")


def test_layers_are_saved_and_come_back_through_the_server():
    scene = {"seed": 7, "width": 256, "height": 256, "objects": 2, "object": 1}
    layer = {"name": "thing", "remove": False, "moves": "30, 6", "order": 0, **AS_IS}
    save = {
        "scene": {"class_type": "LatentLayersToyScene", "inputs": scene},
        "layer": {"class_type": "LatentLayersAddLayer", "inputs": {"mask": ["scene", 1], **layer}},
        "look": {"class_type": "LatentLayersLayoutPreview", "inputs": {"image": ["scene", 0], "layers": ["layer", 0]}},
        "shown": {"class_type": "PreviewImage", "inputs": {"images": ["look", 0]}},
        "save": {
            "class_type": "LatentLayersSaveLayers",
            "inputs": {"image": ["scene", 0], "layers": ["layer", 0], "filename_prefix": "layers/edit"},
        },
        "name": {"class_type": "PreviewAny", "inputs": {"source": ["save", 0]}},
    }
    with temporary_server("test-layer-nodes") as server:
        client = Client(server.url)
        first = client.run(save)
        (name,) = first.outputs["name"]["text"]
        assert name.endswith(".layers.zip [output]")
        again = {
            "load": {"class_type": "LatentLayersLoadLayers", "inputs": {"file": name}},
            "look": {
                "class_type": "LatentLayersLayoutPreview",
                "inputs": {"image": ["load", 0], "layers": ["load", 1]},
            },
            "shown": {"class_type": "PreviewImage", "inputs": {"images": ["look", 0]}},
        }
        second = client.run(again)
        before, after = (np.asarray(Image.open(io.BytesIO(client.image(r.outputs["shown"]["images"][0]))))
                         for r in (first, second))  # fmt: skip
        assert np.array_equal(before, after)
        # the host numbers files of a folder alone from 1, each time
        names = set()
        for prefix in ("layers/edit", "layers/kept/", "layers/kept/"):
            save["save"]["inputs"] |= {"filename_prefix": prefix}
            save["layer"]["inputs"] |= {"name": f"thing {len(names)}"}
            names |= set(client.run(save).outputs["name"]["text"])
        assert len(names | {name}) == 4
