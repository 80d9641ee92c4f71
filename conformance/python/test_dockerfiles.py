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
COPY <<EOF "/with-variables"
version $VERSION, \$plain, $(id), ${EDITION:-none}
EOF
ARG EDITION SOURCE=notes
COPY ${SOURCE}.txt yarn.lock* "/by-variable/"
RUN echo "$EDITION" > /edition
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
    server.cli("template", "build", str(tmp_path), "--name", "dockerfile-corpus", "--build-arg", "EDITION=second", "--build-arg", "VERSION=1.3")
    sandbox = Sandbox.create("dockerfile-corpus")
    try:
        def text(path):
            return sandbox.files.read(path, user="root")

        assert text("/made-by") == "python\nscript tmp\nshell 1.3\nand more\n"
        assert text("/continued") == "one two three\n"
        assert text("/shell") == "pipefail\n"
        assert text("/with-variables") == "version 1.3, $plain, $(id), none\n"
        assert text("/by-variable/notes.txt") == "notes\n" and text("/edition") == "second\n"
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


STAGES = r"""ARG BASE=e2bdev/base
FROM ${BASE} AS build
ARG BASE
RUN mkdir -p /out/lib /out/empty && echo "made from $BASE" > /out/app && chmod 750 /out/app && chown 1000:100 /out/app \
    && echo a > /out/lib/a.so && echo b > /out/lib/b.so && echo no > /out/lib/c.txt && ln -s a.so /out/lib/link.so \
    && ln -s /out/app /out/current && echo "it's" > "/out/two words" && mkfifo /out/pipe \
    && head -c 40000000 /dev/urandom > /out/large && sha256sum < /out/large > /out/sum

FROM build AS tested
WORKDIR /checked
RUN grep made /out/app > result

FROM ${BASE} AS unused
RUN exit 1

FROM ${BASE}
COPY --from=build /out /srv/
COPY --from=tested /checked/result notes-of-nobody* /tmp/
COPY --from=build /out/lib/*.so /libs/
COPY --from=0 --chown=user --chmod=644 /out/current /opt/named
COPY notes.txt /opt/
RUN sha256sum < /srv/large | cmp - /srv/sum
"""


def test_stages_are_built_in_turn_and_files_copied_between_them(server, tmp_path):
    (tmp_path / "notes.txt").write_text("notes\n")
    (tmp_path / "Dockerfile").write_text(STAGES.replace(" notes-of-nobody*", ""))
    printed = server.cli("template", "build", str(tmp_path), "--name", "staged", "--verbose", with_errors=True)
    assert "exit 1" not in printed, "a stage that nothing needs was built"
    with Sandbox.create("staged") as sandbox:
        run = lambda command: sandbox.commands.run(command, user="root").stdout
        assert run("cat /srv/app /tmp/result /opt/named /opt/notes.txt '/srv/two words'") == (
            "made from e2bdev/base\n" * 3 + "notes\nit's\n"
        )
        # Owners, modes and links are those of the stage, unless the instruction says otherwise.
        assert run("stat -c '%U:%G %a %F' /srv/app /opt/named /srv/empty") == (
            "user:users 750 regular file\nuser:user 644 regular file\nroot:root 755 directory\n"
        )
        assert run("ls /libs; readlink /srv/lib/link.so /srv/current") == "a.so\nb.so\nlink.so\na.so\n/out/app\n"
        assert run("ls -d /out /srv/pipe /checked 2>/dev/null; true") == ""
    again = server.cli("template", "build", str(tmp_path), "--name", "staged", "--verbose", with_errors=True)
    assert "CACHED [build 4/4]" in again and "CACHED [builder 6/" in again, again


def test_a_copy_from_a_stage_that_has_no_such_file_says_so(server, tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM e2bdev/base AS build\nFROM e2bdev/base\nCOPY --from=build /none /x\n")
    with pytest.raises(AssertionError, match="COPY: .*there is no file /none"):
        server.cli("template", "build", str(tmp_path), "--name", "staged-wrongly")
