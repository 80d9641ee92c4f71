"""Runs every program in `examples/` and checks what it prints."""

import os
import pathlib
import subprocess
import sys

import pytest

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
ANSWER = ["call_1: NameError: name 'statistics' is not defined", "call_2: 2.571", "The standard deviation is 2.571."]


def lines(*command, cwd, **variables):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, env=os.environ | variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def python(name, *words, cwd):
    return lines(sys.executable, EXAMPLES / name, *words, cwd=cwd)


def test_csv_to_plot(interpreter_server, tmp_path):
    printed = python("csv_to_plot.py", "plot.png", cwd=tmp_path)
    assert printed == [
        "Bergen: 540",
        "Turku: 300",
        "Visitors by month (persons), saved to plot.png",
        "Bergen: [120.0, 180.0, 240.0]",
        "Turku: [90.0, 60.0, 150.0]",
    ]
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_csv_to_plot_in_javascript(interpreter_server, tmp_path):
    # Node searches for modules in the directories above the program.
    modules = pathlib.Path(os.environ["COFFERDAM_NODE_MODULES"])
    program = modules / "csv_to_plot.mjs"
    program.write_text((EXAMPLES / program.name).read_text())
    printed = lines("node", program, "plot.png", cwd=tmp_path)
    assert printed == ["Visitors, saved to plot.png", "Bergen: 540", "Turku: 300", "columns: city, visitors"]
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_install_test_run(interpreter_server, tmp_path):
    printed = python("install_test_run.py", cwd=tmp_path)
    assert printed[0].startswith("first tests: 2 failed, 1 passed")
    assert printed[1:] == ["after the repair: passed", "installed; 2026 is MMXXVI", "imported; 49 is XLIX"]


@pytest.mark.parametrize("name", ["openai_function_call.py", "langchain_tool.py"])
def test_function_calls_of_a_model(interpreter_server, tmp_path, name):
    assert python(name, cwd=tmp_path) == ANSWER


def test_every_example_is_tested():
    source = pathlib.Path(__file__).read_text()
    programs = {path.name for path in EXAMPLES.iterdir() if path.suffix in {".py", ".mjs"}} - {"stub_model.py"}
    assert {name for name in programs if name not in source and f'"{name}"' not in source} == set()
