"""`dev.py demo`: run the example graphs in the real host and write output/demo.png.

A job is a graph in API form whose image outputs are titled Source, Mask, Result and
Truth. A further task joins the sheet as one more line in JOBS.
"""

import io
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pack
from graph_file import GraphFileError, output_nodes, read_graph
from host_client import Client, ConnectionLost, GraphError
from host_server import HostServer, ServerError, temporary_server
from PIL import Image
from sheet import Row, draw_sheet
from terminal import ProgressBar

ROLES = ("Source", "Mask", "Result", "Truth")
SHEET = pack.ROOT / "output" / "demo.png"
# What the pack's nodes write to the host's log when they have run a model.
EVALUATIONS = re.compile(r"Latent Layers .*?\b(\d+) model evaluations")


@dataclass(frozen=True)
class Job:
    """One row of the sheet: a name and a graph file."""

    name: str
    graph: Path


JOBS = tuple(Job(name, pack.ROOT / "workflows" / "api" / f"try_me_{name}_object.json") for name in ("remove", "move"))


@dataclass
class Outcome:
    """What one job gave."""

    job: Job
    images: dict[str, np.ndarray]  # by role, H x W x 3, 0..255
    seconds: float
    evaluations: int

    @property
    def psnr_inside(self) -> float:
        """PSNR of the result against the truth where the mask is not black, in dB."""
        return psnr(self.images["Result"], self.images["Truth"], self._inside())

    @property
    def difference_outside(self) -> int:
        """Largest difference of the result from the source where the mask is black, of 255."""
        outside = ~self._inside()
        change = np.abs(self.images["Result"].astype(int) - self.images["Source"].astype(int))
        return int(change[outside].max(initial=0))

    def line(self) -> str:
        """The figures in one line."""
        evaluations = str(self.evaluations) if self.evaluations else "not reported"
        return (
            f"{self.job.name}: PSNR inside the mask {self.psnr_inside:.1f} dB, "
            f"difference outside {self.difference_outside}, "
            f"UNet evaluations {evaluations}, {self.seconds:.1f} s"
        )

    def _inside(self) -> np.ndarray:
        return self.images["Mask"].max(axis=2) > 0


def psnr(image: np.ndarray, truth: np.ndarray, inside: np.ndarray) -> float:
    """PSNR in dB over the pixels of a boolean mask (H x W); inf when equal, nan for an empty mask."""
    if not inside.any():
        return float("nan")
    error = np.mean((image[inside].astype(np.float64) - truth[inside].astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def run_job(server: HostServer, job: Job) -> Outcome:
    """Run one job on a server that is up.

    Raises GraphFileError (file missing, or without the four titles), GraphError and
    ConnectionLost.
    """
    graph = read_graph(job.graph)
    nodes = output_nodes(graph, ROLES, job.graph)
    client = Client(server.url)
    logged = len(server.log_text())
    with ProgressBar(job.name) as bar:
        result = client.run(graph, bar.show)
    images = {role: _fetch(client, result.outputs, nodes[role]) for role in ROLES}
    sizes = {role: image.shape for role, image in images.items()}
    if len(set(sizes.values())) > 1:
        raise GraphFileError(f"{job.graph.name}: its four images differ in size: {sizes}")
    evaluations = sum(int(count) for count in EVALUATIONS.findall(server.log_text()[logged:]))
    return Outcome(job, images, result.seconds, evaluations)


def _fetch(client: Client, outputs: dict, node: str) -> np.ndarray:
    data = client.image(outputs[node]["images"][0])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def write_sheet(outcomes: Sequence[Outcome], path: Path) -> None:
    """Draw the outcomes, one row each, into a PNG file."""
    rows = [Row(outcome.line(), [(role, outcome.images[role]) for role in ROLES]) for outcome in outcomes]
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_sheet(rows).save(path)


def main() -> int:
    """Run all jobs; returns the exit status."""
    start = time.monotonic()
    try:
        for job in JOBS:
            read_graph(job.graph)  # a missing file should not cost the start of a server
        print("Starting ComfyUI ...", flush=True)
        with temporary_server("demo") as server:
            print(f"ComfyUI is up at {server.url} after {time.monotonic() - start:.1f} s")
            if server.pack_failure():
                raise ServerError(f"ComfyUI could not load the pack:\n{server.pack_failure()}")
            try:
                outcomes = [run_job(server, job) for job in JOBS]
            except ConnectionLost as error:
                raise ServerError(f"{error}\nThe end of {server.log}:\n{server.log_tail()}") from error
    except (GraphFileError, GraphError, ServerError, TimeoutError) as error:
        print(f"\nThe demo stopped. {error}", file=sys.stderr)
        return 1
    write_sheet(outcomes, SHEET)
    print("\n".join(outcome.line() for outcome in outcomes))
    print(f"Wrote {SHEET.relative_to(pack.ROOT)} in {time.monotonic() - start:.1f} s")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nInterrupted; ComfyUI is stopped.", file=sys.stderr)
        sys.exit(130)
