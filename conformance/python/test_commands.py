"""Commands through the synchronous SDK: output, exit codes, environment, input, background, reconnecting."""

import resource

import pytest
from e2b import AuthenticationException, CommandExitException, InvalidArgumentException, NotFoundException, Sandbox, TimeoutException
from server import ENGINE


def test_output_is_streamed_and_the_exit_code_reported(sandbox):
    seen = []
    with pytest.raises(CommandExitException) as failed:
        sandbox.commands.run(
            "echo one; echo two >&2; sleep 0.2; echo three; exit 42",
            on_stdout=lambda text: seen.append(("out", text)),
            on_stderr=lambda text: seen.append(("err", text)),
        )
    assert failed.value.exit_code == 42
    assert failed.value.stdout == "one\nthree\n"
    assert failed.value.stderr == "two\n"
    assert "".join(text for kind, text in seen if kind == "out") == "one\nthree\n"
    assert len([kind for kind, _ in seen if kind == "out"]) == 2, "output was held back until the end"


def test_runs_as_the_default_user_in_its_home(sandbox):
    assert sandbox.commands.run("whoami; pwd").stdout == "user\n/home/user\n"
    assert sandbox.commands.run("whoami", user="root").stdout == "root\n"
    assert sandbox.commands.run("sudo whoami").stdout == "root\n"
    assert sandbox.commands.run("pwd", cwd="/tmp").stdout == "/tmp\n"


def test_the_error_names_a_missing_directory(sandbox):
    with pytest.raises(InvalidArgumentException, match="/no/such/directory"):
        sandbox.commands.run("pwd", cwd="/no/such/directory")


def test_the_error_names_a_directory_that_the_user_cannot_enter(sandbox):
    sandbox.commands.run("mkdir -m 700 /root/closed /home/user/closed && useradd bob && chmod 700 /home/user/closed", user="root")
    for user, directory in (("bob", "/home/user/closed"), ("user", "/root/closed")):
        with pytest.raises(InvalidArgumentException, match=f"cwd '{directory}' cannot be entered by user '{user}'"):
            sandbox.commands.run("pwd", user=user, cwd=directory)


def test_users_may_be_numbers(sandbox):
    for user, ids in (("1000", "1000 1000"), ("4242", "4242 0"), ("4242:4243", "4242 4243"), ("1000:users", "1000 100"), ("user:0", "1000 0")):
        assert sandbox.commands.run("echo $(id -u) $(id -g)", user=user, cwd="/tmp").stdout == f"{ids}\n", user
    sandbox.files.write("/tmp/of-1000", "x", user="1000")
    assert sandbox.files.get_info("/tmp/of-1000").owner == "user"
    for user in ("bill", "99999999", "1000:nothing"):
        with pytest.raises(AuthenticationException, match="invalid username"):
            sandbox.commands.run("true", user=user)


def test_processes_may_open_many_files(sandbox):
    limit = int(sandbox.commands.run("ulimit -n").stdout)
    # A server that may not raise its own limit cannot give more.
    assert min(1 << 20, resource.getrlimit(resource.RLIMIT_NOFILE)[1]) <= limit <= 1 << 20


def test_environment_of_the_sandbox_and_of_a_command(server):
    sandbox = Sandbox.create(envs={"SHARED": "sandbox", "KEPT": "yes"})
    try:
        print_all = "echo $SHARED $KEPT $E2B_SANDBOX $E2B_SANDBOX_ID"
        own = sandbox.commands.run(print_all, envs={"SHARED": "command"}).stdout
        assert own == f"command yes true {sandbox.sandbox_id}\n"
        assert sandbox.commands.run(print_all).stdout.startswith("sandbox yes"), "a variable leaked between commands"
    finally:
        sandbox.kill()


def test_a_background_command_is_listed_connected_to_and_killed(sandbox):
    handle = sandbox.commands.run("while true; do echo beat; sleep 0.05; done", background=True)
    assert handle.pid in [process.pid for process in sandbox.commands.list()]
    other = Sandbox.connect(sandbox.sandbox_id).commands.connect(handle.pid)
    for stdout, _, _ in other:
        assert stdout.startswith("beat")
        break
    assert sandbox.commands.kill(handle.pid) is True
    with pytest.raises(CommandExitException):
        handle.wait()
    assert sandbox.commands.kill(handle.pid) is False
    with pytest.raises(NotFoundException):
        sandbox.commands.connect(999_999)


def test_input_reaches_a_command_and_closing_it_ends_cat(sandbox):
    handle = sandbox.commands.run("cat", background=True, stdin=True)
    sandbox.commands.send_stdin(handle.pid, "hello\n")
    sandbox.commands.close_stdin(handle.pid)
    assert handle.wait().stdout == "hello\n"


def test_a_command_is_killed_at_its_timeout(sandbox):
    with pytest.raises(TimeoutException):
        sandbox.commands.run("echo $$ > /tmp/slow; exec sleep 60", timeout=1)
    gone = sandbox.commands.run("! kill -0 $(cat /tmp/slow) 2>/dev/null && echo gone")
    assert gone.stdout == "gone\n"


def test_large_output_arrives_complete(sandbox):
    result = sandbox.commands.run("head -c 100000000 /dev/zero | tr '\\0' x")
    assert len(result.stdout) == 100_000_000


def test_a_character_split_between_chunks_is_joined(sandbox):
    result = sandbox.commands.run("python3 -c \"print('ä€😀' * 20000, end='')\"")
    assert result.stdout == "ä€😀" * 20000


def test_languages_of_the_base_template(sandbox):
    # In emulation, a virtual environment takes minutes.
    patience = 60 if ENGINE == "container" else 900
    script = "python3 -c 'print(1+1)'; node -e 'console.log(2+2)'; echo 'int main(){return 7;}' > /tmp/a.c"
    assert sandbox.commands.run(script + "; gcc -o /tmp/a /tmp/a.c && /tmp/a; echo $?", timeout=patience).stdout == "2\n4\n7\n"
    sandbox.commands.run("python3 -m venv /tmp/venv && git --version && npm --version && jq --version && curl --version", timeout=patience)
