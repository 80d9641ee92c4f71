// The lifecycle through the official JavaScript SDK: pause, resume, snapshots, forks, timeouts.

import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'

import { NotFoundError, Sandbox, SandboxNotFoundError, TimeoutError } from 'e2b'

import { Collected, Server } from './server.mjs'

const BOOT = 'cat /proc/sys/kernel/random/boot_id'
let server

before(async () => {
  // Every resume is a restore.
  server = await Server.start({ options: ['--keep-frozen-max', '0'] })
})
after(() => server.stop())

const pids = async (sandbox) => (await sandbox.commands.list()).map(({ pid }) => pid)
const said = async (sandbox, command) => (await sandbox.commands.run(command)).stdout

// Starts a web server; resolves once the server's output says that it listens.
async function serving(sandbox) {
  const output = new Collected()
  const web = await sandbox.commands.run('python3 -u -m http.server 8000', {
    background: true,
    timeoutMs: 0,
    onStdout: output.add,
  })
  await output.until(({ text }) => text.includes('Serving HTTP'))
  return web
}

const toPort = (sandbox, port = 8000) => ({
  headers: { 'E2b-Sandbox-Id': sandbox.sandboxId, 'E2b-Sandbox-Port': String(port) },
})

async function all(pages) {
  const items = []
  while (pages.hasNext) items.push(...(await pages.nextItems()))
  return items
}

test('memory, processes, files and servers survive a pause', async () => {
  const sandbox = await Sandbox.create({ envs: { OWN: 'mine' } })
  const sleeper = await sandbox.commands.run('sleep 1000', { background: true, timeoutMs: 0 })
  const web = await serving(sandbox)
  await sandbox.files.write('note', 'kept')
  const boot = await said(sandbox, BOOT)
  const cut = assert.rejects(web.wait(), TimeoutError)
  assert.equal(await sandbox.pause(), true)
  await cut
  assert.equal(await sandbox.pause(), false)
  assert.equal(await sandbox.isRunning(), false)
  assert.equal((await sandbox.getInfo()).state, 'paused')
  const again = await Sandbox.connect(sandbox.sandboxId)
  const running = await pids(again)
  assert.ok(running.includes(sleeper.pid) && running.includes(web.pid), String(running))
  assert.equal(await said(again, `echo $OWN; ${BOOT}`), `mine\n${boot}`)
  assert.equal((await server.call('GET', '/note', toPort(sandbox))).text, 'kept')
  assert.equal(await sandbox.files.read('note'), 'kept', 'the handle from before is good')
  const late = await again.commands.connect(sleeper.pid)
  assert.equal(await late.kill(), true)
  assert.equal(await again.kill(), true)
})

test('a terminal continues', async () => {
  const sandbox = await Sandbox.create()
  const output = new Collected()
  const send = (text) => sandbox.pty.sendInput(handle.pid, Buffer.from(text))
  const handle = await sandbox.pty.create({ cols: 80, rows: 24, timeoutMs: 0, onData: output.add })
  await output.until(({ text }) => text.includes('$ '))
  await send('kept=here; echo is-$((1 + 1))\n')
  await output.until(({ text }) => text.includes('is-2'))
  const cut = assert.rejects(handle.wait(), TimeoutError)
  await sandbox.pause()
  await cut
  await sandbox.connect()
  const later = new Collected()
  const joined = await sandbox.pty.connect(handle.pid, { onData: later.add })
  await send('echo still-$kept; exit 7\n')
  await assert.rejects(joined.wait(), { exitCode: 7 })
  assert.match(later.text, /still-here/)
  await sandbox.kill()
})

test('a snapshot starts many sandboxes, until it is deleted', async () => {
  const source = await Sandbox.create()
  const sleeper = await source.commands.run('sleep 1000', { background: true, timeoutMs: 0 })
  await source.files.write('note', 'then')
  const named = await source.createSnapshot({ name: 'js-point' })
  assert.ok(named.names.some((name) => name.includes('js-point')))
  const unnamed = await source.createSnapshot()
  await source.files.write('note', 'now')
  const copies = await Promise.all([named.snapshotId, 'js-point', unnamed.snapshotId].map((from) => Sandbox.create(from)))
  for (const copy of copies) {
    assert.equal(await copy.files.read('note'), 'then')
    assert.ok((await pids(copy)).includes(sleeper.pid))
    assert.equal(await said(copy, 'echo -n $E2B_SANDBOX_ID'), copy.sandboxId)
  }
  const listed = await all(Sandbox.listSnapshots({ sandboxId: source.sandboxId, limit: 1 }))
  assert.deepEqual(
    listed.map(({ snapshotId }) => snapshotId),
    [unnamed.snapshotId, named.snapshotId]
  )
  assert.equal(await Sandbox.deleteSnapshot(named.snapshotId), true)
  assert.equal(await Sandbox.deleteSnapshot(named.snapshotId), false)
  await assert.rejects(Sandbox.create(named.snapshotId), /not found|does not exist/)
  assert.equal(await copies[0].files.read('note'), 'then', 'who was started from it goes on')
  await Promise.all([source, ...copies].map((each) => each.kill()))
})

test('forks are independent', async () => {
  const source = await Sandbox.create({ envs: { OWN: 'mine' } })
  await source.files.write('note', 'source')
  const forks = await source.fork({ count: 3, timeoutMs: 60_000 })
  assert.equal(new Set([source, ...forks].map(({ sandboxId }) => sandboxId)).size, 4)
  for (const fork of forks) {
    assert.equal(await said(fork, 'cat note; echo -n $OWN'), 'sourcemine')
    await fork.files.write('note', fork.sandboxId)
  }
  assert.equal(await source.files.read('note'), 'source')
  await source.pause()
  await assert.rejects(source.fork(), /resume it first/)
  await Promise.all([source, ...forks].map((each) => each.kill()))
})

test('an expired sandbox is paused, and resumed by traffic', async () => {
  const lifecycle = { onTimeout: 'pause', autoResume: true }
  const sandbox = await Sandbox.create({ timeoutMs: 60_000, lifecycle })
  const info = await sandbox.getInfo()
  assert.deepEqual(info.lifecycle, { onTimeout: 'pause', autoResume: true })
  await serving(sandbox)
  await sandbox.setTimeout(1000)
  // The health check that the SDK sends then is traffic, too.
  await assert.rejects(sandbox.commands.run('sleep 30'))
  assert.equal((await server.call('GET', '/', toPort(sandbox))).status, 200)
  assert.equal((await sandbox.getInfo()).state, 'running')
  await sandbox.kill()
})

test('only authorized traffic resumes a sandbox, and only where auto-resume is on', async () => {
  const asleep = await Sandbox.create({ timeoutMs: 60_000, lifecycle: { onTimeout: 'pause' } })
  await asleep.pause()
  const { status, text } = await server.call('GET', '/', toPort(asleep))
  assert.equal(status, 502)
  assert.match(text, /was not found/)
  assert.equal((await asleep.getInfo()).state, 'paused')
  await assert.rejects(asleep.setTimeout(1000), SandboxNotFoundError)
  await asleep.kill()
  await assert.rejects(Sandbox.connect(asleep.sandboxId), SandboxNotFoundError)
  await assert.rejects(Sandbox.pause(asleep.sandboxId), NotFoundError)
})
