"""The server and client that the demo and the server tests stand on, with the real host."""

import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import demo
import host_client
import numpy as np
import pack
import pytest
from host_client import Client, ConnectionLost, GraphError
from host_server import HostServer, ServerError, temporary_server
from PIL import Image

INVERT = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 48, "batch_size": 1, "color": 0xFF0040}},
    "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
    "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}, "_meta": {"title": "Inverted"}},
}


@pytest.fixture(scope="module")
def server():
    with temporary_server("test-server") as running:
        yield running


@pytest.fixture
def client(server):
    return Client(server.url)


def with_inputs(key, **inputs):
    """The graph above with other inputs of one node."""
    return {**INVERT, key: {**INVERT[key], "inputs": {**INVERT[key]["inputs"], **inputs}}}


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_host_loads_the_pack(server):
    assert server.pack_failure() == ""
    assert "latent-layers" in server.log_text()


def test_a_graph_runs_and_its_image_comes_back(client):
    steps = []
    result = client.run(with_inputs("1", width=72), steps.append)
    assert not result.cached
    assert [step.node for step in steps if step.node] == ["EmptyImage", "ImageInvert", "PreviewImage"]
    assert steps[-1].done == 1
    image = np.asarray(Image.open(io.BytesIO(client.image(result.outputs["3"]["images"][0]))))
    assert image.shape == (48, 72, 3)
    assert (image == (0, 255, 0xFF - 0x40)).all()


def test_a_second_run_is_cached_and_has_its_output_all_the_same(client):
    client.run(INVERT)
    result = client.run(INVERT)
    assert sorted(result.cached) == ["1", "2", "3"]
    assert result.outputs["3"]["images"]


def test_refused_graphs_say_why(client):
    with pytest.raises(GraphError, match=r"EmptyImage \(node 1\): Value -3 smaller than min"):
        client.run(with_inputs("1", width=-3))
    with pytest.raises(GraphError, match="NoSuchNode"):
        client.run({"1": {"class_type": "NoSuchNode", "inputs": {}}})
    with pytest.raises(GraphError, match="no outputs"):
        client.queue({})


def test_a_graph_of_which_only_a_part_could_run_is_refused(client):
    broken = {"class_type": "LoadImageMask", "inputs": {"image": "none.png", "channel": "red"}}
    shown = {"class_type": "MaskPreview", "inputs": {"mask": ["4", 0]}}
    with pytest.raises(GraphError, match=r"(?s)some of its outputs.*LoadImageMask \(node 4\).*none\.png"):
        client.run({**with_inputs("1", width=80), "4": broken, "5": shown})


def test_a_node_that_fails_is_named(client):
    text = {"string": "text", "regex_pattern": "(", "replace": ""}
    options = {"case_insensitive": False, "multiline": False, "dotall": False, "count": 0}
    regex = {"class_type": "RegexReplace", "inputs": {**text, **options}}
    shown = {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}
    with pytest.raises(GraphError, match=r"(?s)RegexReplace \(node 1\) failed: .*unterminated subpattern.*execute"):
        client.run({"1": regex, "2": shown})


def image(color):
    return {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 24, "batch_size": 1, "color": color}}


def preview(title, node):
    return {"class_type": "PreviewImage", "inputs": {"images": [node, 0]}, "_meta": {"title": title}}


def test_the_demo_measures_a_job(server, tmp_path):
    square = {"value": 1.0, "width": 8, "height": 8}
    paste = {"destination": ["m", 0], "source": ["n", 0], "x": 4, "y": 6, "operation": "add"}
    composite = {"destination": ["s", 0], "source": ["e", 0], "x": 0, "y": 0, "resize_source": False, "mask": ["p", 0]}
    graph = {
        "s": image(0x646464),
        "e": image(0x3C3C3C),
        "t": image(0x323232),
        "m": {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 32, "height": 24}},
        "n": {"class_type": "SolidMask", "inputs": square},
        "p": {"class_type": "MaskComposite", "inputs": paste},
        "i": {"class_type": "MaskToImage", "inputs": {"mask": ["p", 0]}},
        "r": {"class_type": "ImageCompositeMasked", "inputs": composite},
        "1": preview("Source", "s"),
        "2": preview("Mask", "i"),
        "3": preview("Result", "r"),
        "4": preview("Truth", "t"),
    }
    path = tmp_path / "job.json"
    path.write_text(json.dumps(graph))
    outcome = demo.run_job(server, demo.Job("paste", path))
    assert (outcome.images["Mask"].max(axis=2) > 0).sum() == 64
    assert outcome.psnr_inside == pytest.approx(10 * math.log10(255**2 / 10**2))
    assert outcome.difference_outside == 0
    assert "PSNR inside the mask 28.1 dB, difference outside 0, UNet evaluations not reported" in outcome.line()


def test_it_works_inside_a_running_event_loop(client):
    async def inside():
        return client.run(INVERT)

    assert host_client._wait_for(inside()).outputs["3"]


def test_without_a_server_the_connection_is_lost():
    with pytest.raises(ConnectionLost, match="127.0.0.1:9"):
        Client("http://127.0.0.1:9").run(INVERT)


def test_a_host_that_ends_at_once_shows_its_log(tmp_path):
    with pytest.raises(ServerError, match="unrecognized arguments: --no-such-option"):
        HostServer(tmp_path, ["--no-such-option"]).start()


def test_a_slow_start_is_given_up_and_stopped(tmp_path):
    slow = HostServer(tmp_path, timeout=0.3)
    with pytest.raises(ServerError, match="did not answer within 0 s"):
        slow.start()
    assert not slow.is_running()


SERVE = """
import sys
sys.path.insert(0, sys.argv[1])
from host_server import temporary_server
with temporary_server("test-stop") as server:
    print(server._process.pid, server.folder, flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_to_the_caller_stops_the_host(name):
    command = [sys.executable, "-c", SERVE, str(pack.ROOT / "devtools")]

    def listen():  # a test run in the background of a shell has SIGINT ignored, and hands that down
        signal.signal(getattr(signal, name), signal.SIG_DFL)

    caller = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=listen)
    assert caller.stdout is not None
    pid, folder = caller.stdout.readline().split(maxsplit=1)
    host = int(pid)
    assert alive(host)
    caller.send_signal(getattr(signal, name))
    assert caller.wait(60) != 0
    assert not Path(folder.strip()).exists()
    deadline = time.monotonic() + 5
    while alive(host):
        assert time.monotonic() < deadline, "the host is still running"
        time.sleep(0.1)
