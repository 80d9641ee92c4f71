"""Container images as base images, from a real registry, made by real tools; export and import of templates as archives."""

import json
import pathlib
import shutil
import socket
import subprocess
import time
import urllib.request

import pytest
from e2b import BuildException, Sandbox, Template

from server import Server
from test_templates import build, fresh, read

CONFIG = """
version: 0.1
storage: {{filesystem: {{rootdirectory: {dir}/data}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:{port}"}}
auth: {{htpasswd: {{realm: tests, path: {dir}/htpasswd}}}}
"""


class Registry:
    def __init__(self, dir):
        self.dir = dir
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        subprocess.run(["htpasswd", "-Bbc", dir / "htpasswd", "me", "secret"], check=True, capture_output=True)
        (dir / "config.yml").write_text(CONFIG.format(dir=dir, port=port))
        log = open(dir / "log", "wb")
        command = ["docker-registry", "serve", dir / "config.yml"]
        self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while True:
            try:
                urllib.request.urlopen(f"http://{self.address}/v2/", timeout=5)
            except urllib.error.HTTPError:
                return
            except OSError:
                assert time.monotonic() < deadline and self.process.poll() is None, (dir / "log").read_text()
                time.sleep(0.05)

    def push(self, layout, name):
        options = ["--dest-tls-verify=false", "--dest-creds", "me:secret"]
        run("skopeo", "copy", "--quiet", *options, f"oci:{layout}", f"docker://{self.address}/{name}")

    def stop(self):
        self.process.terminate()
        self.process.wait()


def run(*words):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    registry = Registry(tmp_path_factory.mktemp("registry"))
    yield registry
    registry.stop()


@pytest.fixture(scope="module")
def images(registry):
    """A server that cannot reach docker.io's registry, and uses plain HTTP with ours."""
    import os

    options = ["--registry-mirror", "docker.io=http://127.0.0.1:1", "--registry-insecure", registry.address]
    server = Server(*options, trusting=True)
    before = {name: os.environ.get(name) for name in server.environment()}
    os.environ.update(server.environment())
    yield server
    server.stop()
    for name, value in before.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="module")
def debian(images):
    """A template built from Debian's packages, because its image's registry is unreachable."""
    name = fresh("debian")
    _, lines = build(Template().from_debian_image("trixie").run_cmd("cat /etc/debian_version > /tmp/version"), name)
    return name, lines


@pytest.fixture(scope="module")
def layout(debian, images, tmp_path_factory):
    """An image of two layers, the second with a whiteout, made by umoci from the template of Debian's packages."""
    dir = tmp_path_factory.mktemp("image")
    exported, layout, bundle = dir / "template.tar", dir / "oci", dir / "bundle"
    images.cli("template", "export", debian[0], "--output", str(exported))
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", f"{layout}:v1")
    run("umoci", "unpack", "--image", f"{layout}:v1", bundle)
    rootfs = pathlib.Path(bundle) / "rootfs"
    largest = max(image_layers(exported, dir), key=lambda path: path.stat().st_size)
    run("tar", "--zstd", "-xpf", largest, "-C", rootfs)
    (rootfs / "etc" / "gone").write_text("first layer")
    run("umoci", "repack", "--image", f"{layout}:v1", bundle)
    (rootfs / "etc" / "gone").unlink()
    (rootfs / "etc" / "second").write_text("second layer")
    run("umoci", "repack", "--image", f"{layout}:v1", bundle)
    run("umoci", "config", "--image", f"{layout}:v1", "--config.env", "FROM_IMAGE=yes", "--config.env", "EMPTY=")
    run("umoci", "config", "--image", f"{layout}:v1", "--config.user", "nobody", "--config.cmd", "/bin/false")
    shutil.rmtree(bundle)
    return f"{layout}:v1"


def image_layers(archive, dir):
    target = dir / "exported"
    target.mkdir()
    run("tar", "-xf", archive, "-C", target)
    return [path for path in (target / "blobs" / "sha256").iterdir() if path.stat().st_size > 1 << 20]


def test_debian_is_built_from_packages_without_a_registry(debian):
    name, lines = debian
    assert any("is made from Debian packages, because registry docker.io cannot be reached" in line for line in lines)
    assert read(name, "/tmp/version").startswith("13")
    with Sandbox.create(name) as sandbox:
        assert sandbox.commands.run("id -un; pwd; sudo id -un").stdout == "user\n/home/user\nroot\n"


def test_the_error_of_an_unreachable_image_names_the_remedy(images):
    with pytest.raises(BuildException) as caught:
        build(Template().from_ubuntu_image("24.04"))
    text = str(caught.value)
    assert "docker.io" in text and "--registry-mirror" in text and "template import" in text


def test_an_image_is_pulled_with_a_password_and_runs(images, registry, layout):
    registry.push(layout, "team/app:v1")
    name, image = fresh("image"), f"{registry.address}/team/app:v1"
    template = Template().from_image(image, username="me", password="secret").run_cmd("echo $FROM_IMAGE > built")
    _, lines = build(template, name)
    assert any(line.startswith(f"[base] FROM {image} [") for line in lines)
    with Sandbox.create(name) as sandbox:
        run_in = lambda command: sandbox.commands.run(command).stdout
        assert run_in("cat built; echo $FROM_IMAGE ${EMPTY-unset}; id -un") == "yes\nyes unset\nuser\n"
        assert run_in("cat /etc/second; ls /etc/gone 2>&1 || true") == (
            "second layerls: cannot access '/etc/gone': No such file or directory\n"
        )
        assert run_in("sudo id -un; stat -c %a /usr/bin/sudo; stat -c %U /etc/shadow") == "root\n4755\nroot\n"
    _, lines = build(template, name)
    assert any(line.startswith(f"CACHED [base] FROM {image}") for line in lines)


@pytest.mark.parametrize(
    "image, password, message",
    [
        ("team/app:v1", "wrong", "access denied to '{}': authentication required or insufficient permissions"),
        ("team/app:none", "secret", "image '{}' not found: the image or tag does not exist in the registry"),
        ("team/none:v1", "secret", "repository '{}' not found: verify the image name is correct"),
    ],
)
def test_errors_of_pulls_name_the_cause(images, registry, layout, image, password, message):
    registry.push(layout, "team/app:v1")
    image = f"{registry.address}/{image}"
    with pytest.raises(BuildException) as caught:
        build(Template().from_image(image, username="me", password=password), skip_cache=True)
    assert message.format(image) in str(caught.value)


def test_an_image_of_another_architecture_is_refused(images, registry, layout, tmp_path):
    other = tmp_path / "arm"
    run("skopeo", "copy", "--quiet", f"oci:{layout}", f"oci:{other}:v1")
    run("umoci", "config", "--image", f"{other}:v1", "--architecture", "arm64")
    registry.push(f"{other}:v1", "team/arm:v1")
    with pytest.raises(BuildException) as caught:
        build(Template().from_image(f"{registry.address}/team/arm:v1", username="me", password="secret"))
    assert 'image architecture "arm64" does not match expected "amd64"' in str(caught.value)


def test_files_are_copied_from_an_image_without_a_shell(images, registry, tmp_path):
    """As `COPY --from=` of a tool's image that holds its program alone."""
    layout, bundle = tmp_path / "oci", tmp_path / "bundle"
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", f"{layout}:v1")
    run("umoci", "unpack", "--image", f"{layout}:v1", bundle)
    tool = bundle / "rootfs" / "tool"
    tool.write_text("#!/bin/sh\necho tool\n")
    tool.chmod(0o755)
    run("umoci", "repack", "--image", f"{layout}:v1", bundle)
    registry.push(f"{layout}:v1", "team/tool:v1")
    image, name = f"{registry.address}/team/tool:v1", fresh("with-tool")
    _, _, asked = images.call("POST", "/v3/templates", {"name": name})
    build = f"/builds/{asked['buildID']}"
    copy = {"type": "COPY", "args": ["/tool", "/usr/local/bin/", "", ""], "fromStage": "tools"}
    status, _, refused = images.call(
        "POST",
        f"/v2/templates/{asked['templateID']}{build}",
        {
            "fromTemplate": "base",
            "fromImageRegistry": {"type": "registry", "username": "me", "password": "secret"},
            "stages": [{"name": "tools", "fromImage": image, "steps": []}],
            "steps": [copy],
        },
    )
    assert status == 202, refused
    deadline = time.monotonic() + 120
    while (report := images.call("GET", f"/templates/{asked['templateID']}{build}/status")[2])["status"] == "building":
        assert time.monotonic() < deadline, report
        time.sleep(0.2)
    assert report["status"] == "ready", report
    with Sandbox.create(name) as sandbox:
        assert sandbox.commands.run("tool; stat -c '%U %a' /usr/local/bin/tool").stdout == "tool\nroot 755\n"


def test_a_saved_image_is_imported(images, layout, tmp_path):
    saved = tmp_path / "saved.tar"
    run("skopeo", "copy", "--quiet", f"oci:{layout}", f"docker-archive:{saved}:app:v1")
    name = fresh("saved")
    images.cli("template", "import", str(saved), "--name", name, "--memory-mb", "512")
    assert read(name, "/etc/second") == "second layer"


def test_a_template_is_exported_and_imported(images, tmp_path):
    name = fresh("traveller")
    template = (
        Template().from_base_image().set_envs({"HOME_TOWN": "Bergen"}).run_cmd("echo hi > /tmp/hi; rm -r /opt", user="root")
        .set_start_cmd("sleep 12345", "pgrep -f 'sleep 12345'")
    )
    build(template, name, cpu_count=1, memory_mb=512)
    archive = tmp_path / "template.tar"
    images.cli("template", "export", name, "--output", str(archive))
    other = Server()
    try:
        other.cli("template", "import", str(archive), "--name", "arrived")
        shown = json.loads(other.cli("template", "show", "arrived"))
        assert (shown["cpuCount"], shown["memoryMB"]) == (1, 512)
        with Sandbox.create("arrived", api_key=other.key, api_url=other.url, sandbox_url=other.url) as sandbox:
            found = sandbox.commands.run("cat /tmp/hi; echo $HOME_TOWN; ls -d /opt 2>/dev/null; pgrep -cf 'sleep 12345'").stdout
            assert found == "hi\nBergen\n1\n"
        damaged = bytearray(archive.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        archive.write_bytes(damaged)
        with pytest.raises(AssertionError, match="the build failed"):
            other.cli("template", "import", str(archive), "--name", "damaged")
        other.call("DELETE", "/templates/arrived")
    finally:
        other.stop()
