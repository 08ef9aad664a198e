"""An edit by words in the page: run, change the words, run again; and the blueprints as the page takes them."""

import pytest

from .pages import complaints, open_template, prompt, screenshot, unknown_nodes
from .test_move import SHOWN, run

ROLES = "app.graph.nodes.find(n => n.title === 'Roles of the words').widgets?.map(w => String(w.value)).join(' ')"


def say(page, title, text):
    """Write into a text node as a person would."""
    page.evaluate(
        """([title, text]) => {
            const widget = app.graph.nodes.find(n => n.title === title).widgets[0]
            widget.value = text
            widget.callback?.(text)
        }""",
        [title, text],
    )


def test_other_words_make_another_picture(page, server):
    page.set_default_timeout(300_000)
    open_template(page, "try_me_edit_by_words")
    page.keyboard.press(".")
    first, counts = run(page, server, None)
    assert len(counts) == 3  # the mask, the inversion, the edit
    page.wait_for_timeout(1500)
    screenshot(page, "try_me_edit_by_words_done")
    roles = page.evaluate(ROLES)  # what goes is looked for in the source's words
    assert roles.startswith("source_text:") and "red +1" in roles
    say(page, "What it should show", "a blue star on a checkered background")
    second, again = run(page, server, first)
    assert second != first and len(again) == 2  # the picture's own way to noise is known
    page.wait_for_timeout(1500)
    screenshot(page, "try_me_edit_by_words_again")
    assert "red +1" in page.evaluate(ROLES)
    assert page.evaluate(SHOWN) == second
    assert complaints(page) == [] and unknown_nodes(page) == []


BLUEPRINTS = ("Remove Object", "Move Object", "Zoom Out", "Pan", "Edit By Words")


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_a_blueprint_is_one_node_of_the_library(page, name):
    """The page knows the blueprint, makes one node of it, and hands in what is inside with the widgets' values."""
    text = page.evaluate(
        """async name => {
            const listed = await (await fetch('/global_subgraphs')).json()
            const [key] = Object.entries(listed).find(
                ([, b]) => b.name === name && b.info.node_pack === 'custom_nodes.latent-layers')
            return (await (await fetch('/global_subgraphs/' + key)).json()).data
        }""",
        name,
    )
    page.evaluate("async text => { await app.loadGraphData(JSON.parse(text)) }", text)
    page.wait_for_function("app.graph.nodes.length === 1")
    assert unknown_nodes(page) == []
    titles = page.evaluate("app.graph.nodes.map(n => n.title)")
    assert titles == [name]
    widgets = page.evaluate("Object.fromEntries(app.graph.nodes[0].widgets.map(w => [w.name, w.value]))")
    assert widgets
    inside = prompt(page)
    assert any(node["class_type"].startswith("LatentLayers") for node in inside.values())
    page.evaluate(
        """() => {
            const widget = app.graph.nodes[0].widgets.find(w => typeof w.value === 'number')
            widget.value = widget.value + 1
            widget.callback?.(widget.value)
        }"""
    )
    changed = prompt(page)
    different = [
        (key, slot)
        for key, node in inside.items()
        for slot, value in node["inputs"].items()
        if changed[key]["inputs"][slot] != value
    ]
    assert len(different) == 1  # the one inner widget that it stands for
    screenshot(page, f"blueprint_{name.replace(' ', '_').lower()}")
    assert complaints(page) == []
