"""An artist's first visit: open a template, press Run, see the picture."""

import json

import pack
import pytest
from playwright.sync_api import TimeoutError

NAMES = ("try_me_remove_object", "remove_object")
SHOTS = pack.ROOT / "output" / "browser"


def open_template(page, name):
    """As a person does: the template browser, the pack's entry in it, the card."""
    dialog = page.get_by_test_id("template-workflows-content")
    try:
        dialog.wait_for(state="visible", timeout=8_000)  # by itself, on a server's very first visit
    except TimeoutError:
        page.get_by_role("button", name="Templates").first.click()
    page.get_by_text("latent-layers", exact=True).first.click()
    page.get_by_test_id(f"template-workflow-{name}").click()
    page.wait_for_function("app.graph.nodes.some(node => node.type.startsWith('LatentLayers'))")
    dialog.wait_for(state="hidden")


def screenshot(page, name):
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png")


def complaints(page):
    """What the page logged about the pack."""
    return [text for kind, text in page.messages if kind == "error" and "latent" in text.lower()]


def unknown_nodes(page):
    return page.evaluate(
        "app.graph.nodes.filter(n => n.has_errors || !(n.type in LiteGraph.registered_node_types)).map(n => n.type)"
    )


def prompt(page):
    return page.evaluate("app.graphToPrompt().then(prompt => prompt.output)")


@pytest.mark.parametrize("name", NAMES)
def test_a_template_opens_whole_and_is_the_graph_for_the_api(page, name):
    open_template(page, name)
    assert unknown_nodes(page) == []
    expected = json.loads((pack.ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    assert prompt(page) == expected
    page.keyboard.press(".")  # fit the graph into the view
    page.wait_for_timeout(1500)
    screenshot(page, f"{name}_opened")
    assert complaints(page) == []


def test_the_toy_template_runs_and_shows_its_result(page):
    open_template(page, "try_me_remove_object")
    page.keyboard.press(".")
    page.get_by_test_id("queue-button").click()
    page.wait_for_function(
        "app.graph.nodes.find(n => n.title === 'Result').imgs?.[0]?.naturalWidth === 256", timeout=300_000
    )
    page.wait_for_timeout(1500)
    screenshot(page, "try_me_remove_object_done")
    assert complaints(page) == [] and unknown_nodes(page) == []


def test_every_node_has_its_help_page_in_both_languages(page):
    nodes = [name for name in page.evaluate("Object.keys(LiteGraph.registered_node_types)") if "LatentLayers" in name]
    assert len(nodes) >= 7
    for node in nodes:
        for file in (f"{node}.md", f"{node}/zh.md"):
            text = page.evaluate(
                "url => fetch(url).then(answer => answer.ok ? answer.text() : '')",
                f"/extensions/latent-layers/docs/{file}",
            )
            assert text.startswith("# "), file
