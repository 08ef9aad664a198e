"""The blueprints are what the builder writes, whole in themselves, listed by the host, and they work."""

import io
import json

import build_blueprints
import numpy as np
import pytest
from build_blueprints import BLUEPRINTS, INPUT, OUTPUT
from host_client import Client
from host_server import temporary_server
from PIL import Image

STEPS = 10  # enough to tell right from wrong, quick enough for a test
MATCHED = "COMFY_MATCHTYPE_V3"  # as the type that is connected
NODES_OF_THE_PAGE = {"MarkdownNote"}


@pytest.fixture(scope="module")
def server():
    with temporary_server("test-blueprints") as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    return Client(server.url)


@pytest.fixture(scope="module")
def info(client):
    return client.get("/object_info")


def read(name):
    return json.loads((build_blueprints.HERE / f"{name}.json").read_text(encoding="utf-8"))


def test_files_are_in_step_with_the_nodes(info):
    """A changed default, a new input or an edit of a file shows here: run build_blueprints.py again."""
    written = build_blueprints.files(info)
    for path, text in written.items():
        assert path.read_text(encoding="utf-8") == text, path.name
    assert sorted(build_blueprints.HERE.iterdir()) == sorted(written)


def test_the_host_lists_and_serves_them(client):
    listed = {
        entry["name"]: key
        for key, entry in client.get("/global_subgraphs").items()
        if entry["info"]["node_pack"] == "custom_nodes.latent-layers"
    }
    assert sorted(listed) == sorted(BLUEPRINTS)
    for name, key in listed.items():
        assert json.loads(client.get(f"/global_subgraphs/{key}")["data"]) == read(name)


def test_no_two_share_an_id():
    pages = [read(name) for name in BLUEPRINTS]
    definitions = [page["definitions"]["subgraphs"][0] for page in pages]
    ids = [entry["id"] for entry in [*pages, *definitions]]
    ids += [slot["id"] for definition in definitions for slot in (*definition["inputs"], *definition["outputs"])]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_the_one_node_has_the_slots_and_widgets_of_its_definition(name):
    page = read(name)
    (outer,), (definition,) = page["nodes"], page["definitions"]["subgraphs"]
    assert outer["type"] == definition["id"] and outer["title"] == definition["name"] == name
    for side in ("inputs", "outputs"):
        assert [(slot["name"], slot["type"]) for slot in outer[side]] == [
            (slot["name"], slot["type"]) for slot in definition[side]
        ]
    widgets = [slot for slot in outer["inputs"] if "widget" in slot]
    assert len(widgets) == len(outer["widgets_values"])
    assert outer["inputs"][-len(widgets) :] == widgets  # sockets first
    assert [slot["widget"]["name"] for slot in widgets] == [slot["name"] for slot in widgets]


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_all_nodes_are_known_and_all_links_consistent(info, name):
    definition = read(name)["definitions"]["subgraphs"][0]
    nodes = {node["id"]: node for node in definition["nodes"]}
    links = {link["id"]: link for link in definition["links"]}
    assert {node["type"] for node in nodes.values()} <= set(info) | NODES_OF_THE_PAGE
    assert len(nodes) == len(definition["nodes"]) and len(links) == len(definition["links"])
    assert definition["state"]["lastNodeId"] == max(nodes) and definition["state"]["lastLinkId"] == max(links)

    for number, link in links.items():
        origin = slot_at(definition["inputs"] if link["origin_id"] == INPUT else
                         nodes[link["origin_id"]]["outputs"], link["origin_slot"])  # fmt: skip
        target = slot_at(definition["outputs"] if link["target_id"] == OUTPUT else
                         nodes[link["target_id"]]["inputs"], link["target_slot"])  # fmt: skip
        assert number in origin["linkIds" if link["origin_id"] == INPUT else "links"]
        assert target["linkIds"] == [number] if link["target_id"] == OUTPUT else target["link"] == number
        assert link["type"] == origin["type"]
        assert origin["type"] == target["type"] or MATCHED in (origin["type"], target["type"])

    mentioned = [number for slot in definition["inputs"] for number in slot["linkIds"]]
    mentioned += [number for node in nodes.values() for slot in node["outputs"] for number in slot["links"]]
    assert sorted(mentioned) == sorted(links)
    targets = [slot["link"] for node in nodes.values() for slot in node["inputs"] if slot["link"] is not None]
    targets += [number for slot in definition["outputs"] for number in slot["linkIds"]]
    assert sorted(targets) == sorted(links)


def slot_at(entries, number):
    assert 0 <= number < len(entries)
    return entries[number]


def toy_graph(info, name, size, **widgets):
    """The blueprint's inside, fed with the toy model and a toy scene; what it returns is saved."""
    blueprint = BLUEPRINTS[name]()
    for promoted in blueprint.widgets:
        if promoted.name in widgets:
            promoted.node.inputs[promoted.widget] = widgets.pop(promoted.name)
    assert not widgets
    inside = build_blueprints.api(info, blueprint)
    sources = {"model": ["toy", 0], "clip": ["toy", 1], "vae": ["toy", 2], "image": ["scene", 0], "mask": ["scene", 1]}
    for node in inside.values():
        for key, value in node["inputs"].items():
            if isinstance(value, list) and value[0] == str(INPUT):
                node["inputs"][key] = sources[list(blueprint.inputs)[value[1]]]
    scene = {"seed": 9, "width": size[0], "height": size[1], "objects": 2, "object": 1, "moves": ""}
    image, mask = ([str(port.node.id), port.slot] for port in blueprint.outputs.values())
    composites = [node for node in inside.values() if node["class_type"] == "ImageCompositeMasked"]
    before = composites[0]["inputs"]["destination"] if composites else ["scene", 0]
    return {
        **inside,
        "toy": {"class_type": "LatentLayersToyModel", "inputs": {}},
        "scene": {"class_type": "LatentLayersToyScene", "inputs": scene},
        "picture": {"class_type": "MaskToImage", "inputs": {"mask": mask}},
        **{
            title: {"class_type": "PreviewImage", "inputs": {"images": port}}
            for title, port in {
                "before": before, "after": image, "mask": ["picture", 0], "truth": ["scene", 2],
            }.items()
        },
    }  # fmt: skip


def pictures(client, graph):
    """The graph's previews by title, float (H, W, 3) in [0, 1]."""
    outputs = client.run(graph).outputs
    return {
        title: np.asarray(Image.open(io.BytesIO(client.image(outputs[title]["images"][0]))).convert("RGB"), float) / 255
        for title in ("before", "after", "mask", "truth")
    }


@pytest.mark.parametrize("name", ["Remove Object", "Zoom Out", "Pan"])
def test_the_area_is_filled_and_the_rest_untouched(client, info, name):
    # from black, what is filled shows; the default fill is near the result already
    widgets = {} if name == "Remove Object" else {"fill": "black"}
    seen = pictures(client, toy_graph(info, name, (256, 256), steps=STEPS, grow=5, **widgets))
    inside = seen["mask"].max(2) > 0
    assert 0.01 < inside.mean() < 0.8
    difference = np.abs(seen["after"] - seen["before"])
    assert difference[~inside].max() == 0 and difference[inside].mean() > 0.02
    if name == "Remove Object":
        error, untouched = (((seen[which] - seen["truth"])[inside] ** 2).mean() for which in ("after", "before"))
        assert error < untouched / 10


def test_an_object_is_moved(client, info):
    seen = pictures(client, toy_graph(info, "Move Object", (256, 256), steps=STEPS, moves="45, -21"))
    assert seen["mask"].max() == 1
    assert np.abs(seen["after"] - seen["before"]).max() > 0.2


@pytest.mark.parametrize("name", ["Remove Object", "Pan"])
def test_sides_are_fitted_to_whole_cells(client, info, name):
    graph = toy_graph(info, name, (256, 256), steps=2, grow=5)
    crop = {"width": 251, "height": 253, "x": 0, "y": 0}
    graph["cropped"] = {"class_type": "ImageCrop", "inputs": {"image": ["scene", 0], **crop}}
    graph["cut"] = {"class_type": "CropMask", "inputs": {"mask": ["scene", 1], **crop}}
    for node in graph.values():
        if node["class_type"] == "ResizeImageMaskNode":
            node["inputs"]["input"] = {0: ["cropped", 0], 1: ["cut", 0]}[node["inputs"]["input"][1]]
    seen = pictures(client, graph)
    assert seen["after"].shape == seen["mask"].shape == (248, 248, 3)
