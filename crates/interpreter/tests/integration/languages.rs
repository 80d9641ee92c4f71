//! Each language: state, output, values, errors, variables, and Python's rich results.
//! Only what clients see is tested.
//! Each test has a server of its own; slow languages are started once.

#![allow(missing_docs, clippy::unwrap_used)]

use crate::common::Interpreter;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn every_language_keeps_state_counts_prints_and_fails() {
    let server = Interpreter::start().await;
    for (language, define, show, value, fail, error) in [
        ("python", "x = 20", "print('hi'); x + 1", "21", "1 / 0", "ZeroDivisionError"),
        ("javascript", "const x = 20", "console.log('hi'); x + 1", "21", "null.x", "TypeError"),
        (
            "typescript",
            "let x: number = 20",
            "console.log('hi'); x + 1 as number",
            "21",
            "throw new RangeError('a')",
            "RangeError",
        ),
        ("r", "x <- 20", "cat('hi\\n'); x + 1", "[1] 21", "stop('bad')", "ERROR"),
        (
            "java",
            "int x = 20;",
            "System.out.println(\"hi\"); x + 1",
            "21",
            "Object o = null; o.hashCode()",
            "java.lang.NullPointerException",
        ),
    ] {
        let defined = server.code(language, define).await;
        assert_eq!((defined.count(), defined.errors().len()), (1, 0), "{language}: {defined:?}");
        let shown = server.code(language, show).await;
        assert_eq!((shown.count(), shown.stdout().as_str(), shown.text()), (2, "hi\n", value), "{language}");
        let failed = server.code(language, fail).await;
        assert_eq!(failed.errors(), [error], "{language}: {failed:?}");
        assert!(!failed.error()["traceback"].as_str().unwrap().is_empty(), "{language}");
        assert_eq!(server.code(language, "x").await.text(), value.replace("21", "20"), "{language}");
    }
    let ran = server.code("bash", "x=20; echo hi; echo no >&2; (exit 3)").await;
    assert_eq!((ran.count(), ran.stdout().as_str(), ran.stderr().as_str()), (1, "hi\n", "no\n"));
    assert_eq!(ran.error(), &json!({"type": "error", "name": "", "value": "3", "traceback": ""}));
    assert_eq!(server.code("bash", "cd /tmp; echo $x").await.stdout(), "20\n");
    assert_eq!(
        server.code("bash", "pwd; cat; f() { return 4; }").await.stdout(),
        "/tmp\n",
        "cells have no input"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn variables_of_the_sandbox_and_of_a_run_reach_every_language() {
    let server = Interpreter::start().await;
    let tricky = "it's \"$(id)\" `id` \\ \u{e9}\u{1f600}\nend";
    server.envd.env(&[("GLOBAL", "sandbox"), ("SHARED", "sandbox"), ("TRICKY", tricky)]);
    for (language, read) in [
        ("python", "import os; print(*[os.environ.get(n) for n in ('GLOBAL', 'SHARED', 'OWN')])"),
        ("javascript", "console.log(process.env.GLOBAL, process.env.SHARED, process.env.OWN)"),
        ("typescript", "console.log(process.env.GLOBAL, process.env.SHARED, process.env.OWN)"),
        ("r", "cat(Sys.getenv('GLOBAL'), Sys.getenv('SHARED'), Sys.getenv('OWN', 'none'))"),
        (
            "java",
            "for (String n : List.of(\"GLOBAL\", \"SHARED\", \"OWN\")) System.out.print(System.getProperty(n) + \" \");",
        ),
        ("bash", "echo $GLOBAL $SHARED ${OWN-none}"),
    ] {
        let none = if matches!(language, "r" | "bash") { "none" } else { "None" };
        let none = match language {
            "javascript" | "typescript" => "undefined",
            "java" => "null",
            _ => none,
        };
        let own = json!({"language": language, "code": read, "env_vars": {"SHARED": "run", "OWN": "mine"}});
        assert_eq!(server.run(own).await.stdout().trim(), "sandbox run mine", "{language}");
        let after = server.code(language, read).await;
        assert_eq!(after.stdout().trim(), format!("sandbox sandbox {none}"), "{language}");
    }
    for (language, read) in [
        ("python", "os.environ['TRICKY']"),
        ("javascript", "display.text(process.env.TRICKY)"),
        ("java", "System.out.print(System.getProperty(\"TRICKY\"))"),
        ("r", "cat(Sys.getenv('TRICKY'))"),
        ("bash", "printf %s \"$TRICKY\""),
    ] {
        let ran = server.code(language, read).await;
        let shown =
            ran.stdout() + ran.results().first().map_or("", |result| result["text"].as_str().unwrap());
        let expected =
            if language == "python" { "it\\'s \"$(id)\" `id` \\\\ \u{e9}\u{1f600}\\nend" } else { tricky };
        assert_eq!(shown, expected, "{language}");
    }
    server.envd.env(&[("GLOBAL", "changed")]);
    let changed = server.code("python", "os.environ['GLOBAL'], os.environ.get('SHARED')").await;
    assert_eq!(changed.text(), "('changed', None)", "a copy of a sandbox has other variables");
    let path = json!({"code": "1", "env_vars": {"PATH": "/nowhere"}});
    server.run(path).await;
    assert!(
        server.code("python", "os.environ['PATH']").await.text().contains("/usr/bin"),
        "what was there comes back"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn contexts_of_every_language_start_in_their_dir() {
    let server = Interpreter::start().await;
    for (language, show, expected) in [
        ("python", "import os; os.getcwd()", "/opt"),
        ("javascript", "process.cwd()", "/opt"),
        ("typescript", "process.cwd()", "/opt"),
        ("r", "getwd()", "[1] \"/opt\""),
        ("java", "System.getProperty(\"user.dir\")", "/opt"),
    ] {
        let id = server.context(json!({"language": language, "cwd": "/opt"})).await;
        assert_eq!(server.run(json!({"context_id": id, "code": show})).await.text(), expected, "{language}");
    }
    let id = server.context(json!({"language": "bash", "cwd": "/opt"})).await;
    assert_eq!(server.run(json!({"context_id": id, "code": "pwd"})).await.stdout(), "/opt\n");
    let id = server.context(json!({"cwd": "/nowhere"})).await;
    let ran = server.run(json!({"context_id": id, "code": "import os; os.getcwd()"})).await;
    assert_eq!(ran.text(), "/home/user");
}

#[tokio::test(flavor = "multi_thread")]
async fn javascript_imports_awaits_and_redeclares() {
    let server = Interpreter::start().await;
    for (language, code, expected) in [
        (
            "javascript",
            "import fs, { existsSync as there } from 'node:fs'\nimport * as os from 'node:os'\n[typeof fs.readFileSync, there('/'), typeof os.cpus]",
            "[ 'function', true, 'function' ]",
        ),
        ("javascript", "there('/nowhere')", "false"),
        ("javascript", "const { sep } = require('path'); sep", "/"),
        (
            "javascript",
            "const a = await Promise.resolve(1), { b, ...rest } = { b: 2, c: 3 }\nclass K { static v = 4 }\nfunction f() { return a + b }\nfor await (const x of [5]) { var last = x }\n[a, b, rest, K.v, f(), last]",
            "[ 1, 2, { c: 3 }, 4, 3, 5 ]",
        ),
        (
            "javascript",
            "const a = 'again'; class K {}; [a, f(), typeof K]",
            "[ 'again', 'again2', 'function' ]",
        ),
        ("javascript", "Promise.resolve('awaited')", "awaited"),
        ("javascript", "{ a: 1, b: [2] }", "{ a: 1, b: [ 2 ] }"),
        ("javascript", "(await import('node:path')).sep", "/"),
        ("javascript", "export const e = 7\nexport default function g() {}\ne", "7"),
        ("javascript", "const typed: number = 1\ntyped", "1"),
        (
            "typescript",
            "enum Color { Red, Green }\ninterface P { x: number }\nconst p: P = { x: Color.Green }\np.x",
            "1",
        ),
        (
            "typescript",
            "import type { Stats } from 'fs'\nimport { readFileSync } from 'fs'\ntypeof readFileSync",
            "function",
        ),
        (
            "typescript",
            "class Q { constructor(private n: number) {} get(): number { return this.n } }\nawait Promise.resolve(new Q(3).get())",
            "3",
        ),
    ] {
        let ran = server.code(language, code).await;
        assert_eq!(ran.errors(), [""; 0], "{code}: {ran:?}");
        assert_eq!(ran.text(), expected, "{code}");
    }
    for silent in [
        "const u = 1",
        "undefined",
        "let k = 0; for (const i of [1, 2]) k += i",
        "function h() {}",
        "if (true) { 5 }",
    ] {
        server.code("javascript", silent).await.assert_silent();
    }
    let failed = server.code("javascript", "let = = 1").await;
    assert_eq!(failed.errors(), ["SyntaxError"]);
    let failed = server.code("javascript", "\nfunction deep() { throw new Error('here') }\ndeep()").await;
    let trace = failed.error()["traceback"].as_str().unwrap();
    assert!(trace.contains("cell-") && trace.contains(":2:") && !trace.contains("main.cjs"), "{trace}");
    let ran = server.code("javascript", "setTimeout(() => { throw new Error('later') }, 0); await new Promise((done) => setTimeout(done, 50))").await;
    assert!(ran.stderr().contains("later") && ran.errors().is_empty(), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn javascript_values_show_themselves() {
    let server = Interpreter::start().await;
    for (code, field, expected) in [
        ("display.html('<b>1</b>')", "html", "<b>1</b>"),
        ("$$.png(Buffer.from('hi'))", "png", "aGk="),
        ("display({ _toSvg: () => '<svg/>' })", "svg", "<svg/>"),
        ("({ [Symbol.for('Jupyter.display')]: () => ({ 'text/markdown': '*m*' }) })", "markdown", "*m*"),
        ("({ _toMime: () => ({ 'text/latex': 'x' }) })", "latex", "x"),
    ] {
        let ran = server.code("javascript", code).await;
        assert_eq!(ran.result()[field], expected, "{code}");
        assert_eq!(ran.result()["is_main_result"], code.starts_with('('), "{code}");
    }
    let ran = server
        .code("javascript", "process.stdout.write('a'); display(1); console.error('b'); display(2)")
        .await;
    let types: Vec<&str> = ran.events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["number_of_executions", "stdout", "result", "stderr", "result"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn java_shows_values_and_output_and_reports_compile_errors() {
    let server = Interpreter::start().await;
    let ran = server.code("java", "System.out.println(\"Hello, World!\");").await;
    let texts: Vec<&Value> = ran.events[1..].iter().map(|event| &event["text"]).collect();
    assert_eq!(texts, ["Hello, World!", "\n"]);
    let ran = server
        .code(
            "java",
            "record P(int x) {}\nvar list = List.of(new P(1), new P(2));\nlist.stream().mapToInt(P::x).sum()",
        )
        .await;
    assert_eq!(ran.text(), "3");
    server.code("java", "int declared = 1;").await.assert_silent();
    assert_eq!(server.code("java", "\"text\"").await.text(), "text");
    let ran = server.code("java", "int n = \"s\";").await;
    assert_eq!(ran.errors(), ["CompilationException"]);
    assert!(ran.error()["value"].as_str().unwrap().contains("incompatible types"), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn r_shows_values_tables_and_plots() {
    let server = Interpreter::start().await;
    let ran = server.code("r", "x <- 'a'\nx").await;
    assert_eq!((ran.text(), &ran.result()["is_main_result"]), ("[1] \"a\"", &json!(false)));
    let ran = server.code("r", "data.frame(a = 1:2)").await;
    assert!(ran.result()["html"].as_str().unwrap().contains("<table"));
    let ran = server.code("r", "plot(1:3)").await;
    assert!(ran.result()["png"].as_str().unwrap().starts_with("iVBOR"));
}

#[tokio::test(flavor = "multi_thread")]
async fn python_values_have_every_format() {
    let server = Interpreter::start().await;
    for (code, field, expected) in [
        ("'it'", "text", json!("it")),
        ("[1, {'a': float('nan')}]", "json", json!([1, {"a": null}])),
        ("import numpy as np; {'n': np.arange(2), 3: None}", "json", json!({"n": [0, 1], "3": null})),
        (
            "class A:\n  def _repr_html_(self): return '<b>'\n  def _repr_e2b_data_(self): return {'d': [1]}\nA()",
            "html",
            json!("<b>"),
        ),
        ("A()", "data", json!({"d": [1]})),
        (
            "class B:\n  def _repr_e2b_chart_(self): return {'type': 'unknown'}\nB()",
            "chart",
            json!({"type": "unknown"}),
        ),
        ("from IPython.display import *; Markdown('*m*')", "markdown", json!("*m*")),
        ("Latex('$x$')", "latex", json!("$x$")),
        (
            "SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"></svg>')",
            "svg",
            json!("<svg xmlns=\"http://www.w3.org/2000/svg\"/>"),
        ),
        ("Javascript('1')", "javascript", json!("1")),
        ("import base64; display({'application/pdf': 'JVBERg=='}, raw=True)", "pdf", json!("JVBERg==")),
        (
            "display({'application/x-own': {'a': 1}}, raw=True)",
            "extra",
            json!({"application/x-own": {"a": 1}}),
        ),
    ] {
        let ran = server.code("python", code).await;
        assert_eq!(ran.result()[field], expected, "{code}: {ran:?}");
        assert_eq!(ran.result()["is_main_result"], !code.contains("display("), "{code}");
    }
    server.code("python", "None").await.assert_silent();
    let ran = server.code("python", "from PIL import Image; Image.new('RGB', (2, 2)).show()").await;
    assert!(ran.result()["jpeg"].is_string() || ran.result()["png"].is_string(), "{ran:?}");
    let ran = server.code("python", "Image.new('RGB', (2, 2)).save('/tmp/a.png'); import io; Image.new('RGB', (1, 1)).save(io.BytesIO(), 'png')").await;
    assert_eq!(ran.results().len(), 1);
    let ran =
        server.code("python", "import plotly.graph_objects as go; go.Figure(go.Scatter(y=[1, 2]))").await;
    // Before the first figure plotly's script is a result of its own.
    let figure = ran.results().pop().unwrap();
    assert_eq!(figure["extra"]["application/vnd.plotly.v1+json"]["data"][0]["y"], json!([1, 2]));
    let ran = server.code("python", "input()").await;
    assert_eq!(ran.errors(), ["StdinNotImplementedError"]);
    let ran = server.code("python", "%%bash\necho magic").await;
    assert_eq!(ran.stdout(), "magic\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn data_frames_are_columns_with_any_content() {
    let server = Interpreter::start().await;
    let code = "import pandas as pd\npd.DataFrame({'z': [1.5, float('nan')], 'a': [pd.Timestamp('2024-01-01'), pd.NaT], 3: [pd.Timedelta(days=1), object()], ('t', 'u'): ['x', None]})";
    let ran = server.code("python", code).await;
    assert_eq!(ran.stderr(), "");
    let data = &ran.result()["data"];
    assert_eq!(data["z"], json!([1.5, null]));
    assert_eq!(data["a"], json!(["2024-01-01T00:00:00", null]));
    assert!(data["3"][0].is_string() && data["3"][1].is_string());
    assert_eq!(data["('t', 'u')"], json!(["x", null]));
    assert!(ran.result()["html"].as_str().unwrap().contains("<table"));
    assert!(server.code("python", "pd.Series([1])").await.result().get("data").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_chart_type_is_recognised() {
    let server = Interpreter::start().await;
    server.code("python", "import matplotlib.pyplot as plt, datetime as dt").await;
    let draw = async |code: &str| {
        let ran = server.code("python", &format!("{code}; plt.show()")).await;
        assert!(ran.result()["png"].as_str().unwrap().starts_with("iVBOR"), "{code}");
        ran.result()["chart"].clone()
    };
    let line = draw("plt.plot([1, 2], [3, 4], label='L'); plt.title('T'); plt.xlabel('time (s)')").await;
    assert_eq!(line["type"], "line");
    assert_eq!(
        (&line["title"], &line["x_label"], &line["x_unit"], &line["y_label"]),
        (&json!("T"), &json!("time (s)"), &json!("s"), &Value::Null)
    );
    assert_eq!(line["elements"], json!([{"label": "L", "points": [[1.0, 3.0], [2.0, 4.0]]}]));
    assert_eq!(draw("plt.scatter([1], [2])").await["type"], "scatter");
    let bar = draw("plt.bar(['a', 'b'], [1, 2])").await;
    assert_eq!(
        (&bar["type"], &bar["elements"][1]["label"], &bar["elements"][1]["value"]),
        (&json!("bar"), &json!("b"), &json!(2.0))
    );
    let pie = draw("plt.pie([1, 3], labels=['a', 'b'])").await;
    assert_eq!((&pie["type"], &pie["elements"][0]["angle"]), (&json!("pie"), &json!(90.0)));
    let boxes = draw("plt.boxplot([[1, 2, 3, 4], [2, 4, 6, 9]], labels=['a', 'b'], patch_artist=True)").await;
    assert_eq!((&boxes["type"], &boxes["elements"][0]["median"]), (&json!("box_and_whisker"), &json!(2.5)));
    let many =
        draw("f, (a, b) = plt.subplots(1, 2); f.suptitle('S'); a.plot([1, 2]); b.bar(['x'], [1])").await;
    assert_eq!((&many["type"], &many["title"]), (&json!("superchart"), &json!("S")));
    assert_eq!((&many["elements"][0]["type"], &many["elements"][1]["type"]), (&json!("line"), &json!("bar")));
    assert_eq!(draw("plt.imshow([[1]])").await["type"], "unknown");
    assert_eq!(draw("plt.plot([1, 2]); plt.yscale('log')").await["y_scale"], "log");
    assert_eq!(
        draw("plt.plot([dt.date(2024, 1, 1), dt.date(2024, 1, 2)], [1, 2])").await["x_scale"],
        "datetime"
    );
    assert_eq!(draw("plt.plot(['a', 'b'], [1, 2])").await["x_scale"], "categorical");
    let empty = server.code("python", "plt.figure(); plt.show()").await;
    assert_eq!(empty.result()["chart"], json!({}), "{empty:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn new_contexts_see_newly_installed_packages() {
    let server = Interpreter::start().await;
    // Like pip: a file beside the packages, which changes their directory.
    let code = "import sysconfig, pathlib\n(pathlib.Path(sysconfig.get_path('purelib')) / 'fresh.py').write_text('value = 5')";
    server.code("python", code).await;
    let id = server.context(json!({})).await;
    assert_eq!(server.run(json!({"context_id": id, "code": "import fresh; fresh.value"})).await.text(), "5");
}

#[tokio::test(flavor = "multi_thread")]
async fn contexts_draw_different_random_numbers() {
    let server = Interpreter::start().await;
    let code = "import numpy, random; (numpy.random.rand(), random.random())";
    let mut drawn = Vec::new();
    for _ in 0..3 {
        let id = server.context(json!({})).await;
        drawn.push(server.run(json!({"context_id": id, "code": code})).await.text().to_owned());
    }
    drawn.sort();
    drawn.dedup();
    assert_eq!(drawn.len(), 3);
}
