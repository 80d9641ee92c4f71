// Loaded before each test file and each CLI that it starts (`node --import`): records the JSON responses that the
// official clients receive, one line each, in the file that COFFERDAM_RESPONSES names. `cargo xtask conformance`
// then compares them with the OpenAPI documents (`python/contract.py`).

import fs from 'node:fs'
import { createRequire } from 'node:module'

const file = process.env.COFFERDAM_RESPONSES

/** Records one response. `headers` are those of the request, with lower-case names. */
export function record(method, url, headers, status, contentType, body) {
  if (file) fs.appendFileSync(file, JSON.stringify({ method, url, headers, status, contentType, body }) + '\n')
}

/** Returns a `fetch` that records what `original` responds. */
function recording(original) {
  return async (input, init) => {
    const response = await original(input, init)
    const contentType = response.headers.get('content-type') ?? ''
    const isJson = contentType.startsWith('application/json')
    if (isJson || !response.body) {
      const url = response.url || (input.url ?? String(input))
      const headers = Object.fromEntries(new Headers(init?.headers ?? input.headers))
      const method = init?.method ?? input.method ?? 'GET'
      const write = (body) => record(method, url, headers, response.status, contentType, body)
      // The client's own reading is not delayed: it gets the other half. One that aborts leaves nothing to compare.
      if (isJson) response.clone().text().then(write, () => {})
      else write('')
    }
    return response
  }
}

if (file) {
  globalThis.fetch = recording(globalThis.fetch)
  // The SDK takes its own `fetch` from this package, and imports it later.
  const undici = createRequire(import.meta.url)('undici')
  undici.fetch = recording(undici.fetch)
}
