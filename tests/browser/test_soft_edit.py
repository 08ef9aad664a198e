"""A soft edit in the page: run, edit the table of word timings, run again."""

from .pages import complaints, open_template, screenshot, unknown_nodes
from .test_move import run

TABLE = """app.graph.nodes.find(n => n.title === 'Table').widgets
    .map(w => String(w.value)).find(text => text.includes(' tau '))"""
WORD_TIMINGS = "LatentLayersWordTimings"


def overrule(page, text):
    """Write into the node's own field, as a person who copies the table there and changes it."""
    page.evaluate(
        """([kind, text]) => {
            const node = app.graph.nodes.find(n => n.type === kind)
            const widget = node.widgets.find(w => w.name === 'taus')
            widget.value = text
            widget.callback?.(text)
        }""",
        [WORD_TIMINGS, text],
    )


def taus(table):
    """Word -> tau of the lines of a table."""
    lines = [line.split() for line in table.splitlines() if " tau " in line]
    return {words[0]: float(words[-1]) for words in lines}


def test_an_edited_table_of_timings_is_what_runs(page, server):
    page.set_default_timeout(300_000)
    open_template(page, "try_me_change_adjective")
    page.keyboard.press(".")
    first, counts = run(page, server, None)
    assert sorted(counts) == [1, 1, 50, 3 * 50]  # both texts are read
    page.wait_for_timeout(1500)
    screenshot(page, "try_me_change_adjective_done")
    found = taus(page.evaluate(TABLE))
    assert found["yellow"] == 0 and 0 < found["striped"] < 1  # the new word, and one that stays

    edited = page.evaluate(TABLE).replace(f"tau {found['striped']:.2f}", "tau 0.00")
    overrule(page, edited)
    second, again = run(page, server, first)
    assert second != first and sorted(again) == [1, 1, 3 * 50]  # the picture's own way to noise is known
    assert taus(page.evaluate(TABLE)) == taus(edited) and taus(page.evaluate(TABLE))["striped"] == 0
    assert complaints(page) == [] and unknown_nodes(page) == []
