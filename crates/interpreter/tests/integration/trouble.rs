//! Failures: disconnected clients, code that does not end, kernels that die, copies of sandboxes.
//! Every wait here is for an event of the protocol.
//! Each test has a server of its own.

#![allow(missing_docs, clippy::unwrap_used)]

use crate::common::Interpreter;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn a_disconnected_client_interrupts_its_run_and_state_is_kept() {
    let server = Interpreter::start().await;
    for (language, code, check) in [
        ("python", "q = 1\nprint('go', flush=True)\nimport time\ntime.sleep(600)", "q"),
        ("javascript", "q = 1; console.log('go'); while (true) {}", "q"),
        ("javascript", "q = 1; console.log('go'); await new Promise(() => setInterval(() => {}, 1000))", "q"),
        ("bash", "q=1; echo go; sleep 600", "echo $q"),
        ("bash", "q=1; echo go; while :; do :; done", "echo $q"),
        ("java", "int q = 1; System.out.println(\"go\"); while (true) { }", "q"),
        ("r", "q <- 1; cat('go\\n'); flush.console(); Sys.sleep(600)", "q"),
    ] {
        eprintln!("{language}: {code}");
        let mut answer = server.execute(json!({"language": language, "code": code})).await;
        answer.until("stdout").await;
        answer.leave().await;
        // At once, while the kernel is being interrupted.
        let next = server.code(language, check).await;
        assert_eq!(next.errors(), [""; 0], "{language}: {next:?}");
        let shown = if language == "bash" { next.stdout() } else { next.text().to_owned() };
        assert_eq!(shown.trim().trim_start_matches("[1] "), "1", "{language}: {code}");
        assert_eq!(next.stderr(), "", "{language}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kernel_of_code_that_ignores_interrupts_is_killed_and_the_next_client_gets_a_message() {
    let server = Interpreter::start().await;
    let code = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('go', flush=True)\nwhile True: pass";
    let mut answer = server.execute(json!({"code": code})).await;
    answer.until("stdout").await;
    answer.leave().await;
    let mut queued = server.execute(json!({"code": "1 + 1"})).await;
    assert_eq!(queued.next().await.unwrap()["type"], "keepalive", "a queued client hears something");
    let ran = queued.finish().await;
    assert_eq!((ran.count(), ran.text()), (1, "2"));
    assert!(ran.stderr().contains("did not end when it was interrupted"), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_of_one_context_queue_and_contexts_run_in_parallel() {
    let server = Interpreter::start().await;
    let other = server.context(json!({})).await;
    let mut first = server.execute(json!({"code": "print('go', flush=True)\nimport os\nwhile not os.path.exists('/mnt/go'): pass\norder = [1]"})).await;
    first.until("stdout").await;
    let second = server.execute(json!({"code": "order.append(2)"})).await;
    let gone = server.execute(json!({"code": "order.append('never')"})).await;
    let third = server.execute(json!({"code": "order.append(3); order"})).await;
    gone.leave().await;
    assert_eq!(server.run(json!({"context_id": other, "code": "'beside'"})).await.text(), "beside");
    std::fs::write(server.shared("go"), "").unwrap();
    assert_eq!(first.finish().await.errors(), [""; 0]);
    second.finish().await.assert_silent();
    assert_eq!(third.finish().await.text(), "[1, 2, 3]");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_kernel_is_reported_at_once_and_it_is_replaced() {
    let server = Interpreter::start().await;
    server.envd.env(&[("SHARED", "sandbox")]);
    let context = server.context(json!({"cwd": "/tmp"})).await;
    for code in ["x = 1\nimport os; os._exit(3)", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"] {
        let died = server.run(json!({"context_id": context, "code": code})).await;
        assert_eq!(died.errors(), ["ContextRestarting"]);
        assert_eq!(died.error()["value"], "Context was restarted");
        let code = "import os; (os.getcwd(), os.environ['SHARED'], 'x' in globals())";
        let next = server.run(json!({"context_id": context, "code": code})).await;
        assert_eq!((next.count(), next.text()), (1, "('/tmp', 'sandbox', False)"));
    }
    for (language, code) in [
        ("javascript", "process.exit(1)"),
        ("bash", "exit 3"),
        ("java", "Runtime.getRuntime().halt(1)"),
        ("r", "tools::pskill(Sys.getpid(), 9)"),
    ] {
        assert_eq!(server.code(language, code).await.errors(), ["ContextRestarting"], "{language}");
        assert_eq!(server.code(language, "1").await.count(), 1, "{language}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_that_ended_between_two_runs_is_replaced_and_reported() {
    let server = Interpreter::start().await;
    let pid = server.code("python", "import os; os.getpid()").await.text().to_owned();
    server.code("bash", &format!("kill -9 {pid}; while kill -0 {pid} 2>/dev/null; do :; done")).await;
    let next = server.code("python", "1").await;
    assert_eq!((next.count(), next.text()), (1, "1"));
    assert!(next.stderr().contains("had ended (signal 9)"), "{next:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_zygote_python_continues_and_new_contexts_start() {
    let server = Interpreter::start().await;
    server.code("python", "x = 7").await;
    server.code("bash", "pkill -KILL -o -f zygote.py").await;
    assert_eq!(server.code("python", "x").await.text(), "7");
    let context = server.context(json!({})).await;
    assert_eq!(server.run(json!({"context_id": context, "code": "1"})).await.text(), "1");
    let died = server.code("python", "import os; os._exit(1)").await;
    assert_eq!(died.errors(), ["ContextRestarting"], "the end of an orphan is noticed, too");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_ends_running_and_waiting_runs() {
    let server = Interpreter::start().await;
    let context = server.context(json!({})).await;
    let mut running = server
        .execute(json!({"context_id": context, "code": "print('go', flush=True)\nwhile True: pass"}))
        .await;
    running.until("stdout").await;
    let waiting = server.execute(json!({"context_id": context, "code": "1"})).await;
    assert_eq!(server.call("POST", &format!("/contexts/{context}/restart"), &Value::Null).await.0, 200);
    for run in [running, waiting] {
        assert_eq!(run.finish().await.errors(), ["WebSocketError", "UnexpectedEndOfExecution"]);
    }
    assert_eq!(server.run(json!({"context_id": context, "code": "1"})).await.count(), 1);
    let mut running = server
        .execute(json!({"context_id": context, "code": "print('go', flush=True)\nwhile True: pass"}))
        .await;
    running.until("stdout").await;
    assert_eq!(server.call("DELETE", &format!("/contexts/{context}"), &Value::Null).await.0, 200);
    assert_eq!(running.finish().await.errors(), ["WebSocketError", "UnexpectedEndOfExecution"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_interrupted_at_its_own_time_limit() {
    let server = Interpreter::start().await;
    let late = server.run(json!({"code": "x = 1\nwhile True: pass", "timeout": 0.5})).await;
    assert_eq!(late.errors(), ["ExecutionTimeout"]);
    assert_eq!(server.code("python", "x").await.text(), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_loses_nothing() {
    let server = Interpreter::start().await;
    for (language, code) in [
        ("python", "for i in range(20000): print('x' * 500)"),
        ("javascript", "for (let i = 0; i < 20000; i++) console.log('x'.repeat(500))"),
        ("bash", "for i in {1..20000}; do printf '%0500d\\n' 0; done"),
    ] {
        let mut slow = server.execute(json!({"language": language, "code": code})).await;
        slow.until("number_of_executions").await;
        // Another client is served while this one does not read.
        assert_eq!(server.code("typescript", "1 + 1").await.text(), "2");
        let ran = slow.finish().await;
        assert!(ran.errors().is_empty(), "{language}: {:?}", ran.errors());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_sandbox_draws_different_random_numbers() {
    let server = Interpreter::start().await;
    // Both copies begin with the same state; here, with a seed.
    for (language, seed, draw) in [
        (
            "python",
            "import random, numpy; random.seed(1); numpy.random.seed(1)",
            "(random.random(), numpy.random.rand())",
        ),
        ("r", "set.seed(1)", "runif(1)"),
        ("bash", "RANDOM=1", "echo $RANDOM $RANDOM"),
    ] {
        let shown = async |code| {
            let ran = server.code(language, code).await;
            ran.stdout() + &ran.results().iter().map(|result| result["text"].to_string()).collect::<String>()
        };
        shown(seed).await;
        let original = shown(draw).await;
        shown(seed).await;
        assert_eq!(shown(draw).await, original, "{language}: a seed works");
        shown(seed).await;
        std::fs::write(server.shared("id"), format!("copy of {language}")).unwrap();
        assert_ne!(shown(draw).await, original, "{language}");
        assert!(!original.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_zygote_leaves_only_the_context() {
    let server = Interpreter::start_with(&["--drop-zygote"]).await;
    let context = server.context(json!({"cwd": "/tmp"})).await;
    // Its kernels become children of the interpreter, which is PID 1 here.
    let code = "import os\nwhile os.getppid() != 1: pass\nos.getcwd()";
    assert_eq!(server.run(json!({"context_id": context, "code": code})).await.text(), "/tmp");
    let died = server.run(json!({"context_id": context, "code": "os._exit(1)"})).await;
    assert_eq!(died.errors(), ["ContextRestarting"]);
    assert_eq!(server.run(json!({"context_id": context, "code": "1"})).await.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kernels_of_a_killed_interpreter_are_killed_when_the_next_one_starts() {
    let server = Interpreter::start().await;
    let envd = server.envd.address;
    // A second interpreter inside of the first, which only runs this code.
    let code = format!(
        r#"
        serve() {{
            rm -f /tmp/said; mkfifo /tmp/said
            setsid interpreter serve --listen 127.0.0.1:0 --running /tmp/running --envd {envd} > /tmp/said 2>> /tmp/log &
            inner=$!
            read -r line < /tmp/said
        }}
        alive() {{ for pid in "$@"; do [ "$(ps -o stat= -p "$pid" | cut -c1)" != Z ] && kill -0 "$pid" 2> /dev/null && echo "$pid"; done | wc -l; }}
        serve; before=$(ls /tmp/running)
        echo "noted $(echo $before | wc -w), alive $(alive $before)"
        kill -9 $inner; wait $inner 2> /dev/null
        serve
        echo "alive $(alive $before) of the former"
        now=$(ls /tmp/running)
        echo "noted $(echo $now | wc -w), alive $(alive $now)"
        kill $inner
        "#
    );
    let ran = server.code("bash", &code).await;
    let said = "noted 3, alive 3\nalive 0 of the former\nnoted 3, alive 3\n";
    assert_eq!(ran.stdout(), said, "{ran:?}");
}
