"""Recipes of the coding agents, written from `agents.toml`.

    python3 templates/agents.py           write the recipes
    python3 templates/agents.py --check   fail if a recipe differs from the table
    python3 templates/agents.py --newer   list packages that have a newer version

All recipes begin with the same steps, so a server builds those once; a Dockerfile cannot start from another template.
"""

import os
import pathlib
import subprocess
import sys
import tomllib

HERE = pathlib.Path(__file__).parent

DOCKERFILE = """\
# Written by templates/agents.py from templates/agents.toml.
FROM e2bdev/base
USER root

# What agents call. Node comes from the npm registry, as Debian's is too old for several of them.
RUN apt-get update \\
 && apt-get install --yes --no-install-recommends ripgrep gh \\
 && rm -rf /var/lib/apt/lists/* \\
 && npm install --global --no-audit --no-fund node@{node} \\
 && npm cache clean --force

{install}

USER user
WORKDIR /home/user
{files}"""

# Dependencies are installed with their scripts: they choose the program for this processor.
NPM = """\
RUN npm install --global --no-audit --no-fund {package}@{version} \\
 && npm cache clean --force"""

TEMPLATE = """\
# Written by templates/agents.py from templates/agents.toml.

name = "{name}"
dockerfile = "Dockerfile"
cpu_count = 2
memory_mb = 2048
"""


def table():
    agents = tomllib.loads((HERE / "agents.toml").read_text())
    return agents.pop("node"), agents


def recipe(node, name, agent):
    """The files of a recipe, by their names."""
    install = NPM.format(package=agent["npm"], version=agent["version"])
    files = "".join(
        f"\nCOPY --chown=user:user <<'EOF' /home/user/{path}\n{content}\nEOF\n" for path, content in agent.get("files", {}).items()
    )
    return {"Dockerfile": DOCKERFILE.format(node=node, install=install, files=files), "template.toml": TEMPLATE.format(name=name)}


def recipes():
    node, agents = table()
    return {HERE / name / file: text for name, agent in agents.items() for file, text in recipe(node, name, agent).items()}


def newest(package):
    shown = subprocess.run(["npm", "view", package, "version"], capture_output=True, text=True, check=True)
    return shown.stdout.strip()


def newer():
    for name, agent in table()[1].items():
        version = newest(agent["npm"])
        if version != agent["version"]:
            print(f"{name}: {agent['version']} -> {version}")


def check():
    wrong = [os.path.relpath(path) for path, text in recipes().items() if not path.exists() or path.read_text() != text]
    if wrong:
        sys.exit(f"{', '.join(wrong)}: not as in templates/agents.toml; run python3 templates/agents.py")


def write():
    for path, text in recipes().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    actions = {(): write, ("--check",): check, ("--newer",): newer}
    action = actions.get(tuple(sys.argv[1:]))
    if action is None:
        sys.exit(__doc__)
    action()
