"""An artist's first visit: open a template, press Run, see the picture."""

import json

import pack
import pytest

from .pages import complaints, open_template, prompt, screenshot, unknown_nodes

# one of each kind: all are drawn by the same builder, and an opened page takes its time
NAMES = (
    "try_me_remove_object",
    "remove_object",
    "pan",
    "move_object",
    "try_me_layered_poster",
    "compose_pictures",
    "plan_from_request",
    "try_me_move_step_by_step",
    "ten_turns",  # of one-node blueprints
    "soft_region",
)


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
