"""Write the example graphs, each for the page (workflows/) and for the API (workflows/api/).

    python devtools/build_graphs.py                          the graphs
    python devtools/build_graphs.py --thumbnails             and run the toy graphs for their pictures
    python devtools/build_graphs.py --thumbnails pan resize  only these

Needs the environment that `python dev.py` sets up.
"""

import argparse
import io
import json
import sys
import uuid
from pathlib import Path
from typing import Any

import graphs_layers
import graphs_masks
import graphs_removal
import graphs_soft
import graphs_steps
import graphs_turns
from draw_graphs import Info
from graph_instances import for_api, on_page, with_blueprints
from host_client import Client
from host_server import HostServer, temporary_server
from pack import ROOT
from PIL import Image

HERE = ROOT / "workflows"
# checkpoints' graphs without a toy variant (no toy Segment Anything, no toy inpainting model) are shown with one that
# ends alike
LIKE = {"try_me_move_object": "points_to_layers", "try_me_edit_by_words": "edit_by_words_inpainting"}
TOY = "try_me_"  # the name of a graph that runs anywhere begins so; a checkpoint's has the same name without

GRAPHS = {
    **graphs_removal.GRAPHS,
    **graphs_layers.GRAPHS,
    **graphs_steps.GRAPHS,
    **graphs_masks.GRAPHS,
    **graphs_turns.GRAPHS,
    **graphs_soft.GRAPHS,
}


def files(info: Info) -> dict[Path, str]:
    """Every graph file and what is in it."""
    written = {}
    extended = with_blueprints(info)
    for name, graph in GRAPHS.items():
        drawing = graph(extended)
        page = {**on_page(info, drawing.page()), "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"latent-layers/{name}"))}
        written[HERE / f"{name}.json"] = as_text(page)
        written[HERE / "api" / f"{name}.json"] = as_text(for_api(info, drawing.api()))
    return written


def as_text(graph: dict[str, Any]) -> str:
    """JSON as it is kept in the files."""
    return json.dumps(graph, indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description="Write the example graphs.")
    parser.add_argument("--thumbnails", nargs="*", metavar="NAME", help="run the toy graphs for the pictures too")
    options = parser.parse_args(arguments)
    toys = [name.removeprefix(TOY) for name in GRAPHS if name.startswith(TOY)]
    if unknown := set(options.thumbnails or ()) - set(toys):
        parser.error(f"no toy graph is called {', '.join(sorted(unknown))}; choose from {', '.join(toys)}")
    with temporary_server("build") as server:
        for path, text in files(Client(server.url).get("/object_info")).items():
            path.write_text(text, encoding="utf-8")
        if options.thumbnails is not None:
            write_thumbnails(server, options.thumbnails or toys)


def write_thumbnails(server: HostServer, names: list[str]) -> None:
    """Before and after, side by side; a checkpoint's graph is shown with its toy graph's pictures."""
    client = Client(server.url)
    for name in GRAPHS:
        if not name.startswith(TOY) or name.removeprefix(TOY) not in names:
            continue
        graph = json.loads((HERE / "api" / f"{name}.json").read_text(encoding="utf-8"))
        outputs = client.run(graph).outputs
        titles = {node["_meta"]["title"]: key for key, node in graph.items()}
        pictures = [
            Image.open(io.BytesIO(client.image(outputs[titles[title]]["images"][0]))).convert("RGB")
            for title in ("Source", "Result")
        ]
        sheet = Image.new("RGB", (sum(p.width for p in pictures), pictures[0].height))
        sheet.paste(pictures[0], (0, 0))
        sheet.paste(pictures[1], (pictures[0].width, 0))
        for shown in {name, name.removeprefix(TOY), LIKE.get(name)} & set(GRAPHS):
            sheet.save(HERE / f"{shown}.jpg", quality=90)


if __name__ == "__main__":
    main(sys.argv[1:])
