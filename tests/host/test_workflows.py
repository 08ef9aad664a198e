"""The graph files are what the builder writes, for the page and for the API alike, and they run."""

import json

import build_graphs
import numpy as np
import pack
import pytest
from demo import JOBS, run_job
from host_client import Client
from host_server import temporary_server
from PIL import Image


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
