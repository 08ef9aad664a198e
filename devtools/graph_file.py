"""Graph files in the host's API form: reading them and finding nodes by title."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Graph = dict[str, dict[str, Any]]


class GraphFileError(Exception):
    """A graph file is missing or is not what its reader needs; the message says what."""


def read_graph(path: Path) -> Graph:
    """Read a graph in API form. Raises GraphFileError."""
    try:
        graph = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GraphFileError(f"There is no graph {path}.") from None
    except ValueError as error:
        raise GraphFileError(f"{path} is not JSON: {error}") from error
    if not isinstance(graph, dict) or not all(isinstance(n, dict) and "class_type" in n for n in graph.values()):
        raise GraphFileError(f"{path} is not in API form (node id -> class_type, inputs).")
    return graph


def output_nodes(graph: Graph, titles: Iterable[str], path: Path) -> dict[str, str]:
    """Ids of the preview or save nodes with these titles (in any case).

    Raises GraphFileError when one is missing or there are two.
    """
    found: dict[str, list[str]] = {title: [] for title in titles}
    for key, node in graph.items():
        title = str((node.get("_meta") or {}).get("title", "")).strip().capitalize()
        if title in found and node["class_type"] in ("PreviewImage", "SaveImage"):
            found[title].append(key)
    for title, keys in found.items():
        if len(keys) != 1:
            raise GraphFileError(f"{path.name}: {len(keys)} PreviewImage or SaveImage nodes titled {title}, not one.")
    return {title: keys[0] for title, keys in found.items()}
