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

const SPEAKING_HTTP2 = `
const http2 = require('http2')
const server = http2.createServer()
server.on('stream', (stream, headers) => {
  stream.respond({ ':status': 200, 'content-type': 'application/grpc' }, { waitForTrailers: true })
  stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': '0', 'x-te': headers.te ?? 'none' }))
  stream.write(headers[':path'] + ' ' + headers[':authority'] + ' ')
  // Each piece is answered at once, as in a call that streams in both directions.
  stream.on('data', (data) => stream.write(data.toString().toUpperCase()))
  stream.on('end', () => stream.end())
})
server.listen(8000, '127.0.0.1', () => console.log('up'))`

const WEBSOCKETS = `
const http = require('http'), crypto = require('crypto')
const server = http.createServer((request, response) => response.writeHead(426).end())
server.on('upgrade', (request, socket) => {
  const accept = crypto.createHash('sha1').update(request.headers['sec-websocket-key'] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11')
  const lines = ['HTTP/1.1 101 Switching Protocols', 'Connection: Upgrade', 'Upgrade: websocket',
    'Sec-WebSocket-Accept: ' + accept.digest('base64'), 'Sec-WebSocket-Protocol: ' + request.headers['sec-websocket-protocol']]
  socket.write(lines.join('\\r\\n') + '\\r\\n\\r\\n' + request.method + ' ' + request.url + ' ')
  socket.on('data', (data) => socket.write(data.toString().toUpperCase()))
  socket.on('end', () => socket.end('bye'))
})
server.listen(8000, '127.0.0.1', () => console.log('up'))`

async function running(program) {
  const sandbox = await Sandbox.create()
  await sandbox.files.write('program.js', program)
  const out = new Collected()
  await sandbox.commands.run('node program.js', { background: true, timeoutMs: 0, onStdout: out.add })
  await out.until(({ text }) => text === 'up\n')
  return sandbox
}

/** A connection of its own, which is used as soon as it is open. */
function connected() {
  const own = http2.connect(server.url)
  return new Promise((resolve) => own.once('remoteSettings', (settings) => resolve({ own, settings })))
}

test('gRPC reaches servers of HTTP/2, with streams in both directions and trailers', async () => {
  const sandbox = await running(SPEAKING_HTTP2)
  const { own } = await connected()
  const authority = `8000-${sandbox.sandboxId}.example.com`
  const call = { ':method': 'POST', ':path': '/a.B/C', ':authority': authority, 'content-type': 'application/grpc', te: 'trailers' }
  const stream = own.request(call, { endStream: false })
  const data = new Collected()
  stream.on('data', data.add)
  const trailers = new Promise((resolve) => stream.on('trailers', resolve))
  stream.write('first ')
  await data.until(({ text }) => text === `/a.B/C ${authority} FIRST `)
  stream.end('second')
  const { 'grpc-status': status, 'x-te': te } = await trailers
  assert.deepEqual([status, te, data.text], ['0', 'trailers', `/a.B/C ${authority} FIRST SECOND`])
  own.close()
  await sandbox.kill()
})

test('websockets begin over HTTP/2', async () => {
  const sandbox = await running(WEBSOCKETS)
  const { own, settings } = await connected()
  assert.equal(settings.enableConnectProtocol, true)
  const begin = { ':method': 'CONNECT', ':protocol': 'websocket', ':scheme': 'http', ':path': '/chat?a', 'sec-websocket-version': '13' }
  const authority = `8000-${sandbox.sandboxId}.example.com`
  const stream = own.request({ ...begin, ':authority': authority, 'sec-websocket-protocol': 'chat' })
  const data = new Collected()
  stream.on('data', data.add)
  const headers = await new Promise((resolve) => stream.on('response', resolve))
  assert.deepEqual([headers[':status'], headers['sec-websocket-protocol'], headers['sec-websocket-accept']], [200, 'chat', undefined])
  stream.write('hello ')
  await data.until(({ text }) => text === 'GET /chat?a HELLO ')
  const ended = new Promise((resolve) => stream.on('end', resolve))
  stream.end()
  await ended
  assert.equal(data.text, 'GET /chat?a HELLO bye')

  // Others of its connection go on when a sandbox ends.
  const other = own.request({ ...begin, ':authority': authority, 'sec-websocket-protocol': 'chat' })
  other.on('error', () => {})
  const closed = new Promise((resolve) => other.on('close', resolve))
  await new Promise((resolve) => other.on('data', resolve))
  await sandbox.kill()
  other.end()
  await closed
  const health = own.request({ ':path': '/health' })
  assert.equal((await new Promise((resolve) => health.on('response', resolve)))[':status'] < 300, true)
  health.close()

  const tunnel = own.request({ ':method': 'CONNECT', ':authority': 'example.com:443' })
  assert.equal((await new Promise((resolve) => tunnel.on('response', resolve)))[':status'], 405)
  own.close()
})

test('pages of any origin may use envd', async () => {
  const sandbox = await Sandbox.create()
  const host = `49983-${sandbox.sandboxId}.example.com`
  const wanted = 'x-access-token,e2b-sandbox-id,e2b-sandbox-port,connect-protocol-version,content-type,x-metadata-a'
  const preflight = { origin: 'https://dashboard.example', 'access-control-request-method': 'POST' }
  for (const target of ['/filesystem.Filesystem/ListDir', '/files?path=a', '/process.Process/Start']) {
    const headers = { ...preflight, host, 'access-control-request-headers': wanted }
    const answer = await server.call('OPTIONS', target, { headers })
    assert.ok(answer.status === 200 || answer.status === 204, `${target}: ${answer.status}`)
    assert.ok(['*', preflight.origin].includes(answer.headers['access-control-allow-origin']), target)
    const allowed = answer.headers['access-control-allow-headers'].toLowerCase().split(/, */)
    assert.ok(allowed.includes('*') || wanted.split(',').every((name) => allowed.includes(name)), allowed.join())
  }
  const refused = await server.call('GET', '/files?path=a', { headers: { host, origin: preflight.origin } })
  assert.equal(refused.status, 401)
  assert.ok(refused.headers['access-control-allow-origin'], 'a page may read why')
  await sandbox.kill()
})
