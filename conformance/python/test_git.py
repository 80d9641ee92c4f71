"""The SDK's git module against a git daemon in the same sandbox."""

import warnings

import pytest
from e2b import CommandExitException, Sandbox
from e2b.exceptions import GitAuthException, GitUpstreamException
from services import started

# The module is deprecated but still there.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

URL = "git://127.0.0.1/shared.git"


@pytest.fixture(scope="module")
def git_sandbox(server):
    sandbox = Sandbox.create()
    sandbox.commands.run("git init --bare --initial-branch=main /srv/git/shared.git", user="root")
    daemon = sandbox.commands.run(
        "exec git -c safe.directory='*' daemon --verbose --export-all --enable=receive-pack --listen=127.0.0.1 --base-path=/srv/git",
        background=True,
        user="root",
        timeout=0,
    )
    started(daemon, "Ready to rumble")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sandbox.git.configure_user("A Tester", "tester@example.com")
    yield sandbox
    sandbox.kill()


def test_commits_are_pushed_and_pulled_between_clones(git_sandbox):
    sandbox, git = git_sandbox, git_sandbox.git
    git.clone(URL, "/home/user/first")
    assert git.status("first").is_clean
    sandbox.files.write("first/hello.txt", "hello\n")
    assert git.status("first").has_untracked
    git.add("first")
    assert [entry.status for entry in git.status("first").file_status] == ["added"]
    git.commit("first", "It's a \"start\"; $(not) a command")
    git.push("first", remote="origin", branch="main")
    status = git.status("first")
    assert (status.current_branch, status.upstream, status.ahead, status.behind) == ("main", "origin/main", 0, 0)

    git.clone(URL, "/home/user/second", depth=1)
    assert sandbox.files.read("second/hello.txt") == "hello\n"
    log = sandbox.commands.run("git -C second log --format='%an <%ae>%n%s'").stdout
    assert log == "A Tester <tester@example.com>\nIt's a \"start\"; $(not) a command\n"

    sandbox.files.write("first/hello.txt", "hello again\n")
    git.add("first", ["hello.txt"])
    git.commit("first", "More", author_name="Another", author_email="another@example.com")
    assert git.status("first").ahead == 1
    git.push("first")
    git.pull("second")
    assert sandbox.files.read("second/hello.txt") == "hello again\n"


def test_branches_are_created_switched_and_deleted(git_sandbox):
    git = git_sandbox.git
    git.init("/home/user/branches", initial_branch="trunk")
    git.commit("branches", "Empty", allow_empty=True)
    git.create_branch("branches", "side")
    assert git.branches("branches").current_branch == "side"
    git.checkout_branch("branches", "trunk")
    assert sorted(git.branches("branches").branches) == ["side", "trunk"]
    git.delete_branch("branches", "side")
    assert git.branches("branches").branches == ["trunk"]
    git.remote_add("branches", "upstream", URL)
    assert git.remote_get("branches", "upstream") == URL
    assert git.remote_get("branches", "nothing") is None


def test_changes_are_restored_and_reset(git_sandbox):
    sandbox, git = git_sandbox, git_sandbox.git
    git.init("/home/user/undo", initial_branch="main")
    sandbox.files.write("undo/file", "kept")
    git.add("undo")
    git.commit("undo", "File")
    sandbox.files.write("undo/file", "lost")
    git.restore("undo", ["file"])
    assert sandbox.files.read("undo/file") == "kept"
    sandbox.files.write("undo/file", "lost")
    git.add("undo")
    git.reset("undo", mode="hard", target="HEAD")
    assert sandbox.files.read("undo/file") == "kept" and git.status("undo").is_clean


def test_config_is_kept_in_its_scope(git_sandbox):
    git = git_sandbox.git
    git.init("/home/user/configured")
    git.set_config("pull.rebase", "true", scope="local", path="configured")
    assert git.get_config("pull.rebase", scope="local", path="configured") == "true"
    assert git.get_config("pull.rebase") is None
    assert git.get_config("user.email") == "tester@example.com"


def test_failures_have_their_exception_classes(git_sandbox):
    git = git_sandbox.git
    with pytest.raises(GitAuthException):
        git.clone("git://127.0.0.1/missing.git", "/home/user/missing")
    with pytest.raises(CommandExitException) as failed:
        git.clone("/home/user/missing.git", "/home/user/missing")
    assert failed.value.exit_code == 128 and "missing.git" in failed.value.stderr
    git.init("/home/user/lonely")
    git.commit("lonely", "Empty", allow_empty=True)
    with pytest.raises(GitUpstreamException):
        git.pull("lonely")
