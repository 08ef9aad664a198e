"""What a person does in the page, and what the page says."""

import pack
from playwright.sync_api import TimeoutError

SHOTS = pack.ROOT / "output" / "browser"


def open_template(page, name):
    """As a person does: the template browser, the pack's entry in it, the card."""
    dialog = page.get_by_test_id("template-workflows-content")
    try:
        dialog.wait_for(state="visible", timeout=8_000)  # by itself, on a server's very first visit
    except TimeoutError:
        page.get_by_role("button", name="Templates").first.click()
    page.get_by_text("latent-layers", exact=True).first.click()
    card = page.get_by_test_id(f"template-workflow-{name}")
    # a long list makes its cards as one scrolls, a search makes all that it finds
    page.get_by_placeholder("Search").last.fill(name.replace("_", " "))
    card.wait_for(timeout=30_000)
    card.click()
    page.wait_for_function("app.graph.nodes.some(node => node.type.startsWith('LatentLayers'))")
    dialog.wait_for(state="hidden")


def screenshot(page, name):
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png")


def complaints(page):
    """What the page logged about the pack."""
    return [text for kind, text in page.messages if kind == "error" and "latent" in text.lower()]


def unknown_nodes(page):
    """Red nodes, and nodes that the page does not know.

    Nodes that load a person's own files are red where those files are missing, as they are here.
    """
    return page.evaluate(
        """own => app.graph.nodes
            .filter(n => (n.has_errors && !own.includes(n.type)) || !(n.type in LiteGraph.registered_node_types))
            .map(n => n.type)""",
        ["CheckpointLoaderSimple", "CLIPLoader", "LoadImage"],
    )


def prompt(page):
    return page.evaluate("app.graphToPrompt().then(prompt => prompt.output)")
