"""A coding agent's day: write a package, see its tests fail, repair it, install it, run it."""

from e2b_code_interpreter import Sandbox

PROJECT = "/home/user/roman"

FILES = {
    "pyproject.toml": """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "roman"
version = "1.0"
scripts = { roman = "roman:main" }

[tool.setuptools]
py-modules = ["roman"]
""",
    "roman.py": """\
import sys

NUMERALS = [(1000, "M"), (500, "D"), (100, "C"), (50, "L"), (10, "X"), (5, "V"), (1, "I")]


def roman(number):
    out = ""
    for value, numeral in NUMERALS:
        while number >= value:
            out, number = out + numeral, number - value
    return out


def main():
    print(roman(int(sys.argv[1])))
""",
    "test_roman.py": """\
import pytest
from roman import roman


@pytest.mark.parametrize(("number", "expected"), [(3, "III"), (4, "IV"), (1994, "MCMXCIV")])
def test_roman(number, expected):
    assert roman(number) == expected
""",
}

# What a model would write once it had read the failures.
REPAIRED = '(1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")'


def run(sandbox, command):
    """A step in the shell; its output and whether it went well."""
    execution = sandbox.run_code(f"cd {PROJECT} && {command}", language="bash")
    return "".join(execution.logs.stdout + execution.logs.stderr), execution.error is None


def main():
    with Sandbox.create() as sandbox:
        for name, content in FILES.items():
            sandbox.files.write(f"{PROJECT}/{name}", content)

        output, well = run(sandbox, "python3 -m pytest -q --tb=line")
        print("first tests:", "passed" if well else output.strip().splitlines()[-1])

        source = sandbox.files.read(f"{PROJECT}/roman.py")
        wrong = source[source.index("(1000") : source.index("]\n")]
        sandbox.files.write(f"{PROJECT}/roman.py", source.replace(wrong, REPAIRED))
        output, well = run(sandbox, "python3 -m pytest -q --tb=line")
        print("after the repair:", "passed" if well else output)

        output, well = run(sandbox, "pip install --quiet --no-index --no-build-isolation .")
        if not well:
            raise SystemExit(output)
        print("installed; 2026 is", run(sandbox, "roman 2026")[0].strip())
        # A new context finds the package, too.
        context = sandbox.create_code_context(cwd="/tmp")
        print("imported; 49 is", sandbox.run_code("from roman import roman; roman(49)", context=context).text)


if __name__ == "__main__":
    main()
