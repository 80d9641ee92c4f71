// Runs cells of JavaScript and TypeScript in one persistent global scope.
// Descriptor 3 is a socket to the interpreter: lines of words, all but the first in base64. What JavaScript writes goes there too and
// keeps its place among results; other programs that a cell starts write to the pipes.
// A cell's promise is awaited, and its value is the result; an interrupt ends synchronous code and awaiting alike.
'use strict'

const fs = require('node:fs')
const { createRequire } = require('node:module')
const net = require('node:net')
const path = require('node:path')
const { StringDecoder } = require('node:string_decoder')
const util = require('node:util')
const vm = require('node:vm')

const { compile } = require('./cells.cjs')
const { bundle, installDisplay } = require('./display.cjs')
const { reseed } = require('./random.cjs')

const typescript = process.argv[2] === 'typescript'
const tick = new Int32Array(new SharedArrayBuffer(4))
let count = 0
/** Ends the wait for the running cell's promise. */
let interrupt = () => {}

function tell(verb, ...words) {
  const line = [verb, ...words.map((word) => Buffer.from(String(word)).toString('base64'))].join(' ') + '\n'
  let rest = Buffer.from(line)
  while (rest.length > 0) {
    try {
      rest = rest.subarray(fs.writeSync(3, rest))
    } catch (error) {
      if (error.code !== 'EAGAIN') throw error
      // The interpreter reads slowly, and the event loop needs this socket not to block.
      Atomics.wait(tick, 0, 0, 1)
    }
  }
}

function redirect(stream, verb) {
  const decoder = new StringDecoder('utf8')
  const original = stream.write
  stream.write = function (chunk, encoding, done) {
    if (typeof encoding === 'function') [encoding, done] = [undefined, encoding]
    // Node reports values that cannot be written.
    if (typeof chunk !== 'string' && !(chunk instanceof Uint8Array)) return original.call(this, chunk, encoding, done)
    const text = decoder.write(typeof chunk === 'string' ? Buffer.from(chunk, encoding) : Buffer.from(chunk))
    if (text !== '') tell(verb, text)
    if (done) process.nextTick(done)
    return true
  }
}
redirect(process.stdout, 'out')
redirect(process.stderr, 'err')

class KeyboardInterrupt extends Error {
  name = 'KeyboardInterrupt'
}

function own(line) {
  return line.includes(__dirname) || line.includes('node:vm') || line.includes('node:internal')
}

function report(error) {
  if (error?.code === 'ERR_SCRIPT_EXECUTION_INTERRUPTED') error = new KeyboardInterrupt('The cell was interrupted')
  if (!(error instanceof Error) && !util.types.isNativeError(error)) {
    tell('error', 'Error', util.inspect(error), `Uncaught ${util.inspect(error)}`)
    return
  }
  const lines = String(error.stack ?? error).split('\n')
  tell('error', error.name, error.message, lines.filter((line) => !own(line)).join('\n'))
}

async function run(code) {
  tell('count', ++count)
  try {
    const filename = path.join(process.cwd(), `cell-${count}.js`)
    globalThis.require = createRequire(filename)
    const script = new vm.Script(compile(code, typescript), {
      filename,
      importModuleDynamically: vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER,
    })
    let value = script.runInThisContext({ breakOnSigint: true, displayErrors: false })
    if (util.types.isPromise(value) || typeof value?.then === 'function') {
      const interrupted = new Promise((_, reject) => {
        interrupt = () => reject(new KeyboardInterrupt('The cell was interrupted'))
      })
      value = await Promise.race([value, interrupted])
    }
    if (value !== undefined) tell('result', '1', JSON.stringify(bundle(value)))
  } catch (error) {
    report(error)
  }
  interrupt = () => {}
  tell('done')
}

const verbs = {
  run,
  set: (name, value) => void (process.env[name] = value),
  unset: (name) => void delete process.env[name],
  cwd(dir) {
    try {
      process.chdir(dir)
    } catch {
      // As in the other languages: the context keeps its directory.
    }
  },
  seed: reseed,
  // Interrupts code that awaits; other code is stopped by a signal.
  interrupt: () => interrupt(),
}

let pending = ''
const control = new net.Socket({ fd: 3, readable: true, writable: false })
control.setEncoding('latin1')
control.on('data', (text) => {
  const lines = (pending + text).split('\n')
  pending = lines.pop()
  for (const line of lines) {
    const [verb, ...words] = line.split(' ')
    const given = words.map((word) => Buffer.from(word, 'base64').toString())
    // The interpreter sends a cell only once the previous one has ended.
    verbs[verb](...given)
  }
})
control.on('close', () => process.exit(0))

// A signal has an effect only while a script runs; see `breakOnSigint`.
process.on('SIGINT', () => {})
// An unhandled rejection must not end the process and lose all variables.
for (const event of ['uncaughtException', 'unhandledRejection']) {
  process.on(event, (error) => process.stderr.write(`Uncaught ${util.inspect(error)}\n`))
}

Object.assign(globalThis, { module: { exports: {} }, exports: {} })
installDisplay((data) => tell('result', '0', JSON.stringify(data)))
reseed()
// Load the compiler now, not with the first cell.
compile('const ready: boolean = true', true)
tell('ready')
