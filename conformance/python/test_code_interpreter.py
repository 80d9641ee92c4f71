"""The code interpreter through its official SDK, synchronous and asynchronous: six languages, contexts, charts, and failures.

The fixture `interpreter_server` has the template `code-interpreter-v1`, and is in the environment variables as `server` is.
"""

import asyncio
import base64
import threading

import pytest
from e2b import NotFoundException, TimeoutException
from e2b_code_interpreter import AsyncSandbox, Sandbox
from e2b_code_interpreter.charts import ChartType, ScaleType
from server import ENGINE

LANGUAGES = ["python", "javascript", "typescript", "r", "java", "bash"]

# Code that prints an environment variable, and its output when the variable is not set.
READ = {
    "python": ("import os; print(os.environ.get('{}'))", "None"),
    "javascript": ("console.log(process.env.{})", "undefined"),
    "typescript": ("console.log(process.env.{} as string | undefined)", "undefined"),
    "r": ("cat(Sys.getenv('{}', 'unset'))", "unset"),
    "java": ('System.out.print(System.getProperty("{}"));', "null"),
    "bash": ("echo ${{{}-unset}}", "unset"),
}


@pytest.fixture(scope="module")
def interpreter(interpreter_server):
    """One sandbox for all tests that do not change it for the others."""
    sandbox = Sandbox.create(timeout=600, envs={"SHARED": "sandbox"})
    yield sandbox
    sandbox.kill()


@pytest.fixture
def own(interpreter_server):
    """Creates sandboxes that a test may break."""
    made = []

    def make(**options):
        made.append(Sandbox.create(timeout=300, **options))
        return made[-1]

    yield make
    for sandbox in made:
        sandbox.kill()


def printed(execution):
    return "".join(execution.logs.stdout)


def test_cells_share_their_state_and_are_counted(interpreter):
    context = interpreter.create_code_context()
    assert interpreter.run_code("x = 1", context=context).execution_count == 1
    execution = interpreter.run_code("x += 1; x", context=context)
    assert (execution.text, execution.execution_count, execution.error) == ("2", 2, None)
    assert interpreter.run_code("1 + 1;", context=context).text is None
    interpreter.remove_code_context(context)


def test_output_is_streamed(interpreter):
    seen = []
    code = "import sys, time\nprint('a', flush=True)\ntime.sleep(0.3)\nprint('b', file=sys.stderr)\n'c'"
    execution = interpreter.run_code(
        code,
        on_stdout=lambda message: seen.append(("out", message.line, message.error)),
        on_stderr=lambda message: seen.append(("err", message.line, message.error)),
        on_result=lambda result: seen.append(("result", result.text, result.is_main_result)),
    )
    assert seen == [("out", "a\n", False), ("err", "b\n", True), ("result", "c", True)]
    assert (execution.logs.stdout, execution.logs.stderr) == (["a\n"], ["b\n"])


def test_an_error_has_a_traceback(interpreter):
    errors = []
    execution = interpreter.run_code("def f():\n    undefined\nf()", on_error=errors.append)
    assert (execution.error.name, execution.error.value) == ("NameError", "name 'undefined' is not defined")
    assert "----> 2" in execution.error.traceback and "\x1b" not in execution.error.traceback
    assert [error.name for error in errors] == ["NameError"]


def test_text_in_any_script_arrives_unchanged(interpreter):
    text = "\u00e9 \u4e2d\u6587 \U0001f600 \u2028 \u0085 end" * 500
    assert printed(interpreter.run_code(f"print({text!r})")) == text + "\n"


@pytest.mark.parametrize(
    ("language", "code", "value"),
    [
        ("python", "print('Hello, World!'); 2 + 3", "5"),
        ("javascript", "console.log('Hello, World!'); 2 + 3", "5"),
        ("typescript", "interface A { n: number }\nconst a: A = { n: 5 }\nconsole.log('Hello, World!'); await Promise.resolve(a.n)", "5"),
        ("r", "cat('Hello, World!\\n'); 2 + 3", "[1] 5"),
        ("java", 'System.out.println("Hello, World!"); 2 + 3', "5"),
        ("bash", "echo 'Hello, World!'", None),
    ],
)
def test_every_language(interpreter, language, code, value):
    execution = interpreter.run_code(code, language=language, timeout=120)
    assert execution.error is None
    assert printed(execution) == "Hello, World!\n"
    assert [result.text for result in execution.results] == ([value] if value else [])


@pytest.mark.parametrize("language", LANGUAGES)
def test_environment_variables(interpreter, language):
    read, unset = READ[language]

    def value(name, **options):
        return printed(interpreter.run_code(read.format(name), language=language, timeout=120, **options)).strip()

    assert value("SHARED") == "sandbox"
    assert value("OWN", envs={"OWN": "it's \"mine\""}) == "it's \"mine\""
    assert value("OWN") == unset, "a run's variable outlived it"
    assert value("SHARED", envs={"SHARED": "run"}) == "run"
    assert value("SHARED") == "sandbox"


def test_contexts_are_made_listed_restarted_and_removed(interpreter):
    context = interpreter.create_code_context(cwd="/tmp")
    other = interpreter.create_code_context(language="bash", cwd="/opt")
    assert (context.language, context.cwd, other.language) == ("python", "/tmp", "bash")
    assert [each.id for each in interpreter.list_code_contexts()][-2:] == [context.id, other.id]
    assert interpreter.run_code("import os; x = 1; os.getcwd()", context=context).text == "/tmp"
    assert printed(interpreter.run_code("pwd", context=other)) == "/opt\n"
    interpreter.restart_code_context(context)
    execution = interpreter.run_code("import os; ('x' in globals(), os.getcwd())", context=context)
    assert (execution.text, execution.execution_count) == ("(False, '/tmp')", 1)
    interpreter.remove_code_context(context.id)
    interpreter.remove_code_context(other)
    with pytest.raises(NotFoundException):
        interpreter.run_code("1", context=context)
    assert not {context.id, other.id} & {each.id for each in interpreter.list_code_contexts()}


def test_unknown_languages_and_code_that_is_no_string_are_rejected(interpreter):
    with pytest.raises(Exception, match="500"):
        interpreter.create_code_context(language="cobol")
    with pytest.raises(Exception, match="422"):
        interpreter.run_code({"not": "code"})


def test_files_of_the_sandbox_are_files_of_its_cells(interpreter):
    interpreter.files.write("/home/user/numbers.csv", "n\n1\n2\n")
    assert interpreter.run_code("import pandas as pd; int(pd.read_csv('numbers.csv').n.sum())").text == "3"
    interpreter.run_code("open('/home/user/made.txt', 'w').write('by a cell')")
    assert interpreter.files.read("/home/user/made.txt") == "by a cell"


# ---- rich results


def chart(interpreter, code):
    execution = interpreter.run_code("import matplotlib.pyplot as plt\nfrom datetime import date\n" + code + "\nplt.show()")
    assert execution.error is None
    [result] = execution.results
    assert base64.b64decode(result.png).startswith(b"\x89PNG")
    return result.chart


def test_line_chart(interpreter):
    line = chart(interpreter, "plt.plot([1, 2], [3, 4], label='L')\nplt.title('T')\nplt.xlabel('time (s)')\nplt.ylabel('y')")
    assert (line.type, line.title, line.x_label, line.x_unit, line.y_label) == (ChartType.LINE, "T", "time (s)", "s", "y")
    assert (line.elements[0].label, [tuple(p) for p in line.elements[0].points]) == ("L", [(1, 3), (2, 4)])


def test_scales(interpreter):
    assert chart(interpreter, "plt.plot([date(2024, 1, 1), date(2024, 1, 2)], [1, 2])").x_scale == ScaleType.DATETIME
    assert chart(interpreter, "plt.plot(['a', 'b'], [1, 2])").x_scale == ScaleType.CATEGORICAL
    assert chart(interpreter, "plt.plot([1, 10], [1, 2])\nplt.xscale('log')").x_scale == ScaleType.LOG
    assert chart(interpreter, "plt.plot([1, 10], [1, 2])").y_scale == ScaleType.LINEAR


def test_other_charts(interpreter):
    scatter = chart(interpreter, "plt.scatter([1, 2], [3, 4], label='S')")
    assert (scatter.type, [tuple(p) for p in scatter.elements[0].points]) == (ChartType.SCATTER, [(1, 3), (2, 4)])
    bar = chart(interpreter, "plt.bar(['a', 'b'], [1, 2])")
    assert (bar.type, [each.label for each in bar.elements]) == (ChartType.BAR, ["a", "b"])
    pie = chart(interpreter, "plt.pie([1, 3], labels=['a', 'b'])")
    assert (pie.type, pie.elements[1].label, pie.elements[1].angle) == (ChartType.PIE, "b", 270)
    box = chart(interpreter, "plt.boxplot([[1, 2, 3, 4], [2, 4, 6, 9]], tick_labels=['a', 'b'], patch_artist=True)")
    assert (box.type, box.elements[0].label, box.elements[0].median) == (ChartType.BOX_AND_WHISKER, "a", 2.5)
    assert chart(interpreter, "plt.imshow([[1, 2]])").type == ChartType.UNKNOWN


def test_several_charts_in_one_figure(interpreter):
    both = chart(interpreter, "f, (a, b) = plt.subplots(1, 2)\nf.suptitle('S')\na.plot([1, 2])\nb.bar(['x'], [1])")
    assert (both.type, both.title) == (ChartType.SUPERCHART, "S")
    assert [each.type for each in both.elements] == [ChartType.LINE, ChartType.BAR]


def test_data_frames(interpreter):
    code = "import pandas as pd\npd.DataFrame({'b': [1, 2], 'a': [pd.Timestamp('2024-01-01'), pd.NaT], 't': [pd.Timedelta(1), None]})"
    [result] = interpreter.run_code(code).results
    assert list(result.data) == ["b", "a", "t"] and result.data["b"] == [1, 2]
    assert result.data["a"] == ["2024-01-01T00:00:00", None]
    assert "<table" in result.html and result.text


def test_images_and_other_formats(interpreter):
    [shown] = interpreter.run_code("from PIL import Image\nImage.new('RGB', (2, 2)).show()").results
    assert shown.jpeg or shown.png
    code = "from IPython.display import *\ndisplay(Markdown('*m*')); display(Latex('$x$')); display(HTML('<b>'))\ndisplay({'application/x-own': 1}, raw=True)\n[1, {'a': float('nan')}]"
    markdown, latex, html, extra, main = interpreter.run_code(code).results
    assert (markdown.markdown, latex.latex, html.html, extra.extra) == ("*m*", "$x$", "<b>", {"application/x-own": 1})
    assert main.is_main_result and main.json == [1, {"a": None}]
    assert interpreter.run_code("1").results[0].extra in ({}, None)


def test_objects_that_describe_themselves(interpreter):
    code = "class A:\n    def _repr_html_(self): return '<i>'\n    def _repr_e2b_data_(self): return {'k': [1]}\nA()"
    [result] = interpreter.run_code(code).results
    assert (result.html, result.data) == ("<i>", {"k": [1]})


# ---- failures


def test_a_timeout_interrupts_and_keeps_state(interpreter):
    context = interpreter.create_code_context()
    with pytest.raises(TimeoutException):
        interpreter.run_code("q = 1\nimport time\ntime.sleep(600)", context=context, timeout=2)
    execution = interpreter.run_code("q", context=context, timeout=30)
    assert (execution.text, execution.error) == ("1", None)
    interpreter.remove_code_context(context)


def test_code_that_ignores_interrupts_does_not_block_its_context(interpreter):
    context = interpreter.create_code_context()
    code = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"
    with pytest.raises(TimeoutException):
        interpreter.run_code(code, context=context, timeout=2)
    execution = interpreter.run_code("1", context=context, timeout=60)
    assert (execution.text, execution.execution_count) == ("1", 1)
    assert "started anew" in execution.logs.stderr[0]
    interpreter.remove_code_context(context)


@pytest.mark.parametrize("code", ["import os; os._exit(1)", "import os; os.kill(os.getpid(), 9)"])
def test_a_killed_kernel_is_reported_and_replaced(interpreter, code):
    context = interpreter.create_code_context(cwd="/tmp")
    execution = interpreter.run_code(code, context=context, timeout=30)
    assert execution.error.name == "ContextRestarting"
    after = interpreter.run_code("import os; (os.getcwd(), os.environ['SHARED'])", context=context)
    assert (after.text, after.execution_count) == ("('/tmp', 'sandbox')", 1)
    interpreter.remove_code_context(context)


def test_a_sandbox_killed_during_a_run_is_reported(own):
    sandbox = own()
    started = threading.Event()
    failures = []

    def run():
        try:
            sandbox.run_code("print('go', flush=True)\nimport time\ntime.sleep(600)", on_stdout=lambda _: started.set())
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(60)
    sandbox.kill()
    thread.join(60)
    assert not thread.is_alive()
    [failure] = failures
    assert isinstance(failure, TimeoutException), failure


def test_a_killed_interpreter_restarts_and_leaves_no_kernels(own):
    sandbox = own()
    former = sandbox.commands.run("sudo ls /run/interpreter").stdout.split()
    assert len(former) >= 3, "kernels of Python and JavaScript, and what Python's is forked from"
    sandbox.commands.run("sudo pkill --signal KILL --exact interpreter")
    # A cold start of the interpreter takes minutes in emulation.
    sandbox.commands.run("until curl --silent --fail localhost:49999/health; do sleep 0.1; done", timeout=60 if ENGINE == "container" else 900)
    assert sandbox.run_code("1 + 1").text == "2"
    assert not set(former) & {str(process) for process in running(sandbox)}
    assert len(sandbox.commands.run("sudo ls /run/interpreter").stdout.split()) == len(former)


def running(sandbox):
    """Pids of the sandbox's interpreters and kernels."""
    return [int(line) for line in sandbox.commands.run("ps -e -o pid=,stat= | awk '$2 !~ /Z/ {print $1}'").stdout.split()]


# ---- lifecycle


def test_another_client_finds_the_same_state(own):
    sandbox = own()
    sandbox.run_code("x = 'kept'")
    context = sandbox.create_code_context(language="bash")
    sandbox.run_code("y=also", context=context)
    other = Sandbox.connect(sandbox.sandbox_id)
    assert other.run_code("x").text == "kept"
    assert printed(other.run_code("echo $y", context=context)) == "also\n"


def test_pause_and_resume_keep_variables_alive(own):
    sandbox = own()
    sandbox.run_code("x = 41")
    sandbox.run_code("let x = 41", language="javascript")
    sandbox.run_code("x=41", language="bash")
    sandbox.pause()
    resumed = Sandbox.connect(sandbox.sandbox_id)
    assert resumed.run_code("x + 1").text == "42"
    assert resumed.run_code("x + 1", language="js").text == "42"
    assert printed(resumed.run_code("echo $((x + 1))", language="bash")) == "42\n"


def test_forks_have_their_parents_variables_and_different_random_numbers(own):
    sandbox = own()
    sandbox.run_code("import random, numpy\nx = 'inherited'\nrandom.seed(1); numpy.random.seed(1)")
    sandbox.run_code("let x = 'inherited'", language="javascript")
    draw = "import uuid, secrets; ','.join(map(str, (random.random(), numpy.random.rand(), uuid.uuid4(), secrets.token_hex())))"
    js = "[Math.random(), crypto.randomUUID(), require('crypto').randomBytes(8).toString('hex')].join()"
    forks = sandbox.fork(count=2, timeout=300)
    try:
        drawn = set()
        for fork in [sandbox, *forks]:
            assert fork.run_code("x").text == "inherited"
            assert fork.run_code("x", language="javascript").text == "inherited"
            drawn.add(tuple(fork.run_code(draw).text.split(",")))
            drawn.add(tuple(fork.run_code(js, language="javascript").text.split(",")))
        numbers = [number for numbers in drawn for number in numbers]
        assert len(numbers) == len(set(numbers)) == 3 * (4 + 3)
    finally:
        for fork in forks:
            fork.kill()


def test_two_new_sandboxes_draw_different_random_numbers(own):
    code = "import random, numpy; (random.random(), numpy.random.rand())"
    drawn = [own().run_code(code).text.strip("()").split(", ") for _ in range(2)]
    assert len({number for numbers in drawn for number in numbers}) == 4


# ---- asynchronous


@pytest.fixture
async def async_interpreter(interpreter_server):
    sandbox = await AsyncSandbox.create(timeout=300)
    yield sandbox
    await sandbox.kill()


async def test_async_contexts_run_concurrently(async_interpreter):
    one, two = await asyncio.gather(*[async_interpreter.create_code_context() for _ in range(2)])
    # Each waits for the other: sequentially they would never end.
    code = "import os, time\nopen('{}', 'w')\nwhile not os.path.exists('{}'): time.sleep(0.01)\n'met'"
    first, second = await asyncio.gather(
        async_interpreter.run_code(code.format("/tmp/a", "/tmp/b"), context=one, timeout=60),
        async_interpreter.run_code(code.format("/tmp/b", "/tmp/a"), context=two, timeout=60),
    )
    assert (first.text, second.text) == ("met", "met")


async def test_async_runs_of_one_context_queue_and_a_cancelled_one_is_interrupted(async_interpreter):
    started = asyncio.Event()
    slow = asyncio.create_task(
        async_interpreter.run_code("print('go', flush=True)\nimport time\ntime.sleep(600)", on_stdout=lambda _: started.set())
    )
    await asyncio.wait_for(started.wait(), 60)
    queued = asyncio.create_task(async_interpreter.run_code("'next'"))
    slow.cancel()
    assert (await asyncio.wait_for(queued, 60)).text == "next"


async def test_async_callbacks_errors_and_contexts(async_interpreter):
    lines = []
    execution = await async_interpreter.run_code("print(1)\n1 / 0", on_stdout=lambda message: lines.append(message.line))
    assert (lines, execution.error.name) == (["1\n"], "ZeroDivisionError")
    context = await async_interpreter.create_code_context(language="js", cwd="/tmp")
    assert (await async_interpreter.run_code("process.cwd()", context=context)).text == "/tmp"
    await async_interpreter.restart_code_context(context)
    assert context.id in [each.id for each in await async_interpreter.list_code_contexts()]
    await async_interpreter.remove_code_context(context)
    with pytest.raises(NotFoundException):
        await async_interpreter.run_code("1", context=context)
