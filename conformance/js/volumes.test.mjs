// Volumes through the JavaScript SDK.

import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { after, before, test } from 'node:test'
import { Sandbox, Volume } from 'e2b'

import { Server } from './server.mjs'

let server

before(async () => {
  server = await Server.start()
  process.env.E2B_VOLUME_API_URL = server.url
})

after(async () => {
  await server.stop()
})

test('content is written, read, listed and removed', async () => {
  const volume = await Volume.create(`js-${randomBytes(6).toString('hex')}`)
  const name = 'dir/with space+plus ü.txt'
  const entry = await volume.writeFile(name, 'hello', { force: true, mode: 0o640 })
  assert.deepEqual([entry.path, entry.size, entry.mode, entry.type], [`/${name}`, 5, 0o640, 'file'])
  assert.equal(await volume.readFile(name), 'hello')
  await assert.rejects(volume.writeFile(name, 'again'))
  await volume.writeFile('empty', '')
  assert.equal(await volume.readFile('empty'), '')
  await volume.makeDir('a/b/c', { force: true })
  assert.deepEqual((await volume.list('/', { depth: 4 })).map((each) => each.path), ['/a', '/a/b', '/a/b/c', '/dir', `/${name}`, '/empty'])
  assert.equal((await volume.updateMetadata('a', { uid: 0, mode: 0o700 })).mode, 0o700)
  assert.deepEqual([await volume.exists('a'), await volume.exists('b')], [true, false])
  await volume.remove('a')
  await assert.rejects(volume.list('a'), { name: 'VolumePathNotFoundError' })
  assert.ok((await Volume.list()).some((each) => each.volumeId === volume.volumeId))
  assert.equal(await Volume.destroy(volume.volumeId), true)
  assert.equal(await Volume.destroy(volume.volumeId), false)
  await assert.rejects(Volume.getInfo(volume.volumeId), { name: /NotFoundError/ })
})

test('a stream is written, and what a sandbox writes is read', async () => {
  const volume = await Volume.create(`js-${randomBytes(6).toString('hex')}`)
  const bytes = randomBytes(5 << 20)
  await volume.writeFile('big', new Blob([bytes]).stream())
  const sandbox = process.env.COFFERDAM_ENGINE === 'microvm' ? undefined : await Sandbox.create({ volumeMounts: { '/data': volume } })
  try {
    assert.deepEqual(Buffer.from(await volume.readFile('big', { format: 'bytes' })), bytes)
    if (sandbox) {
      await sandbox.commands.run('cmp /data/big <(cat /data/big) && echo from inside > /data/note')
      assert.equal(await volume.readFile('note'), 'from inside\n')
      assert.deepEqual((await sandbox.getInfo()).volumeMounts, [{ name: volume.name, path: '/data' }])
    }
  } finally {
    await sandbox?.kill()
    await Volume.destroy(volume.volumeId)
  }
})
