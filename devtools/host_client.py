"""Talk to a running host as its web page does: HTTP for requests, WebSocket for events."""

import asyncio
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp

Graph = Mapping[str, Mapping[str, Any]]  # the host's API form: node id -> class_type, inputs, _meta
T = TypeVar("T")


class GraphError(Exception):
    """The host refused a graph, or a node failed; the message names the nodes and reasons."""


class ConnectionLost(Exception):
    """The host does not answer (any more)."""


@dataclass
class Progress:
    """How far a running graph is."""

    node: str  # class of the node at work, "" between nodes
    value: float  # its own progress bar
    maximum: float
    done: float  # share of the whole graph, 0 to 1


@dataclass
class Result:
    """What a finished graph left behind."""

    prompt_id: str
    seconds: float = 0.0
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)  # of output nodes, by node id
    cached: list[str] = field(default_factory=list)  # ids of nodes that did not have to run


class Client:
    """One client of a host at `url`. Every method waits for the answer.

    All methods raise ConnectionLost when the host cannot be reached.
    """

    def __init__(self, url: str):
        self.url = url
        self.id = uuid.uuid4().hex

    def run(self, graph: Graph, on_progress: Callable[[Progress], None] | None = None, timeout: float = 600) -> Result:
        """Queue a graph, follow its events to the end and return its outputs.

        Raises GraphError when the host refuses the graph or a node fails or is
        interrupted, and TimeoutError after `timeout` seconds (the run is then cancelled).
        """
        return _wait_for(self._run(graph, on_progress or (lambda _: None), timeout))

    def queue(self, graph: Graph) -> str:
        """Queue a graph and return its id at once. Raises GraphError when the host refuses it."""
        return _wait_for(self._with_session(lambda session: self._queue(session, graph)))

    def get(self, path: str, **query: str) -> Any:
        """The JSON that a GET request returns, for example get("/object_info/KSampler")."""
        return _wait_for(self._with_session(lambda session: _get_json(session, path, query)))

    def image(self, reference: Mapping[str, str]) -> bytes:
        """The file of an image as node outputs name it: filename, subfolder, type."""
        return _wait_for(self._with_session(lambda session: _get_bytes(session, "/view", reference)))

    def interrupt(self) -> None:
        """Ask the host to stop the running graph."""
        return _wait_for(self._with_session(lambda session: _post(session, "/interrupt", {})))

    async def _with_session(self, action: Callable[[aiohttp.ClientSession], Coroutine[Any, Any, T]]) -> T:
        try:
            # trust_env stays off: a proxy has no business between us and the loopback interface.
            async with aiohttp.ClientSession(self.url) as session:
                return await action(session)
        except aiohttp.ClientConnectionError as error:
            raise ConnectionLost(f"No answer from {self.url}: {error}") from error

    async def _run(self, graph: Graph, report: Callable[[Progress], None], timeout: float) -> Result:
        async def follow(session: aiohttp.ClientSession) -> Result:
            start = time.monotonic()
            # Listening starts before queueing, so that no event is missed.
            async with session.ws_connect(f"/ws?clientId={self.id}", max_msg_size=0) as socket:
                result = Result(await self._queue(session, graph))
                try:
                    await asyncio.wait_for(_follow(socket, result, graph, report), timeout)
                except asyncio.TimeoutError:  # before Python 3.11 this is not the builtin TimeoutError
                    await _post(session, "/interrupt", {"prompt_id": result.prompt_id})
                    raise TimeoutError(f"The graph was not finished after {timeout:.0f} s.") from None
            result.seconds = time.monotonic() - start
            return result

        return await self._with_session(follow)

    async def _queue(self, session: aiohttp.ClientSession, graph: Graph) -> str:
        async with session.post("/prompt", json={"prompt": graph, "client_id": self.id}) as response:
            if response.status == 400:
                raise GraphError(explain_refusal(await response.json(), graph))
            response.raise_for_status()
            answer = await response.json()
        prompt_id = answer["prompt_id"]
        if answer.get("node_errors"):  # the host runs the outputs that it can; a part is no result for us
            await _post(session, "/queue", {"delete": [prompt_id]})
            await _post(session, "/interrupt", {"prompt_id": prompt_id})
            raise GraphError(explain_refusal(answer, graph))
        return prompt_id


async def _follow(
    socket: "aiohttp.ClientWebSocketResponse[bool]", result: Result, graph: Graph, report: Callable[[Progress], None]
) -> None:
    """Read events until the graph has ended, filling `result`.

    Outputs are read from the events: the host's history has them only a moment after
    it has announced the end.
    """
    tracker = Tracker(graph)
    async for message in socket:
        if message.type != aiohttp.WSMsgType.TEXT:
            continue  # binary messages are preview images
        event = message.json()
        kind, data = event["type"], event.get("data") or {}
        if data.get("prompt_id") != result.prompt_id:
            continue
        if kind == "execution_success":
            return
        if kind in ("execution_error", "execution_interrupted"):
            raise GraphError(explain_failure(kind, data, graph))
        if kind == "execution_cached":
            result.cached = list(data["nodes"])
            tracker.skip(result.cached)
        elif kind == "executed" and data.get("output"):
            result.outputs[data["node"]] = data["output"]
        elif kind == "progress_state":
            report(tracker.update(data["nodes"]))
    raise ConnectionLost("The host closed the connection before the graph was finished.")


class Tracker:
    """Adds up the progress of a graph's nodes.

    Nodes that walk a noise schedule count more than the others, which take no time.
    """

    def __init__(self, graph: Graph):
        self._graph = graph
        self._weights = {key: 25.0 if "sigmas" in node.get("inputs", {}) else 1.0 for key, node in graph.items()}
        self._shares = dict.fromkeys(graph, 0.0)

    def skip(self, nodes: list[str]) -> None:
        """Count nodes as done."""
        self._shares.update(dict.fromkeys((key for key in nodes if key in self._shares), 1.0))

    def update(self, states: Mapping[str, Mapping[str, Any]]) -> Progress:
        """Take over the host's progress_state of the nodes that have begun."""
        name, value, maximum = "", 0.0, 1.0
        for key, state in states.items():
            share = 1.0 if state["state"] == "finished" else state["value"] / max(state["max"], 1)
            if key in self._shares:  # nodes of an expanded graph have ids of their own
                self._shares[key] = share
            if state["state"] == "running":
                shown = self._graph.get(key) or self._graph.get(str(state.get("display_node_id"))) or {}
                name, value, maximum = str(shown.get("class_type", "")), state["value"], state["max"]
        done = sum(self._weights[key] * share for key, share in self._shares.items())
        return Progress(name, value, maximum, done / sum(self._weights.values()))


def explain_refusal(answer: Mapping[str, Any], graph: Graph) -> str:
    """The host's answer to a graph that it does not accept, as lines of text."""
    error = answer.get("error") or {"message": "some of its outputs cannot be made"}
    lines = [f"ComfyUI refused the graph: {_sentence(error)}"]
    for key, problem in (answer.get("node_errors") or {}).items():
        lines += [f"  {name(graph, key)}: {_sentence(entry)}" for entry in problem.get("errors", [])]
    return "\n".join(lines)


def explain_failure(kind: str, data: Mapping[str, Any], graph: Graph) -> str:
    """The host's event about a node that failed or was interrupted, as lines of text."""
    where = name(graph, str(data.get("node_id")), str(data.get("node_type", "?")))
    if kind == "execution_interrupted":
        return f"{where} was interrupted."
    trace = "".join(data.get("traceback") or []).rstrip()
    return f"{where} failed: {str(data.get('exception_message', '')).strip()}\n{trace}".rstrip()


def name(graph: Graph, key: str, node_class: str = "?") -> str:
    """A node as a reader of the graph knows it: title, class and id."""
    node = graph.get(key, {})
    node_class = str(node.get("class_type", node_class))
    title = (node.get("_meta") or {}).get("title")
    return f"{title} ({node_class}, node {key})" if title else f"{node_class} (node {key})"


def _sentence(error: Mapping[str, Any]) -> str:
    message, details = str(error.get("message", "")).strip(), str(error.get("details", "")).strip()
    return f"{message}: {details}" if details else message


async def _get_json(session: aiohttp.ClientSession, path: str, query: Mapping[str, str]) -> Any:
    async with session.get(path, params=query) as response:
        response.raise_for_status()
        return await response.json()


async def _get_bytes(session: aiohttp.ClientSession, path: str, query: Mapping[str, str]) -> bytes:
    async with session.get(path, params=query) as response:
        response.raise_for_status()
        return await response.read()


async def _post(session: aiohttp.ClientSession, path: str, body: Mapping[str, Any]) -> None:
    async with session.post(path, json=body) as response:
        response.raise_for_status()


def _wait_for(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also where this thread has a running loop (Playwright's)."""
    if not _has_running_loop():
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def _has_running_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
