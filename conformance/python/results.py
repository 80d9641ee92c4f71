"""Writes one JSON line for each test into `$COFFERDAM_RESULTS`: client package, its version, test and outcome.

`cargo xtask conformance` joins the lines of all suites into `target/conformance-results.json`.
"""

import importlib.metadata
import json
import os
import re

# Import names of the client packages that tests use.
PACKAGES = {"e2b": "e2b", "e2b_code_interpreter": "e2b-code-interpreter"}


def clients(item):
    """Import names of the client packages in a test's module; `e2b` where the module leaves creating to fixtures."""
    source = item.path.read_text()
    found = [name for name in PACKAGES if re.search(rf"^\s*(from|import) {name}\b", source, re.MULTILINE)]
    return found or ["e2b"]


def rows(item):
    """The client packages of a test with their versions."""
    for name in clients(item):
        package = PACKAGES[name]
        yield {"client": f"pypi:{package}", "version": importlib.metadata.version(package)}


class Results:
    """A pytest plugin. Under pytest-xdist only the controller writes; its workers pass the rows on in their reports."""

    def __init__(self, path, suite):
        self.path = path
        self.suite = suite
        self.outcomes = {}

    def pytest_runtest_logreport(self, report):
        test = report.nodeid.split("@")[0]
        worse = self.outcomes.get(test) == "failed" or report.outcome == "passed" and test in self.outcomes
        if not worse:
            self.outcomes[test] = report.outcome
        if report.when == "teardown":
            with open(self.path, "a") as file:
                for row in dict(report.user_properties).get("clients", []):
                    outcome = {"test": f"{self.suite}/{test}", "outcome": self.outcomes[test]}
                    line = row | outcome | {"engine": os.environ.get("COFFERDAM_ENGINE", "container")}
                    file.write(json.dumps(line) + "\n")


def configure(config):
    path = os.environ.get("COFFERDAM_RESULTS")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Results(path, f"conformance/{config.rootpath.name}"))
