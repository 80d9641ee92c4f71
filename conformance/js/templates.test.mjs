// Templates through the official JavaScript SDK, and `e2b template …` of the official command line client.

import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import fs from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { promisify } from 'node:util'
import { Sandbox, Template, waitForPort } from 'e2b'

import { Server } from './server.mjs'

const PACKAGE = createRequire(import.meta.url).resolve('@e2b/cli/package.json')
const CLI = path.join(path.dirname(PACKAGE), JSON.parse(fs.readFileSync(PACKAGE)).bin.e2b)
let server

before(async () => {
  server = await Server.start()
})

after(async () => {
  await server.stop()
})

const fresh = (prefix) => `${prefix}-${randomBytes(6).toString('hex')}`

async function within(template, body) {
  const sandbox = await Sandbox.create(template)
  try {
    return await body(sandbox)
  } finally {
    await sandbox.kill()
  }
}

test('a template with files, steps and a service is built, cached and started', async () => {
  const context = fs.mkdtempSync(path.join(server.dir, 'context-'))
  fs.mkdirSync(path.join(context, 'site'))
  fs.writeFileSync(path.join(context, 'site', 'index.html'), 'hello from a template')
  const template = () =>
    Template({ fileContextPath: context })
      .fromBaseImage()
      .copy('site', '/srv/site')
      .setEnvs({ TOWN: 'Bergen' })
      .setWorkdir('/srv/site')
      .runCmd('echo $TOWN > town')
      .setStartCmd('python3 -m http.server 8080', waitForPort(8080))
  const name = fresh('site')
  const lines = []
  const onBuildLogs = (entry) => lines.push(entry.message)
  const built = await Template.build(template(), name, { cpuCount: 1, memoryMB: 512, onBuildLogs })
  assert.ok(built.templateId && built.buildId)
  assert.ok(lines.some((line) => line.startsWith('[builder 1/4] COPY site /srv/site')), lines.join('\n'))
  await within(name, async (sandbox) => {
    const { stdout } = await sandbox.commands.run('curl -s localhost:8080; cat town; pwd')
    assert.equal(stdout, 'hello from a templateBergen\n/srv/site\n')
  })
  lines.length = 0
  await Template.build(template(), name, { cpuCount: 1, memoryMB: 512, onBuildLogs })
  assert.equal(lines.filter((line) => line.startsWith('CACHED ')).length, 4, lines.join('\n'))
})

test('a failed step is named in the error', async () => {
  const template = Template().fromBaseImage().runCmd('exit 7')
  await assert.rejects(Template.build(template, fresh('bad')), (error) => {
    assert.match(error.message, /failed to run command 'exit 7': exit status 7/)
    return true
  })
})

test('names and tags are queried, assigned and removed', async () => {
  const name = fresh('tagged')
  assert.equal(await Template.exists(name), false)
  const { buildId } = await Template.build(Template().fromBaseImage().runCmd('true'), `${name}:v1`)
  assert.equal(await Template.exists(name), true)
  await Template.assignTags(`${name}:v1`, ['stable'])
  const tags = await Template.getTags(name)
  assert.deepEqual(tags.map((tag) => tag.tag).sort(), ['stable', 'v1'])
  assert.ok(tags.every((tag) => tag.buildId === buildId))
  await Template.removeTags(name, ['stable'])
  assert.equal((await Template.getTags(name)).length, 1)
})

test('the command line client creates, lists, publishes and deletes a template', async () => {
  const dir = fs.mkdtempSync(path.join(server.dir, 'cli-'))
  fs.writeFileSync(path.join(dir, 'data.txt'), 'from a file')
  fs.writeFileSync(
    path.join(dir, 'e2b.Dockerfile'),
    'FROM e2bdev/base\nENV WORD=hi\nCOPY data.txt /data.txt\nRUN echo $WORD > /word\n'
  )
  const environment = { ...process.env, HOME: server.dir, NO_UPDATE_NOTIFIER: '1', NO_COLOR: '1' }
  const e2b = async (...words) => {
    const options = { env: environment, cwd: dir, maxBuffer: 16 << 20 }
    return (await promisify(execFile)(process.execPath, [CLI, 'template', ...words], options)).stdout
  }
  const name = fresh('cli')
  await e2b('create', name, '--cpu-count', '1', '--memory-mb', '512')
  await within(name, async (sandbox) => {
    assert.equal((await sandbox.commands.run('cat /data.txt /word; id -un')).stdout, 'from a filehi\nuser\n')
  })
  const listed = JSON.parse(await e2b('list', '--format', 'json'))
  assert.ok(listed.some((template) => template.aliases.includes(name) && template.memoryMB === 512))
  await e2b('publish', name, '--yes')
  const response = await server.call('GET', `/templates/aliases/${name}`, { headers: { 'X-API-Key': server.key } })
  assert.equal(JSON.parse(response.text).public, true)
  await e2b('delete', name, '--yes')
  assert.equal(await Template.exists(name), false)
})
