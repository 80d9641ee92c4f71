// Formats of values: text by `util.inspect`, and further formats if a value has methods for them.
// These are Deno's `Symbol.for('Jupyter.display')`, and the methods `_toMime`, `_toHtml`, `_toPng` and so on of IJavascript.
// `display(value)` shows a value in the middle of a cell; `display.html('<b>')` and the like make a value of a format.
'use strict'

const util = require('node:util')

const PROTOCOL = Symbol.for('Jupyter.display')
const FORMATS = {
  text: 'text/plain',
  html: 'text/html',
  markdown: 'text/markdown',
  svg: 'image/svg+xml',
  png: 'image/png',
  jpeg: 'image/jpeg',
  pdf: 'application/pdf',
  latex: 'text/latex',
  json: 'application/json',
  javascript: 'application/javascript',
}

const capital = (word) => word[0].toUpperCase() + word.slice(1)

/** Everything that is known of a value, by MIME type. */
function bundle(value) {
  const data = { 'text/plain': util.inspect(value) }
  if (value === null || (typeof value !== 'object' && typeof value !== 'function')) return data
  try {
    if (typeof value[PROTOCOL] === 'function') return { ...data, ...value[PROTOCOL]() }
    if (typeof value._toMime === 'function') return { ...data, ...value._toMime() }
    for (const [format, mime] of Object.entries(FORMATS)) {
      const method = value[`_to${capital(format)}`]
      if (typeof method === 'function') data[mime] = encoded(method.call(value))
    }
  } catch (error) {
    // A value whose methods fail still has its text.
    process.stderr.write(`display: ${util.inspect(error)}\n`)
  }
  return data
}

const encoded = (content) => (content instanceof Uint8Array ? Buffer.from(content).toString('base64') : content)

function installDisplay(show) {
  const display = (value) => show(bundle(value))
  for (const [format, mime] of Object.entries(FORMATS)) {
    display[format] = (content) => show({ [mime]: encoded(content) })
  }
  display.mime = (data) => show(data)
  // `$$` is IJavascript's name for it.
  Object.assign(globalThis, { display, $$: display })
}

module.exports = { bundle, installDisplay }
