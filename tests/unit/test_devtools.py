"""The command-line tools' own logic: stages, seeds, messages, progress, figures."""

import argparse
import io
import json
import math
import re
import subprocess
import sys

import bench
import demo
import graph_file
import host_client
import numpy as np
import pack
import pytest
import run_tests
import sheet
import terminal
import write_figures

# run_tests


def words(arguments):
    return [stage.title for stage in run_tests.select(arguments)]


def test_all_stages_run_in_order():
    assert words([]) == ["ruff check", "ruff format", "pyright", "tests/unit", "tests/host", "tests/browser"]


def test_stages_can_be_chosen():
    assert words(["host"]) == ["tests/host"]
    assert words(["lint", "unit"]) == ["ruff check", "ruff format", "tests/unit"]


def test_other_arguments_go_to_pytest_alone():
    (stage,) = run_tests.select(["unit", "-k", "host"])
    assert stage.command[-2:] == ("-k", "host")
    assert words(["-k", "name"]) == ["tests/unit", "tests/host", "tests/browser"]


def test_a_named_file_runs_alone():
    (stage,) = run_tests.select(["tests/host/test_x.py::test_y", "-x"])
    assert stage.title == "tests/host"
    assert stage.command[-3:] == ("pytest", "tests/host/test_x.py::test_y", "-x")
    unit, host = run_tests.select(["tests/host/test_x.py", "tests/unit/test_z.py", "-x"])
    assert unit.command[-3:] == ("pytest", "tests/unit/test_z.py", "-x")
    assert host.command[-3:] == ("pytest", "tests/host/test_x.py", "-x")


def test_the_host_tier_whole_shares_the_cores_between_two_processes(monkeypatch):
    monkeypatch.setattr(run_tests, "cores", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (whole,) = run_tests.select(["host"])
    (part,) = run_tests.select(["host", "-k", "name"])
    (unit,) = run_tests.select(["unit"])
    assert whole.command[-4:] == run_tests.PROCESSES
    assert not any("-n" in stage.command for stage in (part, unit))
    assert run_tests.environment(whole)["OMP_NUM_THREADS"] == "3"
    assert "OMP_NUM_THREADS" not in run_tests.environment(part)
    monkeypatch.setattr(run_tests, "cores", lambda: 1)
    assert "-n" not in run_tests.select(["host"])[0].command


def fake_stage(code, word="unit"):
    return run_tests.Stage(word, "fake", (sys.executable, "-c", f"raise SystemExit({code})"))


def test_a_failed_stage_fails_the_run_but_not_the_stages_after_it(monkeypatch, capfd):
    monkeypatch.setattr(run_tests, "select", lambda _: [fake_stage(3), fake_stage(0)])
    assert run_tests.main([]) == 1
    output = capfd.readouterr().out
    assert "FAILED (exit status 3)" in output
    assert output.count("=== fake") == 2
    assert " ok" in output


def test_a_tier_with_tests_of_which_none_ran_has_failed():
    none_found = fake_stage(run_tests.NO_TESTS)
    assert run_tests.run(none_found, filtered=False).status.startswith("FAILED")
    assert run_tests.run(none_found, filtered=True).status == "no tests"


def test_a_name_that_no_test_has_fails_the_run(monkeypatch, capfd):
    found = [run_tests.NO_TESTS, run_tests.NO_TESTS]
    monkeypatch.setattr(run_tests, "select", lambda _: [fake_stage(code) for code in found])
    assert run_tests.main(["-k", "typo"]) == 1
    assert "no test has that name" in capfd.readouterr().out
    found[1] = 0  # in one of the tiers is enough
    assert run_tests.main(["-k", "name"]) == 0


def test_a_stage_that_does_not_end_is_killed(monkeypatch):
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    processes, start = [], subprocess.Popen

    class Interrupted(start):
        def wait(self, timeout=None):
            if timeout is None and not processes:
                processes.append(self)
                assert self.stdout is not None
                self.stdout.readline()  # it is up
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: Interrupted(*a, **k, stdout=subprocess.PIPE))
    monkeypatch.setattr(run_tests, "PATIENCE", 0.2)
    with pytest.raises(KeyboardInterrupt):
        run_tests.run(run_tests.Stage("unit", "deaf", (sys.executable, "-c", deaf)), filtered=False)
    assert start.wait(processes[0], 10) != 0


# bench


def test_seed_ranges_include_both_ends():
    assert list(bench.seed_range("7-9")) == [7, 8, 9]
    assert list(bench.seed_range("7")) == [7]


@pytest.mark.parametrize("text", ["9-7", "a-b", "", "1-2-3"])
def test_bad_seed_ranges_are_named(text):
    with pytest.raises(argparse.ArgumentTypeError, match="range of seeds|empty"):
        bench.seed_range(text)


# host_client

GRAPH = {
    "1": {"class_type": "Slow", "inputs": {"sigmas": ["2", 0]}, "_meta": {"title": "My sampler"}},
    "2": {"class_type": "Fast", "inputs": {}},
}


def test_a_refused_graph_names_nodes_and_reasons():
    answer = {
        "error": {"message": "Prompt outputs failed validation", "details": ""},
        "node_errors": {"1": {"errors": [{"message": "Value too small", "details": "steps"}]}},
    }
    text = host_client.explain_refusal(answer, GRAPH)
    assert text.splitlines() == [
        "ComfyUI refused the graph: Prompt outputs failed validation",
        "  My sampler (Slow, node 1): Value too small: steps",
    ]


def test_a_failed_node_is_named_with_its_traceback():
    event = {"node_id": "2", "node_type": "Fast", "exception_message": "mask is empty", "traceback": ["  line 1\n"]}
    assert host_client.explain_failure("execution_error", event, GRAPH) == (
        "Fast (node 2) failed: mask is empty\n  line 1"
    )
    assert host_client.explain_failure("execution_interrupted", event, GRAPH) == "Fast (node 2) was interrupted."


def state(value, maximum, kind="running"):
    return {"value": value, "max": maximum, "state": kind}


def test_progress_counts_long_nodes_more_and_ends_at_one():
    tracker = host_client.Tracker(GRAPH)
    tracker.skip(["2", "unknown"])
    small = tracker.update({"1": state(0, 10)}).done
    half = tracker.update({"1": state(5, 10)})
    assert (half.node, half.value, half.maximum) == ("Slow", 5, 10)
    assert small < 0.1 < half.done < 0.9
    assert tracker.update({"1": state(10, 10, "finished")}).done == 1


def test_progress_of_an_expanded_node_is_shown_under_its_own_name():
    inner = {**state(1, 4), "display_node_id": "1"}
    step = host_client.Tracker(GRAPH).update({"1.0.5": inner})
    assert (step.node, step.done) == ("Slow", 0)


# terminal


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_redraws_one_line_on_a_terminal():
    screen = Screen()
    with terminal.ProgressBar("job", screen) as bar:
        bar.show(host_client.Progress("A node with a long name", 1, 4, 0.25))
        bar.show(host_client.Progress("", 0, 1, 1.0))
    first, last = screen.getvalue().split("\r")[1:]
    assert "25%" in first
    assert "A node with a long name 1/4" in first
    assert "100%" in last
    assert len(last.rstrip("\n")) == len(first)  # covers what was there


def test_a_log_file_gets_a_line_per_tenth():
    log = io.StringIO()
    with terminal.ProgressBar("job", log) as bar:
        for percent in range(101):
            bar.show(host_client.Progress("node", 0, 1, percent / 100))
    assert len(log.getvalue().splitlines()) == 11


# graph_file


def write_graph(tmp_path, graph):
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(graph))
    return path


def output(title, node_class="PreviewImage"):
    return {"class_type": node_class, "inputs": {}, "_meta": {"title": title}}


def test_outputs_are_found_by_title(tmp_path):
    path = write_graph(
        tmp_path, {"4": output("source"), "7": output("Result", "SaveImage"), "9": output("Result", "X")}
    )
    assert graph_file.output_nodes(graph_file.read_graph(path), ["Source", "Result"], path) == {
        "Source": "4",
        "Result": "7",
    }


def test_a_missing_or_doubled_output_is_named(tmp_path):
    path = write_graph(tmp_path, {"1": output("Mask"), "2": output("Mask")})
    graph = graph_file.read_graph(path)
    with pytest.raises(graph_file.GraphFileError, match="0 .* titled Truth"):
        graph_file.output_nodes(graph, ["Truth"], path)
    with pytest.raises(graph_file.GraphFileError, match="2 .* titled Mask"):
        graph_file.output_nodes(graph, ["Mask"], path)


@pytest.mark.parametrize(
    ("text", "words"), [("{", "is not JSON"), ("[]", "API form"), ('{"nodes": [], "links": []}', "API form")]
)
def test_a_file_that_is_no_graph_is_named(tmp_path, text, words):
    path = tmp_path / "graph.json"
    path.write_text(text)
    with pytest.raises(graph_file.GraphFileError, match=words):
        graph_file.read_graph(path)


def test_a_missing_graph_is_named(tmp_path):
    with pytest.raises(graph_file.GraphFileError, match=r"no graph .*none\.json"):
        graph_file.read_graph(tmp_path / "none.json")


# demo and sheet


def picture(value, height=4, width=6):
    return np.full((height, width, 3), value, np.uint8)


@pytest.fixture
def outcome(tmp_path):
    mask = picture(0)
    mask[:, :3] = 255
    result = picture(100)
    result[:, :3] = 60
    images = {"Source": picture(100), "Mask": mask, "Result": result, "Truth": picture(50)}
    return demo.Outcome(demo.Job("remove", tmp_path / "x.json"), images, 1.5, 100)


def test_psnr_is_taken_inside_the_mask(outcome):
    assert outcome.psnr_inside == pytest.approx(10 * math.log10(255**2 / 10**2))


def test_the_difference_is_taken_outside_the_mask(outcome):
    assert outcome.difference_outside == 0
    outcome.images["Result"][0, 5, 1] = 97  # darker than the source: must not wrap around in 8 bits
    assert outcome.difference_outside == 3


def test_psnr_of_equal_and_of_no_pixels():
    everything = np.ones((4, 6), bool)
    assert demo.psnr(picture(3), picture(3), everything) == math.inf
    assert math.isnan(demo.psnr(picture(3), picture(4), ~everything))


def test_the_nodes_reports_of_model_evaluations_are_added_up():
    log = "[INFO] Latent Layers Invert: 50 model evaluations in 6.1 s\nLatent Layers Sample: 75 model evaluations\n"
    log += "another pack: 7 model evaluations\n"
    assert [int(count) for count in demo.EVALUATIONS.findall(log)] == [50, 75]


def test_a_sheet_shows_every_picture_unchanged(outcome, tmp_path):
    demo.write_sheet([outcome, outcome], tmp_path / "new" / "demo.png")
    drawn = np.asarray(sheet.Image.open(tmp_path / "new" / "demo.png"))
    line = sheet.LABEL + sheet.GAP // 2
    for number in range(2):
        top = sheet.GAP + number * (4 + 2 * line + sheet.GAP) + 2 * line
        for column, role in enumerate(demo.ROLES):
            left = sheet.GAP + column * (6 + sheet.GAP)
            assert (drawn[top : top + 4, left : left + 6] == outcome.images[role]).all()
    assert (drawn[: sheet.GAP] == sheet.BACKGROUND).all()
    assert (drawn != sheet.BACKGROUND).any(axis=2)[sheet.GAP : sheet.GAP + line].any()  # a caption is there


def test_what_the_pack_needs_is_said_the_same_twice():
    """ComfyUI's manager installs requirements.txt, the registry reads pyproject.toml."""
    project = (pack.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.findall(r'"([^"]+)"', project.partition("dependencies = [")[2].partition("\n]")[0])
    lines = (pack.ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert listed and [line for line in lines if not line.startswith("#")] == listed


# write_figures


def test_sections_without_results_stay_as_they_are(tmp_path, monkeypatch):
    # tables are the benchmarks' own, which need the host
    monkeypatch.setattr(write_figures, "section_text", lambda section, figures: f"## {section.title}\n\n{figures}\n")
    (tmp_path / "model.json").write_text('progress\n{"weights_mib": 22.2}')
    page = "# Figures\n\nHead.\n\n## Removing an object\n\n38 dB\n\nby hand\n\n## The toy model\n\nold table\n"
    renewed = write_figures.document(tmp_path, page)
    assert renewed == page.replace("old table", "{'weights_mib': 22.2}")
    (tmp_path / "inversion.json").write_text('{"psnr_0": 50.0}')
    titles = [line for line in write_figures.document(tmp_path, page).splitlines() if line.startswith("## ")]
    assert titles == ["## Removing an object", "## There and back: inversion", "## The toy model"]
