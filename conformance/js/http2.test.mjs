// HTTP/2 without TLS, as a proxy in front of the server speaks it: API and sandboxes over one connection.

import assert from 'node:assert/strict'
import http from 'node:http'
import http2 from 'node:http2'
import { after, before, test } from 'node:test'
import { Sandbox } from 'e2b'

import { Collected, Server } from './server.mjs'

const INSIDE = `
const http = require('http')
http.createServer((request, response) => {
  if (request.url === '/drip') {
    response.write('drip')
  } else {
    let size = 0
    request.on('data', (data) => (size += data.length))
    response.setHeader('X-aNswer', 'yes')
    const { headers, rawHeaders } = request
    const names = rawHeaders.filter((_, at) => at % 2 === 0)
    request.on('end', () => response.end(JSON.stringify({ host: headers.host, cookie: headers.cookie, size, names })))
  }
}).listen(8000, '127.0.0.1', () => console.log('up'))`

let server, connection

before(async () => {
  server = await Server.start({ options: ['--trust-proxy', '127.0.0.0/8'] })
})

after(async () => {
  connection?.close()
  await server.stop()
})

async function site() {
  const sandbox = await Sandbox.create()
  await sandbox.files.write('echo_server.js', INSIDE)
  const out = new Collected()
  await sandbox.commands.run('node echo_server.js', { background: true, timeoutMs: 0, onStdout: out.add })
  await out.until(({ text }) => text === 'up\n')
  return sandbox
}

function open(headers, body) {
  // Not sooner: the server closes connections without requests.
  connection ??= http2.connect(server.url)
  const stream = connection.request(headers, { endStream: body === undefined })
  if (body !== undefined) stream.end(body)
  const data = new Collected()
  stream.on('data', data.add)
  const answer = { stream, data, closed: new Promise((resolve) => stream.on('close', () => resolve(stream.rstCode))) }
  stream.on('error', (error) => (answer.error = error))
  answer.headers = new Promise((resolve) => stream.on('response', resolve))
  return answer
}

async function get(headers, body) {
  const answer = open(headers, body)
  const status = (await answer.headers)[':status']
  await answer.closed
  return { status, text: answer.data.text }
}

test('the API and ports of sandboxes answer over one connection', async () => {
  const sandbox = await site()
  const byHost = { ':path': '/', ':authority': `8000-${sandbox.sandboxId}.example.com` }
  const byHeader = { ':path': '/', 'e2b-sandbox-id': sandbox.sandboxId, 'e2b-sandbox-port': '8000' }
  const list = { ':path': '/v2/sandboxes', 'x-api-key': server.key }
  const answers = await Promise.all([
    get(list),
    get({ ...byHost, ':method': 'POST', cookie: ['a=1', 'b=2'] }, Buffer.alloc(3_000_000)),
    get({ ...byHeader, ':method': 'POST' }, 'x'),
    get({ ':path': '/', ':authority': `8001-${sandbox.sandboxId}.example.com` }),
  ])
  assert.deepEqual(answers.map(({ status }) => status), [200, 200, 200, 502])
  assert.equal(JSON.parse(answers[0].text)[0].sandboxID, sandbox.sandboxId)
  const { names, ...seen } = JSON.parse(answers[1].text)
  assert.deepEqual(seen, { host: byHost[':authority'], cookie: 'a=1; b=2', size: 3_000_000 })
  assert.deepEqual(names.filter((name) => !['Host', 'Cookie', 'Transfer-Encoding', 'Content-Length'].includes(name)), [])
  await sandbox.kill()
})

test('servers and clients of HTTP/1.1 see header names as the other side spells them', async () => {
  const sandbox = await site()
  const headers = { host: `8000-${sandbox.sandboxId}.example.com`, 'x-OdD-nAme': '1' }
  const seen = await new Promise((resolve, reject) => {
    const request = http.request(server.url, { headers, agent: false }, (response) => {
      const data = new Collected()
      response.on('data', data.add)
      response.on('end', () => resolve({ text: data.text, names: response.rawHeaders }))
    })
    request.on('error', reject)
    request.end()
  })
  assert.ok(JSON.parse(seen.text).names.includes('x-OdD-nAme'), seen.text)
  assert.ok(seen.names.includes('X-aNswer'), seen.names.join(' '))
  await sandbox.kill()
})

test('killing a sandbox resets its streams and no others', async () => {
  const [doomed, kept] = await Promise.all([site(), site()])
  const drip = ({ sandboxId }) => open({ ':path': '/drip', ':authority': `8000-${sandboxId}.example.com` })
  const [cut, going] = [drip(doomed), drip(kept)]
  for (const { data } of [cut, going]) await data.until(({ text }) => text === 'drip')
  await doomed.kill()
  assert.notEqual(await cut.closed, http2.constants.NGHTTP2_NO_ERROR)
  assert.ok(cut.error, 'a clean end would look like the whole answer')
  assert.equal((await get({ ':path': '/health' })).status < 300, true)
  assert.equal(going.stream.closed, false)
  going.stream.close()
  await kept.kill()
})

test('a link for build files names the address that the client used', async () => {
  const key = { 'x-api-key': server.key }
  const asked = { ...key, ':path': '/v3/templates', ':method': 'POST', 'content-type': 'application/json' }
  const { templateID } = JSON.parse((await get(asked, JSON.stringify({ name: 'linked' }))).text)
  const path = `/templates/${templateID}/files/${'a'.repeat(64)}`
  const link = async (headers) => JSON.parse((await get({ ...key, ':path': path, ...headers })).text).url
  assert.ok((await link({})).startsWith(`${server.url}/`))
  assert.ok((await link({ ':authority': 'api.example.org:8443' })).startsWith('http://api.example.org:8443/'))
  const behindProxy = { ':authority': 'inner', 'x-forwarded-host': 'api.example.org', 'x-forwarded-proto': 'https' }
  assert.ok((await link(behindProxy)).startsWith('https://api.example.org/'))
})
