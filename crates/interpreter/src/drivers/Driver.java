// Runs cells of Java in one persistent JShell, inside of this process.
// Standard input is a socket to the interpreter, both ways: lines of words, all but the first in base64.
// An interrupt stops the running snippet; its declarations are kept.

import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.FileDescriptor;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.security.SecureRandom;
import java.util.ArrayList;
import java.util.Base64;
import java.util.List;
import java.util.Random;
import java.util.concurrent.atomic.AtomicLong;
import jdk.jshell.Diag;
import jdk.jshell.EvalException;
import jdk.jshell.JShell;
import jdk.jshell.Snippet;
import jdk.jshell.SnippetEvent;
import jdk.jshell.SourceCodeAnalysis;
import jdk.jshell.SourceCodeAnalysis.CompletionInfo;
import jdk.jshell.UnresolvedReferenceException;
import jdk.jshell.execution.LocalExecutionControlProvider;

public final class Driver {
    private static final List<String> IMPORTS = List.of("java.io.*", "java.math.*", "java.net.*", "java.nio.file.*",
            "java.util.*", "java.util.concurrent.*", "java.util.function.*", "java.util.prefs.*",
            "java.util.regex.*", "java.util.stream.*");

    private static OutputStream control;
    private static int count;
    private static volatile boolean running;

    public static void main(String[] arguments) throws IOException {
        control = new FileOutputStream(FileDescriptor.in);
        BufferedReader requests = new BufferedReader(
                new InputStreamReader(new FileInputStream(FileDescriptor.in), StandardCharsets.ISO_8859_1));
        System.setIn(InputStream.nullInputStream());
        System.setOut(new PrintStream(new Output("out"), true, StandardCharsets.UTF_8));
        System.setErr(new PrintStream(new Output("err"), true, StandardCharsets.UTF_8));
        JShell shell = JShell.builder().executionEngine(new LocalExecutionControlProvider(), null).build();
        for (String name : IMPORTS) {
            shell.eval("import " + name + ";");
        }
        // Compile once, so that the compiler is loaded before the first cell.
        shell.eval("1 + 1");
        sun.misc.Signal.handle(new sun.misc.Signal("INT"), signal -> {
            if (running) {
                new Thread(shell::stop).start();
            }
        });
        tell("ready");
        for (String line; (line = requests.readLine()) != null; ) {
            String[] words = line.split(" ");
            for (int at = 1; at < words.length; at++) {
                words[at] = new String(Base64.getDecoder().decode(words[at]), StandardCharsets.UTF_8);
            }
            String second = words.length > 2 ? words[2] : "";
            switch (words[0]) {
                case "run" -> run(shell, words.length > 1 ? words[1] : "");
                case "set" -> System.setProperty(words[1], second);
                case "unset" -> System.clearProperty(words[1]);
                case "cwd" -> System.setProperty("user.dir", words[1]);
                case "seed" -> reseed();
                default -> throw new IOException("unknown request " + words[0]);
            }
        }
        System.exit(0);
    }

    private static void run(JShell shell, String code) {
        tell("count", Integer.toString(++count));
        running = true;
        try {
            evaluate(shell, code);
        } catch (RuntimeException | StackOverflowError error) {
            tell("error", error.getClass().getSimpleName(), String.valueOf(error.getMessage()), error.toString());
        }
        running = false;
        System.out.flush();
        System.err.flush();
        tell("done");
    }

    /** Evaluates snippet after snippet; the value of the last one is the result. */
    private static void evaluate(JShell shell, String code) {
        SourceCodeAnalysis analysis = shell.sourceCodeAnalysis();
        String value = null;
        for (String rest = code; !rest.isBlank(); ) {
            CompletionInfo info = analysis.analyzeCompletion(rest);
            String source = info.completeness().isComplete() ? info.source() : rest;
            for (SnippetEvent event : shell.eval(source)) {
                if (event.causeSnippet() != null) {
                    continue;
                }
                if (!tellFailure(shell, event)) {
                    return;
                }
                value = isExpression(event.snippet()) ? event.value() : null;
            }
            rest = info.completeness().isComplete() ? info.remaining() : "";
        }
        if (value != null && !value.isEmpty()) {
            tell("result", "1", "{\"text/plain\":" + json(value) + "}");
        }
    }

    /** A bare expression shows its value; a declaration and a statement do not. */
    private static boolean isExpression(Snippet snippet) {
        return snippet.kind() == Snippet.Kind.EXPRESSION || snippet.subKind() == Snippet.SubKind.TEMP_VAR_EXPRESSION_SUBKIND;
    }

    /** Whether to go on. */
    private static boolean tellFailure(JShell shell, SnippetEvent event) {
        if (event.exception() instanceof EvalException thrown) {
            String name = thrown.getExceptionClassName();
            if (name.equals("java.lang.ThreadDeath")) {
                tell("error", "KeyboardInterrupt", "The cell was interrupted", "");
                return false;
            }
            StringBuilder trace = new StringBuilder(name + ": " + thrown.getMessage());
            for (StackTraceElement frame : thrown.getStackTrace()) {
                trace.append("\n\tat ").append(frame);
            }
            tell("error", name, String.valueOf(thrown.getMessage()), trace.toString());
            return false;
        }
        if (event.exception() instanceof UnresolvedReferenceException unresolved) {
            String missing = String.join(", ", shell.unresolvedDependencies(unresolved.getSnippet()).toList());
            tell("error", "UnresolvedReferenceException", "not defined: " + missing, "not defined: " + missing);
            return false;
        }
        if (event.status() == Snippet.Status.REJECTED) {
            List<String> messages = new ArrayList<>();
            for (Diag diagnostic : shell.diagnostics(event.snippet()).toList()) {
                messages.add(diagnostic.getMessage(null));
            }
            String all = String.join("\n", messages);
            tell("error", "CompilationException", all, event.snippet().source() + "\n" + all);
            return false;
        }
        if (event.value() == null && event.status() == Snippet.Status.VALID && event.exception() != null) {
            tell("error", event.exception().getClass().getSimpleName(), String.valueOf(event.exception().getMessage()), "");
            return false;
        }
        return true;
    }

    /** A copy of this process must not draw the same numbers. Needs the `--add-opens` that the interpreter gives. */
    private static void reseed() {
        SecureRandom source = new SecureRandom();
        try {
            var holder = Class.forName("java.lang.Math$RandomNumberGeneratorHolder").getDeclaredField("randomNumberGenerator");
            holder.setAccessible(true);
            ((Random) holder.get(null)).setSeed(source.nextLong());
            var local = Class.forName("java.util.concurrent.ThreadLocalRandom");
            var seeder = local.getDeclaredField("seeder");
            seeder.setAccessible(true);
            ((AtomicLong) seeder.get(null)).set(source.nextLong());
            var initialize = local.getDeclaredMethod("localInit");
            initialize.setAccessible(true);
            initialize.invoke(null);
            var uniquifier = Random.class.getDeclaredField("seedUniquifier");
            uniquifier.setAccessible(true);
            ((AtomicLong) uniquifier.get(null)).set(source.nextLong());
        } catch (ReflectiveOperationException | RuntimeException error) {
            System.err.println("The random numbers of this context may repeat those of a copy: " + error);
        }
    }

    private static synchronized void tell(String verb, String... words) {
        StringBuilder line = new StringBuilder(verb);
        for (String word : words) {
            line.append(' ').append(Base64.getEncoder().encodeToString(word.getBytes(StandardCharsets.UTF_8)));
        }
        try {
            control.write(line.append('\n').toString().getBytes(StandardCharsets.ISO_8859_1));
        } catch (IOException gone) {
            System.exit(1);
        }
    }

    private static String json(String text) {
        StringBuilder out = new StringBuilder("\"");
        for (char c : text.toCharArray()) {
            if (c == '"' || c == '\\') {
                out.append('\\').append(c);
            } else if (c < ' ') {
                out.append(String.format("\\u%04x", (int) c));
            } else {
                out.append(c);
            }
        }
        return out.append('"').toString();
    }

    /** A stream to the client. The line feed of a `println` goes alone, as older JDKs wrote it and clients compare it. */
    private static final class Output extends OutputStream {
        private final String verb;
        private final ByteArrayOutputStream held = new ByteArrayOutputStream();

        Output(String verb) {
            this.verb = verb;
        }

        @Override
        public synchronized void write(int one) {
            held.write(one);
        }

        @Override
        public synchronized void write(byte[] bytes, int from, int length) {
            held.write(bytes, from, length);
        }

        @Override
        public synchronized void flush() {
            String text = held.toString(StandardCharsets.UTF_8);
            held.reset();
            if (text.isEmpty()) {
                return;
            }
            if (text.length() > 1 && text.endsWith("\n")) {
                tell(verb, text.substring(0, text.length() - 1));
                text = "\n";
            }
            tell(verb, text);
        }
    }
}
