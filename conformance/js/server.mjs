// A real server for tests, with a data directory of its own and a free port. Stopping it checks that nothing is left.
// `cargo xtask conformance` names the binary, envd and the layer store by environment variables.

import assert from 'node:assert/strict'
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import http from 'node:http'
import os from 'node:os'
import path from 'node:path'
import readline from 'node:readline'
import { promisify } from 'node:util'

import { record } from './recording.mjs'

export class Server {
  /** `trusting` gives sandboxes the certificate authorities that this host trusts, so that package managers work in them. */
  static async start({ data, trusting = false, options: more = [] } = {}) {
    const server = new Server()
    server.dir = fs.mkdtempSync(path.join(os.tmpdir(), 'cofferdam-test-'))
    server.data = data ?? path.join(server.dir, 'data')
    const log = fs.openSync(path.join(server.dir, 'log'), 'a')
    const { COFFERDAM_BIN, COFFERDAM_ENVD, COFFERDAM_LAYERS } = process.env
    const options = ['--data-dir', server.data, '--listen', '127.0.0.1:0', '--layers-dir', COFFERDAM_LAYERS]
    if (!trusting) options.push('--sandbox-ca', 'none')
    server.process = spawn(COFFERDAM_BIN, ['serve', ...options, '--envd', COFFERDAM_ENVD, ...more], {
      stdio: ['ignore', 'pipe', log],
    })
    server.ended = once(server.process, 'exit')
    fs.closeSync(log)
    try {
      await server.ready()
    } catch (error) {
      server.process.kill('SIGKILL')
      throw error
    }
    return server
  }

  async ready() {
    for await (const line of readline.createInterface({ input: this.process.stdout })) {
      assert.match(line, /^listening on /, this.tail())
      this.url = line.replace('listening on ', '').trim()
      break
    }
    assert.ok(this.url, this.tail())
    this.key = await this.makeKey('tests')
    Object.assign(process.env, this.environment())
  }

  /** Builds a recipe of `templates/` with our own CLI. */
  async build(recipe) {
    const { COFFERDAM_BIN, COFFERDAM_RECIPES } = process.env
    const words = ['template', 'build', path.join(COFFERDAM_RECIPES, recipe), '--data-dir', this.data]
    const env = { ...process.env, ...this.environment() }
    await promisify(execFile)(COFFERDAM_BIN, words, { env, maxBuffer: 64 << 20 })
  }

  tail() {
    return fs.readFileSync(path.join(this.dir, 'log'), 'utf8').slice(-4000)
  }

  environment() {
    return { E2B_API_KEY: this.key, E2B_API_URL: this.url, E2B_SANDBOX_URL: this.url }
  }

  /** Returns status, headers and text. Any request header may be set, `Host` included. */
  call(method, target, { headers = {}, body } = {}) {
    return new Promise((resolve, reject) => {
      const request = http.request(this.url + target, { method, headers, agent: false }, (response) => {
        const chunks = []
        response.on('data', (chunk) => chunks.push(chunk))
        response.on('end', () => {
          const text = Buffer.concat(chunks).toString()
          record(method, this.url + target, request.getHeaders(), response.statusCode, response.headers['content-type'] ?? '', text)
          resolve({ status: response.statusCode, headers: response.headers, text })
        })
        response.on('error', reject)
      })
      request.on('error', reject)
      request.end(body)
    })
  }

  async makeKey(name) {
    const token = fs.readFileSync(path.join(this.data, 'admin-token'), 'utf8').trim()
    const headers = { 'X-Admin-Token': token, 'Content-Type': 'application/json' }
    const teams = JSON.parse((await this.call('GET', '/teams', { headers })).text)
    const target = `/admin/teams/${teams[0].teamID}/api-keys`
    const made = await this.call('POST', target, { headers, body: JSON.stringify({ name }) })
    assert.equal(made.status, 201, made.text)
    return JSON.parse(made.text).key
  }

  async stop() {
    const headers = { 'X-API-Key': this.key }
    for (const { sandboxID } of JSON.parse((await this.call('GET', '/v2/sandboxes', { headers })).text)) {
      await this.call('DELETE', `/sandboxes/${sandboxID}`, { headers })
    }
    this.process.kill('SIGTERM')
    const [code] = await this.ended
    assert.equal(code, 0, this.tail())
    const mounts = fs.readFileSync('/proc/self/mountinfo', 'utf8').split('\n')
    assert.deepEqual(mounts.filter((line) => line.includes(this.data)), [])
    assert.deepEqual(fs.readdirSync(path.join(this.data, 'sandboxes')), [])
    fs.rmSync(this.dir, { recursive: true })
  }
}

/** Collects the arguments of callbacks, and waits until they fulfil a condition. */
export class Collected {
  items = []
  #waiting = new Set()

  add = (item) => {
    this.items.push(item)
    for (const check of [...this.#waiting]) check()
  }

  get text() {
    return this.items.map((item) => (typeof item === 'string' ? item : Buffer.from(item).toString())).join('')
  }

  until(enough, milliseconds = 20_000) {
    return new Promise((resolve, reject) => {
      const settle = (done) => {
        clearTimeout(timer)
        this.#waiting.delete(check)
        done()
      }
      const timer = setTimeout(
        () => settle(() => reject(new Error(`never came; got ${this.items.length}: ${this.text.slice(-2000)}`))),
        milliseconds
      )
      const check = () => enough(this) && settle(resolve)
      this.#waiting.add(check)
      check()
    })
  }
}
