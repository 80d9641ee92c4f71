"""Templates built by the official SDK: every step, the cache, failures and their steps, start commands, tags, names."""

import os
import stat
import time
import urllib.request
import uuid

import pytest
from e2b import AsyncTemplate, BuildException, Sandbox, Template, wait_for_port, wait_for_timeout

SERVER = """
import http.server, os, random
SEED = random.random()
open("/tmp/started", "w").write(str(os.getpid()))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"{os.getpid()} {os.environ.get('GREETING')}".encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
print("serving", flush=True)
http.server.HTTPServer(("127.0.0.1", 8080), Handler).serve_forever()
"""


def fresh(prefix="test"):
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


def build(template, name=None, **options):
    lines = []
    info = Template.build(template, name or fresh(), on_build_logs=lines.append, **options)
    return info, [line.message for line in lines]


@pytest.fixture
def context(tmp_path):
    """A directory with every kind of file that COPY handles."""
    (tmp_path / "app" / "nested").mkdir(parents=True)
    (tmp_path / "app" / "main.py").write_text("print('main')")
    (tmp_path / "app" / ".hidden").write_text("hidden")
    (tmp_path / "app" / "nested" / "data.txt").write_text("data")
    (tmp_path / "run.sh").write_text("#!/bin/sh\necho ran")
    (tmp_path / "run.sh").chmod(0o755)
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    os.symlink("main.py", tmp_path / "app" / "link")
    os.symlink("/nonexistent/target", tmp_path / "app" / "dangling")
    return tmp_path


def test_every_step_takes_effect(server, context):
    name = fresh()
    template = (
        Template(file_context_path=str(context))
        .from_base_image()
        .set_envs({"GREETING": "Hello, World!", "TOOLS": "/opt/tools/bin"})
        .set_envs({"PATH": "${PATH}:${TOOLS}", "LITERAL": "$(id) `id` 'q' \"d\" \\n"})
        .run_cmd("echo $GREETING > /tmp/greeting && whoami >> /tmp/greeting && pwd >> /tmp/greeting")
        .run_cmd("mkdir -p /opt/tools/bin && echo 'echo tool' > /opt/tools/bin/tool && chmod +x /opt/tools/bin/tool", user="root")
        .copy("app", "/srv/app")
        .copy("run.sh", "bin/run", mode=0o700)
        .copy("*.txt", "texts/", user="root")
        .set_workdir("/srv/work")
        .copy("a.txt", ".")
        .run_cmd("pwd > where")
    )
    info, lines = build(template, name, cpu_count=1, memory_mb=512)
    assert f"Building template {info.template_id}/{info.build_id}" in lines
    assert any(line.startswith("[base] FROM e2bdev/base [") for line in lines), lines
    assert any(line.startswith("[builder 1/10] ENV GREETING Hello, World! ") for line in lines), lines
    assert "[finalize] Finalizing template build" in lines
    assert any(line.startswith("Build finished, took ") for line in lines)
    with Sandbox.create(name) as sandbox:
        run = lambda command: sandbox.commands.run(command).stdout
        assert run("cat /tmp/greeting") == "Hello, World!\nuser\n/home/user\n"
        assert run("echo $GREETING; tool; printenv LITERAL") == "Hello, World!\ntool\n$(id) `id` 'q' \"d\" \\n\n"
        assert run("pwd; cat where; cat a.txt") == "/srv/work\n/srv/work\na"
        assert run("cd /srv/app; cat main.py .hidden nested/data.txt; readlink link dangling") == (
            "print('main')hiddendatamain.py\n/nonexistent/target\n"
        )
        assert run("stat -c '%U %a' /srv/app/main.py /home/user/bin/run /home/user/texts/a.txt /srv/work") == (
            "user 644\nuser 700\nroot 644\nuser 755\n"
        )
        assert run("/home/user/bin/run; ls /home/user/texts") == "ran\na.txt\nb.txt\n"
        assert run("ls -A /tmp | grep -c copy || true; sudo id -un") == "0\nroot\n"
        assert f"BUILD_ID={info.build_id}" in run("cat /.e2b")


def test_a_tree_is_merged_into_the_system(server, tmp_path):
    """Directories that exist keep their owner and mode, links to directories are followed, files in the way are replaced."""
    for path, content in {
        "etc/sudoers.d/extra": "user ALL=(ALL) NOPASSWD: ALL\n", "etc/app/app.conf": "mine", "tmp/note": "here", "bin/exam-tool": "#!/bin/sh\necho tool",
        "lib/exam/data": "library", "opt/linked": "new", "home/user/deep/er/file": "deep",
    }.items():
        target = tmp_path / "rootfs" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)
    (tmp_path / "rootfs" / "bin" / "exam-tool").chmod(0o755)
    (tmp_path / "single").write_text("single")
    name = fresh()
    before = "echo old > /opt/target; ln -s /opt/target /opt/linked; ln -s /opt/target /opt/single"
    template = (
        Template(file_context_path=str(tmp_path)).from_base_image().run_cmd(before, user="root")
        .copy("rootfs/", "/").copy("single", "/opt/single").run_cmd("sudo chown root:root /etc/sudoers.d/extra && sudo chmod 440 /etc/sudoers.d/extra")
    )
    build(template, name)
    with Sandbox.create(name) as sandbox:
        run = lambda command: sandbox.commands.run(command).stdout
        assert run("stat -c '%U' / /etc /etc/sudoers.d /tmp /opt /usr/bin /home | sort -u") == "root\n"
        assert run("stat -c %a /tmp") == "1777\n" and run("stat -c %F /bin /lib") == "symbolic link\nsymbolic link\n"
        assert run("exam-tool; cat /usr/lib/exam/data; cat /etc/app/app.conf /tmp/note ~/deep/er/file") == "tool\nlibraryminehere" + "deep"
        assert run("cat /opt/target; cat /opt/linked /opt/single; stat -c %F /opt/linked /opt/single") == "old\nnewsingleregular file\nregular file\n"
        assert run("sudo id -un; mktemp >/dev/null && echo writable") == "root\nwritable\n"
        assert run("stat -c %U /etc/app /etc/app/app.conf ~/deep") == "user\nuser\nuser\n"


def test_a_step_ends_with_its_shell(server):
    name = fresh()
    begun = time.monotonic()
    build(Template().from_base_image().run_cmd("sleep 1000 & echo done > /home/user/result").run_cmd("yes > /dev/null &"), name)
    assert time.monotonic() - begun < 100
    assert read(name, "/home/user/result") == "done\n"


def test_a_directory_and_a_file_do_not_replace_each_other(server, tmp_path):
    (tmp_path / "rootfs" / "etc" / "hostname").mkdir(parents=True)
    (tmp_path / "rootfs" / "etc" / "hostname" / "x").write_text("x")
    (tmp_path / "file" / "etc").mkdir(parents=True)
    (tmp_path / "file" / "etc" / "apt").write_text("x")
    for tree, message in [("rootfs/", "/etc/hostname is no directory"), ("file/", "/etc/apt is a directory")]:
        with pytest.raises(BuildException, match=message):
            build(Template(file_context_path=str(tmp_path)).from_base_image().copy(tree, "/"))


def test_owners_beyond_the_ids_of_a_sandbox(server, tmp_path):
    (tmp_path / "file").write_text("x")
    os.chown(tmp_path / "file", 70000, 70001)
    source = Template(file_context_path=str(tmp_path)).from_base_image()
    name = fresh()
    build(source.copy("file", "/srv/file", user="65535:65535"), name)
    assert read(name, "/srv/file") == "x", "the owner outside does not matter"
    for owner in ["70000:70000", "root:70000"]:
        message = f"the files cannot belong to {owner}: user and group ids in a sandbox are 0 to 65535"
        with pytest.raises(BuildException, match=message):
            build(Template(file_context_path=str(tmp_path)).from_base_image().copy("file", "/srv/", user=owner))
    with Sandbox.create() as sandbox:
        archive = "import tarfile; t = tarfile.open('/tmp/a.tar', 'w'); i = tarfile.TarInfo('/tmp/big'); i.uid = 70000; t.addfile(i); t.close()"
        sandbox.commands.run(f'python3 -c "{archive}"')
        refused = sandbox.commands.run("tar -xPf /tmp/a.tar || echo exit=$?", user="root")
        assert "Cannot change ownership to uid 70000" in refused.stderr and "exit=2" in refused.stdout
        sandbox.commands.run("tar -xPf /tmp/a.tar --no-same-owner", user="root")


def test_cached_steps_are_reused_and_changed_ones_are_run(server):
    def steps(last):
        return (
            Template()
            .from_base_image()
            .run_cmd("head -c 16 /dev/urandom | base64 > /tmp/first")
            .set_envs({"A": "1"})
            .run_cmd(last)
        )

    name = fresh()
    one, lines = build(steps("echo one > /tmp/last"), name)
    assert not any("CACHED" in line for line in lines)
    first = read(name, "/tmp/first")
    begun = time.monotonic()
    two, lines = build(steps("echo one > /tmp/last"), name)
    assert time.monotonic() - begun < 20, "a cached build takes as long as a fresh one"
    assert [line.split("]")[0] for line in lines if line.startswith("CACHED")] == [
        "CACHED [builder 1/3", "CACHED [builder 2/3", "CACHED [builder 3/3",
    ]
    assert two.template_id == one.template_id and two.build_id != one.build_id
    assert read(name, "/tmp/first") == first
    _, lines = build(steps("echo two > /tmp/last"), name)
    assert sum(line.startswith("CACHED") for line in lines) == 2
    assert (read(name, "/tmp/first"), read(name, "/tmp/last")) == (first, "two\n")
    _, lines = build(steps("echo two > /tmp/last"), name, skip_cache=True)
    assert not any(line.startswith("CACHED") for line in lines)
    assert read(name, "/tmp/first") != first


def read(template, path):
    with Sandbox.create(template) as sandbox:
        return sandbox.files.read(path)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda t: t.run_cmd("echo before; exit 7"), "failed to run command 'echo before; exit 7': exit status 7"),
        (
            lambda t: t.run_cmd("whoami", user="root123"),
            "failed to run command 'whoami': command failed: unauthenticated: invalid username: 'root123'",
        ),
        (lambda t: t.set_start_cmd("echo no >&2; exit 3", wait_for_timeout(10_000)), "start command failed: exit status 3"),
    ],
)
def test_a_failure_names_its_step(server, make, message):
    with pytest.raises(BuildException) as caught:
        build(make(Template().from_base_image()))
    assert message in str(caught.value)


def test_an_unknown_template_to_start_from_is_the_builds_failure(server):
    with pytest.raises(BuildException) as caught:
        build(Template().from_template("no-such-template"))
    assert "no-such-template" in str(caught.value)


@pytest.mark.every_engine
def test_a_start_command_runs_in_every_sandbox_before_create_returns(server):
    name = fresh()
    template = (
        Template()
        .from_base_image()
        .set_envs({"GREETING": "hello"})
        .run_cmd(f"cat > server.py << 'EOF'\n{SERVER}\nEOF")
        .set_start_cmd("python3 server.py", wait_for_port(8080))
    )
    _, lines = build(template, name, memory_mb=512)
    assert "Running start command: python3 server.py" in lines
    assert "[start] [stdout]: serving" in lines and "Template is ready" in lines
    sandboxes = [Sandbox.create(name, envs={"OWN": str(number)}) for number in range(3)]
    try:
        answers = []
        for number, sandbox in enumerate(sandboxes):
            ask = urllib.request.Request(server.url, headers={"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "8080"})
            answers.append(urllib.request.urlopen(ask, timeout=20).read().decode())
            own = sandbox.commands.run("echo $OWN $GREETING $E2B_SANDBOX_ID").stdout.split()
            assert own == [str(number), "hello", sandbox.sandbox_id]
        assert {answer.split()[1] for answer in answers} == {"hello"}
        randoms = {sandbox.commands.run("head -c 16 /dev/urandom | base64").stdout for sandbox in sandboxes}
        assert len(randoms) == 3, "sandboxes of one template share randomness"
        clock = float(sandboxes[0].commands.run("date +%s.%N").stdout)
        assert abs(clock - time.time()) < 2
        assert not server.call("GET", "/snapshots")[2], "a template's warm start is shown as a snapshot"
    finally:
        for sandbox in sandboxes:
            sandbox.kill()
    derived = fresh("derived")
    build(Template().from_template(name).run_cmd("echo more > /tmp/more"), derived)
    with Sandbox.create(derived) as sandbox:
        assert sandbox.files.read("/tmp/more") == "more\n"
        assert "hello" in sandbox.commands.run("curl -s localhost:8080").stdout


def test_a_dockerfile_is_built_as_written(server, context):
    name = fresh()
    dockerfile = """
FROM e2bdev/base
ARG VERSION=1.2
ENV NAME=docker \\
    OTHER="two words"
WORKDIR /app
COPY app .
COPY --chown=user:user a.txt b.txt /texts/
RUN echo "$NAME $OTHER" > env && id -un > who
USER user
RUN id -un > /tmp/who
CMD touch /tmp/cmd && sleep 1000
"""
    build(Template(file_context_path=str(context)).from_dockerfile(dockerfile), name)
    with Sandbox.create(name) as sandbox:
        run = lambda command: sandbox.commands.run(command).stdout
        assert run("pwd; cat env who /tmp/who") == "/app\ndocker two words\nroot\nuser\n"
        assert run("ls /app /texts | sort | tr '\\n' ' '").split() == sorted(
            ["/app:", "/texts:", "a.txt", "b.txt", "dangling", "env", "link", "main.py", "nested", "who"]
        )
        assert run("stat -c %U /texts/a.txt; ls /tmp/cmd; pgrep -fc 'sleep 1000'") == "user\n/tmp/cmd\n1\n"


def test_names_and_tags_select_builds(server):
    name = fresh()
    make = lambda text: Template().from_base_image().run_cmd(f"echo {text} > /tmp/version")
    assert not Template.exists(name)
    one, _ = build(make("one"), f"{name}:v1")
    assert Template.exists(name) and Template.exists("base")
    assert read(f"{name}:v1", "/tmp/version") == "one\n"
    with pytest.raises(Exception, match="default"):
        Sandbox.create(name)
    two, _ = build(make("two"), name, tags=["v2", "stable"])
    assert one.template_id == two.template_id
    assert read(f"{name}:stable", "/tmp/version") == "two\n"
    Template.assign_tags(f"{name}:v1", ["stable", "old"])
    assert read(f"{name}:stable", "/tmp/version") == "one\n"
    tags = {tag.tag: tag.build_id for tag in Template.get_tags(name)}
    assert tags == {"v1": one.build_id, "stable": one.build_id, "old": one.build_id, "v2": two.build_id}
    Template.remove_tags(name, ["old", "stable"])
    assert {tag.tag for tag in Template.get_tags(name)} == {"v1", "v2"}
    for bad in (":x", f"{name}:"):
        with pytest.raises(Exception):
            Template.assign_tags(bad, ["y"])
    call = lambda path: server.call("GET", f"/templates/{name}/tags{path}")
    assert call("/count")[2] == {"total": 2}
    assert call("/exists?tag=V1")[2] == {"exists": True, "normalizedTag": "v1"}
    groups = call("/groups?sort=name_asc&tagsLimit=1")[2]
    assert [group["tag"] for group in groups["tags"]] == ["v1"] and groups["nextCursor"]
    page = call("/v1/assignments")[2]
    assert [item["buildId"] for item in page["data"]] == [str(one.build_id)] and page["nextCursor"] is None


def test_a_template_is_listed_published_and_deleted(server):
    name = fresh()
    info, _ = build(Template().from_base_image().run_cmd("true"), name, cpu_count=2, memory_mb=256)
    _, _, templates = server.call("GET", "/templates")
    (mine,) = [template for template in templates if template["templateID"] == info.template_id]
    assert (mine["cpuCount"], mine["memoryMB"], mine["buildStatus"], mine["aliases"]) == (2, 256, "ready", [name])
    status, _, one = server.call("GET", f"/templates/{info.template_id}")
    assert status == 200 and [build["status"] for build in one["builds"]] == ["ready"]
    status, _, answer = server.call("PATCH", f"/v2/templates/{name}", {"public": True})
    assert status == 200 and answer["names"] == [f"default/{name}"]
    with Sandbox.create(name) as sandbox:
        assert sandbox.is_running()
        status, _, answer = server.call("DELETE", f"/templates/{name}")
        assert status == 400 and "sandboxes using it" in answer["message"]
    assert server.call("DELETE", f"/templates/{name}")[0] == 204
    assert not Template.exists(name)
    assert server.call("GET", f"/templates/{info.template_id}")[0] == 404


def test_a_build_in_the_background_is_followed_and_replaced(server):
    name = fresh()
    slow = Template().from_base_image().run_cmd("sleep 300")
    first = Template.build_in_background(slow, name)
    assert Template.get_build_status(first).status.value == "building"
    build(Template().from_base_image().run_cmd("true"), name)
    status = Template.get_build_status(first)
    assert status.status.value == "error" and "cancelled" in status.reason.message


async def test_the_asynchronous_sdk_builds_too(server):
    name = fresh()
    template = AsyncTemplate().from_base_image().run_cmd("echo async > /tmp/file")
    await AsyncTemplate.build(template, name)
    assert read(name, "/tmp/file") == "async\n"


def test_invalid_requests_are_refused(server):
    call = lambda path, body: server.call("POST", path, body)
    for body, message in [
        ({}, "Name is required"),
        ({"name": "a b"}, "invalid template ID"),
        ({"name": "x", "cpuCount": 3}, "CPU count"),
        ({"name": "x", "memoryMB": 64}, "Memory must be at least"),
        ({"name": "other/x"}, "must match your team"),
    ]:
        status, _, answer = call("/v3/templates", body)
        assert status == 400 and message in answer["message"], answer
    status, _, requested = call("/v3/templates", {"name": fresh()})
    assert status == 202 and requested["tags"] == ["default"]
    template, build_id = requested["templateID"], requested["buildID"]
    start = f"/v2/templates/{template}/builds/{build_id}"
    for body in ({}, {"fromImage": "a", "fromTemplate": "b"}, {"fromImage": ""}):
        assert call(start, body)[0] == 400
    assert server.call("GET", f"/templates/{template}/files/XYZ")[2]["message"] == "Invalid files hash"
    status, _, link = server.call("GET", f"/templates/{template}/files/{'a' * 64}")
    assert status == 201 and link["present"] is False
    path = link["url"].removeprefix(server.url)
    assert server.call("PUT", path.replace("token=", "token=0"), b"x")[0] == 403
    assert server.call("PUT", path, b"x" * 100_000)[0] == 200
    assert server.call("GET", f"/templates/{template}/files/{'a' * 64}")[2]["present"] is True
    assert call(start, {"fromImage": "e2bdev/base", "steps": [{"type": "HEALTHCHECK", "args": ["x"]}]})[0] == 202
    assert call(start, {"fromImage": "e2bdev/base"})[2]["message"] == "build is not in waiting state"
    report = wait_for_end(server, template, build_id)
    assert report["status"] == "error" and report["reason"]["step"] == "1"
    assert report["reason"]["message"] == "command type HEALTHCHECK is not implemented"
    none = server.call("GET", f"/templates/{template}/builds/{build_id}/status?logsOffset=1000")[2]
    assert none["logEntries"] == []
    unknown = str(uuid.uuid4())
    assert server.call("GET", f"/templates/{template}/builds/{unknown}/status")[2]["message"] == f"Build '{unknown}' not found"
    _, _, logs = server.call("GET", f"/templates/{template}/builds/{build_id}/logs?direction=backward&limit=1")
    assert logs["logs"][0]["message"].startswith("Build failed: ")


def wait_for_end(server, template, build_id):
    while True:
        report = server.call("GET", f"/templates/{template}/builds/{build_id}/status")[2]
        if report["status"] in ("ready", "error"):
            return report
        time.sleep(0.05)


def test_a_build_interrupted_by_a_crash_has_failed_and_leaks_nothing(tmp_path):
    from server import Server

    server = Server()
    try:
        status, _, requested = server.call("POST", "/v3/templates", {"name": "slow"})
        path = f"/templates/{requested['templateID']}/builds/{requested['buildID']}"
        steps = [{"type": "RUN", "args": ["touch /tmp/x; sleep 1000"]}]
        assert server.call("POST", f"/v2{path}", {"fromImage": "e2bdev/base", "steps": steps})[0] == 202
        while not list((server.home / "sandboxes").glob("*.json")):
            time.sleep(0.02)
        server.crash()
        server.restart()
        report = server.call("GET", f"{path}/status")[2]
        assert report["status"] == "error" and "stopped" in report["reason"]["message"]
        assert not server.sandboxes() and not list((server.home / "sandboxes").iterdir())
    finally:
        server.stop()
