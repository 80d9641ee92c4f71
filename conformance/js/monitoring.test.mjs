// Metrics over time, events, webhooks and limits through the JavaScript SDK.

import assert from 'node:assert/strict'
import fs from 'node:fs'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { AuthenticationError, RateLimitError, Sandbox } from 'e2b'

import { Server } from './server.mjs'

let server

before(async () => {
  server = await Server.start()
})

after(async () => {
  await server.stop()
})

/** Calls with an API key; returns the status and the JSON. */
async function call(method, target, body, headers = { 'X-API-Key': server.key }) {
  const json = { 'Content-Type': 'application/json', ...headers }
  const answer = await server.call(method, target, { headers: json, body: body && JSON.stringify(body) })
  return { status: answer.status, body: answer.text ? JSON.parse(answer.text) : undefined }
}

function admin(method, target, body) {
  const token = fs.readFileSync(path.join(server.data, 'admin-token'), 'utf8').trim()
  return call(method, target, body, { 'X-Admin-Token': token })
}

test('metrics have a range', async () => {
  const sandbox = await Sandbox.create()
  const begin = new Date()
  try {
    const [first] = await sandbox.getMetrics()
    assert.equal(first.memTotal, 1024 << 20)
    assert.equal(first.cpuCount, 2)
    assert.ok(Math.abs(first.timestamp.getTime() - begin.getTime()) < 10_000)
    const hourAgo = new Date(begin.getTime() - 3600_000)
    assert.deepEqual(await sandbox.getMetrics({ start: hourAgo, end: new Date(hourAgo.getTime() + 60_000) }), [])
    // The SDK rounds to whole seconds.
    const [start, end] = [new Date(begin.getTime() - 1000), new Date(begin.getTime() + 60_000)]
    assert.equal((await sandbox.getMetrics({ start, end })).length, 1)
  } finally {
    await sandbox.kill()
  }
})

test('events describe the life of a sandbox', async () => {
  const sandbox = await Sandbox.create({ metadata: { app: 'js' } })
  await sandbox.setTimeout(60_000)
  await sandbox.kill()
  const { body } = await call('GET', `/events/sandboxes/${sandbox.sandboxId}`)
  assert.deepEqual(
    body.map((event) => event.type.replace('sandbox.lifecycle.', '')),
    ['killed', 'updated', 'created']
  )
  assert.deepEqual(body[2].eventData.sandbox_metadata, { app: 'js' })
  assert.equal(body[0].eventData.kill_reason, 'request')
})

test('webhooks are kept without their secret', async () => {
  const hook = {
    name: 'js',
    url: 'https://example.com/hook',
    enabled: false,
    events: ['sandbox.lifecycle.killed'],
    signatureSecret: 'hush',
  }
  const made = await call('POST', '/events/webhooks', hook)
  assert.equal(made.status, 201)
  const listed = await call('GET', '/events/webhooks')
  assert.deepEqual(listed.body, [made.body])
  assert.ok(!JSON.stringify(listed.body).includes('hush'))
  assert.equal((await call('DELETE', `/events/webhooks/${made.body.id}`)).status, 200)
})

test('limits and wrong keys raise the errors of the SDK', async () => {
  const team = await admin('POST', '/admin/teams', { name: 'js', limits: { concurrentSandboxes: 1 } })
  assert.equal(team.status, 201)
  const keys = `/admin/teams/${team.body.teamID}/api-keys`
  const { body: key } = await admin('POST', keys, { name: 'js' })
  const sandbox = await Sandbox.create({ apiKey: key.key })
  await assert.rejects(Sandbox.create({ apiKey: key.key }), RateLimitError)
  await sandbox.kill()
  assert.equal((await admin('DELETE', `${keys}/${key.id}`)).status, 204)
  await assert.rejects(Sandbox.create({ apiKey: key.key }), AuthenticationError)
})
