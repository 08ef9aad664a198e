"""The graph files are what the builder writes, for the page and for the API alike, and they run."""

import io
import json

import build_graphs
import numpy as np
import pack
import pytest
from demo import JOBS, run_job
from host_client import Client
from host_server import temporary_server
from PIL import Image

TOY_GRAPHS = [name for name in build_graphs.GRAPHS if name.startswith(build_graphs.TOY)]


@pytest.fixture(scope="module")
def server():
    with temporary_server("workflows") as running:
        yield running


def test_files_are_in_step_with_the_nodes(server):
    """A changed default, a new input or an edit of one file alone shows here: run build_graphs.py again."""
    for path, text in build_graphs.files(Client(server.url).get("/object_info")).items():
        assert path.read_text(encoding="utf-8") == text, path.name


def test_the_removal_graph_runs_and_leaves_the_rest_alone(server):
    outcome = run_job(server, JOBS[0])
    assert outcome.difference_outside == 0
    assert outcome.psnr_inside > 25
    assert outcome.evaluations == 50 + 90
    again = run_job(server, JOBS[0])  # queued again: everything comes from the host's cache
    assert np.array_equal(again.images["Result"], outcome.images["Result"])


def test_the_move_graph_is_near_the_truth_and_leaves_the_rest_alone(server):
    outcome = run_job(server, JOBS[1])
    assert outcome.difference_outside == 0
    assert outcome.psnr_inside > 25
    assert outcome.evaluations == 50 + 80 + 10 + 10


@pytest.mark.parametrize("name", sorted(set(TOY_GRAPHS) - {job.graph.stem for job in JOBS}))
def test_every_toy_graph_runs_and_changes_what_it_may(server, name):
    client = Client(server.url)
    graph = json.loads((pack.ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    outputs = client.run(graph).outputs
    pictures = {}
    for key, node in graph.items():
        if key in outputs and node["class_type"] in ("SaveImage", "PreviewImage"):
            content = client.image(outputs[key]["images"][0])
            with Image.open(io.BytesIO(content)) as picture:
                pictures[node["_meta"]["title"]] = np.asarray(picture.convert("RGB")).astype(int)
    source, result = pictures["Source"], pictures["Result"]
    if name == "try_me_strength_sweep":  # side by side, from the source to the whole edit
        first, *_, result = np.split(result, 4, axis=1)
        assert np.abs(first - source).mean() < 4 < np.abs(result - source).mean()
    changed = np.abs(result - source).max(2) > 0
    assert result.shape == source.shape and changed.mean() > 0.01
    if "Truth" in pictures:
        assert np.abs(result - pictures["Truth"]).mean() < 0.5 * np.abs(source - pictures["Truth"]).mean()
    if "Canvas" in pictures:  # a pan or a zoom-out: what was not exposed is the canvas
        assert not np.abs(result - pictures["Canvas"])[pictures["Mask"].max(2) == 0].any()
    elif "Mask" in pictures:
        assert not changed[pictures["Mask"].max(2) == 0].any()


def test_the_template_list_has_graphs_and_thumbnails(server):
    listed = Client(server.url).get("/workflow_templates")
    assert sorted(listed["latent-layers"]) == sorted(build_graphs.GRAPHS)
    for name in build_graphs.GRAPHS:
        with Image.open(pack.ROOT / "workflows" / f"{name}.jpg") as thumbnail:
            assert thumbnail.size[0] >= 512


def test_api_files_have_only_known_nodes(server):
    known = Client(server.url).get("/object_info")
    for name in build_graphs.GRAPHS:
        graph = json.loads((pack.ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
        assert {node["class_type"] for node in graph.values()} <= set(known)
