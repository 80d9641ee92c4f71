"""Dockerfiles as people write them, built by our command line client: what a step does is what Docker documents for it."""

import io
import tarfile

import pytest
from e2b import Sandbox


def archive(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))


DOCKERFILE = r"""# syntax=docker/dockerfile:1
ARG BASE=e2bdev/base
FROM ${BASE}
ARG VERSION=1.2
RUN <<EOF python3
open("/made-by", "w").write("python\n")
EOF
RUN <<'EOF'
#!/usr/bin/env python3
import sys
open("/made-by", "a").write("script " + sys.argv[0].split("/")[1] + "\n")
EOF
RUN <<EOF
echo "shell $VERSION" >> /made-by
echo "and more" >> /made-by
EOF
RUN echo one \

    # a comment between, and an empty line before
    two \
    three > /continued
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN if false | true; then echo "no pipefail"; else echo "pipefail"; fi > /shell
RUN cat > /quoted <<"EOF"
it's $HOME
EOF
COPY <<a.txt <<b.txt /several/
first
a.txt
second
b.txt
COPY --chmod=u=rwx,go=rX notes.txt /symbolic
COPY --chmod=-w <<EOF /document
text
EOF
ADD app.tar.gz notes.txt /srv/
ONBUILD RUN false
USER 1000:100
RUN id -u > /tmp/ids && id -g >> /tmp/ids
WORKDIR /srv
"""


def test_what_dockerfiles_say_is_done(server, tmp_path):
    archive(tmp_path / "app.tar.gz", {"app/main.py": "print('app')\n", "app/data": "data\n"})
    (tmp_path / "notes.txt").write_text("notes\n")
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    server.cli("template", "build", str(tmp_path), "--name", "dockerfile-corpus")
    sandbox = Sandbox.create("dockerfile-corpus")
    try:
        def text(path):
            return sandbox.files.read(path, user="root")

        assert text("/made-by") == "python\nscript tmp\nshell 1.2\nand more\n"
        assert text("/continued") == "one two three\n"
        assert text("/shell") == "pipefail\n"
        assert text("/quoted") == "it's $HOME\n"
        assert text("/several/a.txt") + text("/several/b.txt") == "first\nsecond\n"
        assert text("/srv/app/main.py") == "print('app')\n" and text("/srv/app/data") == "data\n"
        assert text("/srv/notes.txt") == "notes\n"
        assert sandbox.commands.run("stat -c %a /symbolic /document").stdout == "755\n444\n"
        assert text("/tmp/ids") == "1000\n100\n"
        assert sandbox.commands.run("id -u; pwd").stdout == "1000\n/srv\n"
    finally:
        sandbox.kill()


@pytest.mark.parametrize(
    ("user", "message"),
    [("70000", "ids up to 65534, not 70000"), ("user:70000", "ids up to 65534, not 70000"), ("user:nothing", "there is no group nothing")],
)
def test_users_that_cannot_be_are_refused(server, tmp_path, user, message):
    (tmp_path / "Dockerfile").write_text(f"FROM e2bdev/base\nUSER {user}\n")
    with pytest.raises(AssertionError, match=message):
        server.cli("template", "build", str(tmp_path), "--name", "no-such-user")
