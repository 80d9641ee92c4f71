// A reporter for `node --test`: one JSON line for each test, as `python/results.py` writes them.

import fs from 'node:fs'

const engine = process.env.COFFERDAM_ENGINE ?? 'container'
const PACKAGES = ['@e2b/cli', '@e2b/code-interpreter', 'e2b']

/** The client packages that a test file names, with their installed versions. */
function clients(file) {
  const source = fs.readFileSync(file, 'utf8')
  const used = PACKAGES.filter((name) => source.includes(`'${name}'`) || source.includes(`'${name}/package.json'`))
  return used.map((name) => ({ client: `npm:${name}`, version: version(name) }))
}

function version(name) {
  const home = new URL(`../node_modules/${name}/package.json`, import.meta.url)
  return JSON.parse(fs.readFileSync(home)).version
}

export default async function* results(events) {
  for await (const { type, data } of events) {
    // Files are reported as tests, too.
    if (!['test:pass', 'test:fail'].includes(type) || !data.file || data.name === data.file || data.name.endsWith('.mjs')) continue
    const outcome = type === 'test:fail' ? 'failed' : data.skip ? 'skipped' : 'passed'
    const test = `conformance/js/${data.file.split('/').at(-1)}::${data.name}`
    for (const client of clients(data.file)) yield JSON.stringify({ ...client, test, outcome, engine }) + '\n'
  }
}
