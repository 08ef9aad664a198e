"""Moving an object in the page: run, change the move, run again; only what depends on it runs."""

import re

from .pages import complaints, open_template, screenshot, unknown_nodes

EVALUATIONS = re.compile(r"Latent Layers [\w ]+: (\d+) model evaluations")
SHOWN = "app.graph.nodes.find(n => n.title === 'Result').imgs?.[0]?.src"


def run(page, server, before):
    """Press Run, wait for another picture than `before`, and return it with the evaluations that it took."""
    position = len(server.log_text())
    page.get_by_test_id("queue-button").click()
    page.wait_for_function(f"before => {{ const src = {SHOWN}; return src && src !== before }}", arg=before)
    page.wait_for_function("app.graph.nodes.find(n => n.title === 'Result').imgs[0].naturalWidth === 256")
    counts = [int(count) for count in EVALUATIONS.findall(server.log_text()[position:])]
    return page.evaluate(SHOWN), counts


def move_by(page, moves):
    """Write into the widgets as a person would: the layer's, and the scene's that draws the truth."""
    page.evaluate(
        """moves => {
            for (const node of app.graph.nodes)
                for (const widget of node.widgets ?? [])
                    if (widget.name === 'moves') { widget.value = moves; widget.callback?.(moves) }
        }""",
        moves,
    )


def test_a_changed_move_runs_only_the_tail(page, server):
    page.set_default_timeout(300_000)
    open_template(page, "try_me_move_object")
    page.keyboard.press(".")
    move_by(page, "37, 21")
    first, counts = run(page, server, None)
    assert sum(counts) == 50 + 80 + 10 + 10
    page.wait_for_timeout(1000)
    screenshot(page, "try_me_move_object_done")
    move_by(page, "40, 24")  # whole latent cells
    second, counts = run(page, server, first)
    assert counts == [10]
    move_by(page, "41, 20")
    _, counts = run(page, server, second)
    assert counts == [10, 10]
    assert complaints(page) == [] and unknown_nodes(page) == []
