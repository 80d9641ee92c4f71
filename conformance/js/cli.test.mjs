// The official CLI, used interactively and by scripts.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import fs from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'

import { Collected, Server } from './server.mjs'

const PACKAGE = createRequire(import.meta.url).resolve('@e2b/cli/package.json')
const CLI = path.join(path.dirname(PACKAGE), JSON.parse(fs.readFileSync(PACKAGE)).bin.e2b)
let server, environment

before(async () => {
  server = await Server.start()
  // A home directory of its own, so that the developer's login is not read or changed.
  environment = { ...process.env, HOME: server.dir, NO_UPDATE_NOTIFIER: '1', NO_COLOR: '1' }
})

after(async () => {
  await server.stop()
})

/** Starts `e2b sandbox …`. */
function start(words, stdin = 'ignore', command = [process.execPath, CLI, 'sandbox', ...words]) {
  const child = spawn(command[0], command.slice(1), { env: environment, stdio: [stdin, 'pipe', 'pipe'] })
  const out = new Collected()
  const err = new Collected()
  child.stdout.on('data', out.add)
  child.stderr.on('data', err.add)
  return { child, out, err, closed: once(child, 'close') }
}

/** Runs `e2b sandbox …`; returns its exit code and output. */
async function e2b(words, input) {
  const { child, out, err, closed } = start(words, input === undefined ? 'ignore' : 'pipe')
  child.stdin?.end(input)
  const [code] = await closed
  return { code, out: out.text, err: err.text }
}

async function create(...options) {
  const { code, out, err } = await e2b(['create', '--detach', ...options])
  assert.equal(code, 0, err)
  const id = out.trim()
  assert.match(id, /^[a-z0-9]+$/, 'a script gets the id and nothing else')
  return id
}

/** Starts `e2b sandbox …` in a terminal of a known size. */
function terminal(words) {
  const line = [process.execPath, CLI, 'sandbox', ...words].join(' ')
  return start([], 'pipe', ['script', '-qefc', `stty rows 33 cols 111 && exec ${line}`, '/dev/null'])
}

test('a sandbox is created, listed, described and killed', async () => {
  const id = await create('--timeout', '120')
  const [listed] = JSON.parse((await e2b(['list', '--format', 'json'])).out)
  assert.deepEqual([listed.sandboxId, listed.name, listed.state], [id, 'base', 'running'])
  assert.equal(new Date(listed.endAt) - new Date(listed.startedAt), 120_000)
  assert.match((await e2b(['list'])).out, new RegExp(`${id} .* base .* Running`))
  const info = JSON.parse((await e2b(['info', '--format', 'json', id])).out)
  assert.deepEqual([info.sandboxId, info.cpuCount, info.memoryMB], [id, 2, 1024])
  assert.match((await e2b(['kill', id])).out, /has been killed/)
  assert.match((await e2b(['kill', id])).err, /wasn't found/)
  const gone = await e2b(['info', id])
  assert.equal(gone.code, 1)
  assert.match(gone.err, /wasn't found/)
  assert.deepEqual(JSON.parse((await e2b(['list', '--format', 'json'])).out), [])
})

test('a command gives its output and its exit code', async () => {
  const id = await create()
  const failed = await e2b(['exec', id, 'sh', '-c', 'echo out; echo err >&2; exit 9'])
  assert.deepEqual([failed.code, failed.out], [9, 'out\n'])
  assert.ok(failed.err.startsWith('err\n'))
  const options = ['-u', 'root', '-c', '/tmp', '-e', 'A=b c']
  const told = await e2b(['exec', ...options, id, 'echo "$A" $PWD $(whoami)'])
  assert.deepEqual(told, { code: 0, out: 'b c /tmp root\n', err: '' })
  await e2b(['kill', id])
})

test('piped input reaches a command complete, with its end', async () => {
  const id = await create()
  const data = randomBytes(150_000).toString('hex')
  // The CLI exits without waiting for its standard output: of a pipe with a slow reader it loses the end, of a file nothing.
  const file = path.join(server.dir, 'output')
  const output = fs.openSync(file, 'w')
  const child = spawn(process.execPath, [CLI, 'sandbox', 'exec', id, 'cat'], {
    env: environment,
    stdio: ['pipe', output, 'ignore'],
  })
  child.stdin.end(data)
  const [code] = await once(child, 'close')
  fs.closeSync(output)
  assert.equal(code, 0)
  const out = fs.readFileSync(file, 'utf8')
  assert.ok(out === data, `${out.length} of ${data.length} came back`)
  await e2b(['kill', id])
})

test('a background command continues after the client has disconnected', async () => {
  const id = await create()
  const { code, err } = await e2b(['exec', '-b', id, 'while true; do date +%N > beat; sleep 0.01; done'])
  assert.equal(code, 0)
  const pid = Number(err)
  const same = await e2b(['exec', id, `kill -0 ${pid} && a=$(cat beat); while [ "$a" = "$(cat beat)" ]; do sleep 0.01; done`])
  assert.equal(same.code, 0)
  await e2b(['kill', id])
})

test('an interrupt ends the command, not the sandbox', async () => {
  const id = await create()
  const { child, out, closed } = start(['exec', id, 'echo $$; exec sleep 1000'])
  await out.until(({ text }) => text.endsWith('\n'))
  child.kill('SIGINT')
  const [code] = await closed
  assert.notEqual(code, 0)
  assert.equal((await e2b(['exec', id, `! kill -0 ${out.text.trim()} 2> /dev/null`])).code, 0)
  await e2b(['kill', id])
})

test('metrics are printed', async () => {
  const id = await create()
  const { code, out } = await e2b(['metrics', '--format', 'json', id])
  assert.equal(code, 0)
  assert.equal(JSON.parse(out.trim().split('\n')[0]).memTotal, 1024 << 20)
  await e2b(['kill', id])
})

test('logs list what ran in a sandbox', async () => {
  const id = await create()
  await e2b(['exec', id, 'echo findme'])
  // Following the logs ends when the sandbox does.
  const { out, closed } = start(['logs', '--follow', '--format', 'json', id])
  await out.until(({ text }) => text.includes('findme'))
  await e2b(['kill', id])
  const [code] = await closed
  assert.equal(code, 0)
  for (const line of out.text.split('\n').filter((line) => line.startsWith('{'))) assert.ok(JSON.parse(line).timestamp)
})

test('all sandboxes are killed by one command', async () => {
  const ids = [await create(), await create()]
  const { code, out } = await e2b(['kill', '--all'])
  assert.equal(code, 0)
  for (const id of ids) assert.match(out, new RegExp(id))
  assert.deepEqual(JSON.parse((await e2b(['list', '--format', 'json'])).out), [])
})

test('a terminal has the size of the local one, and survives a disconnect', async () => {
  const id = await create('--timeout', '120')
  const shell = terminal(['connect', id])
  await shell.out.until(({ text }) => text.includes('$ '))
  shell.child.stdin.write('echo $((6*7))-$(tput cols)x$(tput lines)\n')
  await shell.out.until(({ text }) => /42-111x33\s[^]*\$ /.test(text))
  shell.child.stdin.write('exit\n')
  const [code] = await shell.closed
  assert.equal(code, 0, shell.out.text)
  assert.match((await e2b(['info', id])).out, /State: running/)
  await e2b(['kill', id])
})

test('a sandbox created for a terminal ends soon after it', async () => {
  const shell = terminal(['create', '-e', 'OWN=mine'])
  await shell.out.until(({ text }) => text.includes('$ '))
  const [, sandboxId] = shell.out.text.match(/with sandbox ID \S*?(i[a-z0-9]{20})/)
  shell.child.stdin.write('echo "<$OWN>"; exit\n')
  const [code] = await shell.closed
  assert.equal(code, 0, shell.out.text)
  assert.match(shell.out.text, /<mine>/)
  // The client sets its timeout to a second.
  const headers = { 'X-API-Key': server.key }
  const deadline = Date.now() + 5000
  while ((await server.call('GET', `/sandboxes/${sandboxId}`, { headers })).status !== 404) {
    assert.ok(Date.now() < deadline, 'still there')
    await sleep(20)
  }
})

test('failures are printed and set the exit code', async () => {
  const id = await create()
  await e2b(['kill', id])
  assert.equal((await e2b(['exec', id, 'true'])).code, 1)
  const unknown = await e2b(['create', '--detach', 'no-such-template'])
  assert.equal(unknown.code, 1)
  assert.match(unknown.err, /template 'no-such-template' not found/)
  environment.E2B_API_KEY = 'e2b_' + '0'.repeat(40)
  try {
    const refused = await e2b(['list'])
    assert.equal(refused.code, 1)
    assert.match(refused.err, /Unauthorized/)
  } finally {
    environment.E2B_API_KEY = server.key
  }
})
