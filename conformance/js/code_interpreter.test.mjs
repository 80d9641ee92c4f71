// The code interpreter through its official JavaScript SDK, against a server whose template `code-interpreter-v1` is ready.
// The server's data directory is kept between runs, because the template takes minutes to build.

import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { Sandbox } from '@e2b/code-interpreter'

import { Server } from './server.mjs'

let server, sandbox

before(async () => {
  server = await Server.start({ data: process.env.COFFERDAM_INTERPRETER_DATA, trusting: true })
  await server.build('code-interpreter-v1')
  sandbox = await Sandbox.create({ timeoutMs: 600_000, envs: { SHARED: 'sandbox' } })
})

after(async () => {
  await sandbox?.kill()
  await server?.stop()
})

const printed = (execution) => execution.logs.stdout.join('')

test('cells share their state, are counted, and extra is empty', async () => {
  const context = await sandbox.createCodeContext()
  assert.equal((await sandbox.runCode('x = 1', { context })).executionCount, 1)
  const execution = await sandbox.runCode('x += 1; x', { context })
  assert.deepEqual([execution.text, execution.executionCount, execution.error], ['2', 2, undefined])
  assert.deepEqual(execution.results[0].extra, {})
  await sandbox.removeCodeContext(context)
})

test('output, results and errors are streamed in order', async () => {
  const seen = []
  const execution = await sandbox.runCode(
    "import sys, time\nprint('a', flush=True)\ntime.sleep(0.3)\nprint('b', file=sys.stderr, flush=True)\ndisplay('c')\n1 / 0",
    {
      onStdout: (message) => seen.push(['out', message.line]),
      onStderr: (message) => seen.push(['err', message.line]),
      onResult: (result) => seen.push(['result', result.text]),
      onError: (error) => seen.push(['error', error.name]),
    }
  )
  assert.deepEqual(seen, [['out', 'a\n'], ['err', 'b\n'], ['result', 'c'], ['error', 'ZeroDivisionError']])
  assert.equal(execution.error.value, 'division by zero')
  assert.match(execution.error.traceback, /ZeroDivisionError/)
})

for (const [language, code, value] of [
  ['python', "print('Hello, World!'); 2 + 3", '5'],
  ['javascript', "console.log('Hello, World!'); 2 + 3", '5'],
  ['typescript', "const n: number = 5; console.log('Hello, World!'); n", '5'],
  ['r', "cat('Hello, World!\\n'); 2 + 3", '[1] 5'],
  ['java', 'System.out.println("Hello, World!"); 2 + 3', '5'],
  ['bash', "echo 'Hello, World!'", undefined],
]) {
  test(`${language} runs and sees its variables`, async () => {
    const timeoutMs = 120_000
    const execution = await sandbox.runCode(code, { language, timeoutMs })
    assert.equal(execution.error, undefined)
    assert.equal(printed(execution), 'Hello, World!\n')
    assert.equal(execution.results[0]?.text, value)
    const read = {
      python: "import os; print(os.environ['SHARED'], os.environ['OWN'])",
      javascript: 'console.log(process.env.SHARED, process.env.OWN)',
      typescript: 'console.log(process.env.SHARED, process.env.OWN)',
      r: "cat(Sys.getenv('SHARED'), Sys.getenv('OWN'))",
      java: 'System.out.print(System.getProperty("SHARED") + " " + System.getProperty("OWN"));',
      bash: 'echo $SHARED $OWN',
    }[language]
    const own = await sandbox.runCode(read, { language, timeoutMs, envs: { OWN: 'mine' } })
    assert.equal(printed(own).trim(), 'sandbox mine')
  })
}

test('contexts are made, listed, restarted and removed', async () => {
  const context = await sandbox.createCodeContext({ language: 'js', cwd: '/tmp' })
  assert.deepEqual([context.language, context.cwd], ['javascript', '/tmp'])
  assert.equal((await sandbox.listCodeContexts()).at(-1).id, context.id)
  assert.equal((await sandbox.runCode('const kept = 1; process.cwd()', { context })).text, '/tmp')
  await sandbox.restartCodeContext(context)
  assert.equal((await sandbox.runCode('[typeof kept, process.cwd()].join()', { context })).text, 'undefined,/tmp')
  await sandbox.removeCodeContext(context)
  await assert.rejects(sandbox.runCode('1', { context }))
})

test('code that is no string is rejected', async () => {
  await assert.rejects(sandbox.runCode({ code: '1' }))
  await assert.rejects(sandbox.createCodeContext({ language: 'cobol' }))
})

test('charts, tables and images', async () => {
  const line = await sandbox.runCode("import matplotlib.pyplot as plt\nplt.plot([1, 2], [3, 4])\nplt.title('T')\nplt.show()")
  assert.equal(line.results[0].chart.type, 'line')
  assert.equal(line.results[0].chart.title, 'T')
  assert.ok(line.results[0].png.startsWith('iVBOR'))
  const table = await sandbox.runCode("import pandas as pd\npd.DataFrame({'z': [1], 'a': ['\u00e9\u{1f600}']})")
  assert.deepEqual(table.results[0].data, { z: [1], a: ['\u00e9\u{1f600}'] })
  assert.deepEqual(Object.keys(table.results[0].data), ['z', 'a'])
})

test('a run that takes too long is interrupted, and its state stays', async () => {
  const context = await sandbox.createCodeContext()
  await assert.rejects(sandbox.runCode('q = 1\nimport time\ntime.sleep(600)', { context, timeoutMs: 2_000 }))
  assert.equal((await sandbox.runCode('q', { context })).text, '1')
  await sandbox.removeCodeContext(context)
})

test('a killed kernel is reported', async () => {
  const context = await sandbox.createCodeContext()
  const execution = await sandbox.runCode('import os; os._exit(1)', { context })
  assert.equal(execution.error.name, 'ContextRestarting')
  assert.equal((await sandbox.runCode('1', { context })).executionCount, 1)
  await sandbox.removeCodeContext(context)
})

test('pause and resume keep variables alive', async () => {
  const paused = await Sandbox.create({ timeoutMs: 300_000 })
  try {
    await paused.runCode('x = 41')
    await paused.pause()
    const resumed = await Sandbox.connect(paused.sandboxId)
    assert.equal((await resumed.runCode('x + 1')).text, '42')
  } finally {
    await paused.kill()
  }
})
