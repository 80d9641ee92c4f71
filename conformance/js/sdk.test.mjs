// The JavaScript SDK's main paths.

import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { after, before, test } from 'node:test'
import {
  AuthenticationError,
  CommandExitError,
  FileNotFoundError,
  FileType,
  FilesystemEventType,
  InvalidArgumentError,
  NotFoundError,
  Sandbox,
  SandboxError,
  SandboxNotFoundError,
  TimeoutError,
} from 'e2b'

import { Collected, Server } from './server.mjs'

const END_OF_LIFE = /sandbox was killed or reached its end of life/
let server, sandbox

before(async () => {
  server = await Server.start()
  sandbox = await Sandbox.create()
})

after(async () => {
  await server.stop()
})

/** A sandbox for one test. */
async function own(use, options) {
  const made = await Sandbox.create(options)
  try {
    return await use(made)
  } finally {
    await made.kill()
  }
}

test('output is streamed while the command runs, and the exit code is reported', async () => {
  const out = new Collected()
  const err = new Collected()
  const handle = await sandbox.commands.run('echo one; echo two >&2; read x; echo $x; exit 42', {
    background: true,
    stdin: true,
    onStdout: out.add,
    onStderr: err.add,
  })
  await out.until(({ text }) => text === 'one\n')
  await err.until(({ text }) => text === 'two\n')
  await handle.sendStdin('three\n')
  await assert.rejects(handle.wait(), (error) => {
    assert.ok(error instanceof CommandExitError)
    assert.deepEqual([error.exitCode, error.stdout, error.stderr], [42, 'one\nthree\n', 'two\n'])
    return true
  })
})

test('a command has its environment, directory and user', () =>
  own(
    async (sandbox) => {
      const print = 'echo $SHARED $KEPT $PWD $(whoami)'
      const result = await sandbox.commands.run(print, { envs: { SHARED: 'own' }, cwd: '/tmp', user: 'root' })
      assert.equal(result.stdout, 'own kept /tmp root\n')
      assert.equal((await sandbox.commands.run(print)).stdout, 'sandbox kept /home/user user\n')
    },
    { envs: { SHARED: 'sandbox', KEPT: 'kept' } }
  ))

test('large output arrives complete, and characters are never split', async () => {
  const result = await sandbox.commands.run(`python3 -c "print('ä€😀' * 300000, end='')"`)
  assert.equal(result.stdout, 'ä€😀'.repeat(300_000))
})

test('a background command is listed, joined from another client, and killed', async () => {
  const handle = await sandbox.commands.run('while true; do echo beat; sleep 0.02; done', { background: true })
  assert.ok((await sandbox.commands.list()).some(({ pid }) => pid === handle.pid))
  const other = await Sandbox.connect(sandbox.sandboxId)
  const heard = new Collected()
  const joined = await other.commands.connect(handle.pid, { onStdout: heard.add })
  await handle.disconnect()
  const told = heard.items.length
  await heard.until(({ items }) => items.length > told)
  assert.equal(await other.commands.kill(handle.pid), true)
  await assert.rejects(joined.wait(), (error) => {
    assert.ok(error instanceof CommandExitError)
    assert.equal(error.error, 'signal: killed')
    return true
  })
  assert.equal(await other.commands.kill(handle.pid), false)
  await assert.rejects(other.commands.connect(999_999), NotFoundError)
})

test('input reaches a command, and closing it ends the command', async () => {
  const handle = await sandbox.commands.run('sha256sum', { background: true, stdin: true })
  const data = randomBytes(500_000).toString('hex')
  await sandbox.commands.sendStdin(handle.pid, data)
  await sandbox.commands.closeStdin(handle.pid)
  const { stdout } = await handle.wait()
  assert.equal(stdout.split(' ')[0], createHash('sha256').update(data).digest('hex'))
})

test('a command is killed at its timeout', async () => {
  await assert.rejects(sandbox.commands.run('echo $$ > slow; exec sleep 60', { timeoutMs: 1000 }), TimeoutError)
  const gone = await sandbox.commands.run('! kill -0 $(cat slow) 2>/dev/null && echo gone')
  assert.equal(gone.stdout, 'gone\n')
})

test('text and 20 MB of bytes are read back unchanged, in every form', async () => {
  const info = await sandbox.files.write('forms/deep/note.txt', 'hällo\n')
  assert.equal(info.path, '/home/user/forms/deep/note.txt')
  assert.equal(await sandbox.files.read('forms/deep/note.txt'), 'hällo\n')
  const data = randomBytes(20_000_000)
  const bytes = data.buffer.slice(data.byteOffset, data.byteOffset + data.length)
  await sandbox.files.write('forms/whole.bin', bytes)
  assert.ok(data.equals(await sandbox.files.read('forms/whole.bin', { format: 'bytes' })))
  await sandbox.files.write('forms/stream.bin', new Blob([data]).stream(), { useOctetStream: true })
  const chunks = []
  for await (const chunk of await sandbox.files.read('forms/stream.bin', { format: 'stream' })) chunks.push(chunk)
  assert.ok(data.equals(Buffer.concat(chunks)))
  await sandbox.files.write('forms/packed', 'pack me '.repeat(1000), { gzip: true })
  assert.equal(await sandbox.files.read('forms/packed', { gzip: true }), 'pack me '.repeat(1000))
  assert.equal((await (await sandbox.files.read('forms/packed', { format: 'blob' })).text()).length, 8000)
})

test('files are listed, described, moved and removed', async () => {
  const files = sandbox.files
  await files.write([
    { path: 'tree/b', data: '1' },
    { path: 'tree/a/c', data: '22' },
  ])
  assert.deepEqual(
    (await files.list('tree', { depth: 2 })).map(({ path, type }) => [path, type]),
    [
      ['/home/user/tree/a', FileType.DIR],
      ['/home/user/tree/a/c', FileType.FILE],
      ['/home/user/tree/b', FileType.FILE],
    ]
  )
  assert.equal(await files.makeDir('tree/a'), false)
  assert.equal(await files.makeDir('tree/new'), true)
  const moved = await files.rename('tree/a/c', 'tree/new/d')
  assert.deepEqual([moved.path, moved.size, moved.owner, moved.permissions], ['/home/user/tree/new/d', 2, 'user', '-rw-r--r--'])
  await files.remove('tree')
  assert.equal(await files.exists('tree'), false)
  await assert.rejects(files.read('tree/b'), FileNotFoundError)
})

test('a watched directory reports events as they happen', async () => {
  const events = new Collected()
  const ended = new Collected()
  await sandbox.files.makeDir('watched')
  const watch = await sandbox.files.watchDir('watched', events.add, {
    recursive: true,
    includeEntry: true,
    timeoutMs: 0,
    onExit: (error) => ended.add(String(error)),
  })
  await sandbox.files.write('watched/new', 'x')
  await events.until(({ items }) => items.length >= 3)
  assert.deepEqual(
    events.items.map(({ name, type }) => [name, type]),
    [FilesystemEventType.CREATE, FilesystemEventType.CHMOD, FilesystemEventType.WRITE].map((type) => ['new', type])
  )
  assert.equal(events.items[0].entry.path, '/home/user/watched/new')
  await sandbox.commands.run('mkdir -p watched/a/b; touch watched/a/b/leaf; mv watched/new watched/old; rm watched/old')
  const has = (name, type) => events.items.some((event) => event.name === name && event.type === type)
  await events.until(
    () =>
      has('a/b/leaf', FilesystemEventType.CREATE) &&
      has('new', FilesystemEventType.RENAME) &&
      has('old', FilesystemEventType.REMOVE)
  )
  await watch.stop()
  await ended.until(({ items }) => items.length === 1)
  await assert.rejects(sandbox.files.watchDir('missing', events.add), FileNotFoundError)
})

test('a terminal takes input, a new size and a second viewer', async () => {
  const first = new Collected()
  const second = new Collected()
  const send = (text) => sandbox.pty.sendInput(handle.pid, Buffer.from(text))
  const handle = await sandbox.pty.create({ cols: 80, rows: 24, onData: first.add, envs: { OWN: 'mine' }, cwd: '/tmp' })
  await first.until(({ text }) => text.includes('$ '))
  await send('echo $OWN-$PWD-$(tput cols)\n')
  // The shell may discard what is typed before its prompt.
  await first.until(({ text }) => /mine-\/tmp-80\r\n[^]*\$ /.test(text))
  const viewer = await sandbox.pty.connect(handle.pid, { onData: second.add })
  await sandbox.pty.resize(handle.pid, { cols: 132, rows: 50 })
  await send('echo size-$(tput cols)x$(tput lines); exit 7\n')
  for (const data of [first, second]) await data.until(({ text }) => text.includes('size-132x50'))
  for (const end of [handle, viewer]) await assert.rejects(end.wait(), { exitCode: 7 })
})

test('a sandbox ends at its timeout, to the second', async () => {
  const sandbox = await Sandbox.create({ timeoutMs: 60_000 })
  const began = performance.now()
  await sandbox.setTimeout(2000)
  await assert.rejects(sandbox.commands.run('sleep 30'), (error) => error instanceof TimeoutError && END_OF_LIFE.test(error))
  const took = performance.now() - began
  assert.ok(took > 1500 && took < 3500, `${took} ms`)
  assert.equal(await sandbox.isRunning(), false)
  await assert.rejects(sandbox.getInfo(), SandboxNotFoundError)
  await assert.rejects(Sandbox.connect(sandbox.sandboxId), SandboxNotFoundError)
})

test('a kill closes every open stream at once', async () => {
  const sandbox = await Sandbox.create()
  const ended = new Collected()
  const open = [
    await sandbox.commands.run('sleep 1000', { background: true }),
    await sandbox.commands.run('yes', { background: true }),
    await sandbox.pty.create({ cols: 80, rows: 24, onData() {} }),
  ]
  await sandbox.files.watchDir('/home/user', () => {}, { onExit: (error) => ended.add(error) })
  const ends = open.map((handle) =>
    assert.rejects(handle.wait(), (error) => error instanceof TimeoutError && END_OF_LIFE.test(error))
  )
  assert.equal(await sandbox.kill(), true)
  await Promise.all(ends)
  await ended.until(({ items }) => items.length === 1)
  assert.match(String(ended.items[0]), END_OF_LIFE)
  assert.equal(await sandbox.kill(), false)
  assert.equal(await sandbox.isRunning(), false)
})

test('another client connects, and extends the time but never shortens it', async () => {
  await sandbox.setTimeout(600_000)
  const { endAt } = await sandbox.getInfo()
  const other = await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 60_000 })
  assert.deepEqual((await other.getInfo()).endAt, endAt)
  await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 1_200_000 })
  assert.ok((await other.getInfo()).endAt - endAt > 500_000)
  await other.files.write('from-another', 'x')
  assert.equal(await sandbox.files.read('from-another'), 'x')
})

test('info and metrics describe this sandbox', async () => {
  const info = await sandbox.getInfo()
  assert.deepEqual([info.name, info.state, info.cpuCount, info.memoryMB], ['base', 'running', 2, 1024])
  const [metrics] = await sandbox.getMetrics()
  assert.equal(metrics.memTotal, 1024 << 20)
  assert.ok(metrics.memUsed > 0 && metrics.diskTotal > 0)
})

test('lists are filtered by metadata, newest first, and paged', async () => {
  const made = []
  for (let n = 0; n < 3; n++) made.push(await Sandbox.create({ metadata: { set: 'js', n: `${n} &=ü` } }))
  try {
    const pages = Sandbox.list({ query: { metadata: { set: 'js' } }, limit: 2 })
    const first = await pages.nextItems()
    assert.deepEqual(first.map(({ sandboxId }) => sandboxId), [made[2].sandboxId, made[1].sandboxId])
    assert.equal(pages.hasNext, true)
    assert.deepEqual((await pages.nextItems()).map(({ sandboxId }) => sandboxId), [made[0].sandboxId])
    assert.equal(pages.hasNext, false)
    const [one, ...none] = await Sandbox.list({ query: { metadata: { n: '1 &=ü' } } }).nextItems()
    assert.deepEqual([one.sandboxId, one.metadata, none], [made[1].sandboxId, { set: 'js', n: '1 &=ü' }, []])
  } finally {
    for (const sandbox of made) await sandbox.kill()
  }
})

test('a server inside is reached by header and by host', async () => {
  const listening = new Collected()
  const serve = `node -e "require('http').createServer((q, s) => s.end(q.headers.host + q.url)).listen(8000, '127.0.0.1', () => console.log('up'))"`
  await sandbox.commands.run(serve, { background: true, timeoutMs: 0, onStdout: listening.add })
  await listening.until(({ text }) => text === 'up\n')
  const byHeader = { 'E2b-Sandbox-Id': sandbox.sandboxId, 'E2b-Sandbox-Port': '8000' }
  const answer = await server.call('GET', '/a?b', { headers: byHeader })
  assert.deepEqual([answer.status, answer.text], [200, new URL(server.url).host + '/a?b'])
  for (const Host of [sandbox.getHost(8000), `8000-${sandbox.sandboxId}.localhost:3000`]) {
    assert.equal((await server.call('GET', '/', { headers: { Host } })).text, Host + '/')
  }
  const closed = await server.call('GET', '/', { headers: { Host: sandbox.getHost(8001) } })
  assert.equal(closed.status, 502)
  assert.match(JSON.parse(closed.text).message, /port is not open/)
})

test('a killed sandbox is not found at its host', async () => {
  const sandbox = await Sandbox.create()
  await sandbox.kill()
  const answer = await server.call('GET', '/', { headers: { Host: sandbox.getHost(3000) } })
  assert.deepEqual(
    [answer.status, JSON.parse(answer.text)],
    [502, { sandboxId: sandbox.sandboxId, message: 'The sandbox was not found', code: 502 }]
  )
})

test('signed URLs give access to one file, in one direction, until they expire', async () => {
  const headers = { 'E2b-Sandbox-Id': sandbox.sandboxId, 'E2b-Sandbox-Port': '49983' }
  await sandbox.files.write('shared.txt', 'for a friend')
  const get = (url) => fetch(url, { headers })
  const url = await sandbox.downloadUrl('shared.txt', { useSignatureExpiration: 60 })
  assert.equal(await (await get(url)).text(), 'for a friend')
  assert.equal((await get(url.replace('shared.txt', '.bashrc'))).status, 401)
  const late = await get(await sandbox.downloadUrl('shared.txt', { useSignatureExpiration: -60 }))
  assert.deepEqual([late.status, await late.json()], [401, { code: 401, message: 'signature is already expired' }])

  const body = new FormData()
  body.append('file', new Blob(['sent by a friend']), 'ignored.txt')
  const upload = await sandbox.uploadUrl('sent.txt')
  assert.equal((await fetch(upload, { method: 'POST', body, headers })).status, 200)
  assert.equal(await sandbox.files.read('sent.txt'), 'sent by a friend')
  assert.equal((await get(upload)).status, 401, 'a signature for writing does not read')
})

test('failures have their error classes', async () => {
  await assert.rejects(Sandbox.create({ apiKey: 'e2b_' + '0'.repeat(40) }), AuthenticationError)
  await assert.rejects(Sandbox.create('no-such-template'), (error) => {
    assert.ok(error instanceof SandboxError)
    assert.match(error.message, /template 'no-such-template' not found/)
    return true
  })
  await assert.rejects(Sandbox.connect('i' + '0'.repeat(20)), SandboxNotFoundError)
  assert.equal(await Sandbox.kill('i' + '0'.repeat(20)), false)
  await assert.rejects(sandbox.commands.run('true', { cwd: '/missing' }), InvalidArgumentError)
  await assert.rejects(sandbox.commands.run('true', { user: 'nobody-here' }), AuthenticationError)
  await assert.rejects(sandbox.files.list('.bashrc'), InvalidArgumentError)
  await assert.rejects(sandbox.files.getInfo('missing'), FileNotFoundError)
})

test('many concurrent sandboxes are isolated', async () => {
  const one = (n) =>
    own(async (sandbox) => {
      await sandbox.files.write('n', `${n}`)
      return (await sandbox.commands.run('echo $N $(cat n)')).stdout
    }, { envs: { N: `${n}` } })
  const numbers = Array.from({ length: 20 }, (_, n) => n)
  assert.deepEqual(await Promise.all(numbers.map(one)), numbers.map((n) => `${n} ${n}\n`))
})
