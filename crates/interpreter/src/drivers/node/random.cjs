// Random numbers that differ between copies of a sandbox: the generators of V8 and OpenSSL are in memory and cannot be reseeded.
// `Math.random` is replaced and reseeded on demand; the `crypto` functions read the kernel's generator each time.
// Keys that OpenSSL makes itself (TLS, key pairs) are not covered: make them after the copy, in a new process.
'use strict'

const crypto = require('node:crypto')
const fs = require('node:fs')
const { syncBuiltinESMExports } = require('node:module')

const urandom = fs.openSync('/dev/urandom', 'r')
const state = new Int32Array(4)

function fill(view) {
  const bytes = new Uint8Array(view.buffer ?? view, view.byteOffset ?? 0, view.byteLength)
  for (let at = 0; at < bytes.length; ) at += fs.readSync(urandom, bytes, at, bytes.length - at, null)
  return view
}

function reseed() {
  fill(state)
}

/** sfc32: small, fast, and passes PractRand. */
function next() {
  let [a, b, c, d] = state
  const t = (((a + b) | 0) + d) | 0
  d = (d + 1) | 0
  a = b ^ (b >>> 9)
  b = (c + (c << 3)) | 0
  c = (((c << 21) | (c >>> 11)) + t) | 0
  state[0] = a
  state[1] = b
  state[2] = c
  state[3] = d
  return t >>> 0
}

Math.random = function random() {
  return ((next() >>> 5) * 67108864 + (next() >>> 6)) / 9007199254740992
}

const original = { ...crypto }

crypto.randomBytes = function randomBytes(size, callback) {
  // The original function reports invalid arguments.
  if (!Number.isInteger(size) || size < 0 || size > 2 ** 31 - 1) return original.randomBytes(size, callback)
  const bytes = fill(Buffer.alloc(size))
  if (callback === undefined) return bytes
  process.nextTick(callback, null, bytes)
}

crypto.randomFillSync = function randomFillSync(view, offset = 0, size = undefined) {
  original.randomFillSync(view, offset, size)
  const unit = view.BYTES_PER_ELEMENT ?? 1
  const from = (view.byteOffset ?? 0) + offset * unit
  const length = size === undefined ? view.byteLength - offset * unit : size * unit
  fill(new Uint8Array(view.buffer ?? view, from, length))
  return view
}

crypto.randomUUID = function randomUUID() {
  const bytes = fill(Buffer.alloc(16))
  bytes[6] = (bytes[6] & 0x0f) | 0x40
  bytes[8] = (bytes[8] & 0x3f) | 0x80
  return bytes.toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-')
}

crypto.randomInt = function randomInt(min, max, callback) {
  if (max === undefined || typeof max === 'function') [min, max, callback] = [0, min, max]
  const range = max - min
  if (!(Number.isSafeInteger(min) && Number.isSafeInteger(max) && range > 0 && range < 2 ** 48)) {
    return original.randomInt(min, max, callback)
  }
  let drawn
  // Numbers that would favour small results are drawn again.
  do drawn = fill(Buffer.alloc(6)).readUIntBE(0, 6)
  while (drawn >= 2 ** 48 - (2 ** 48 % range))
  const number = min + (drawn % range)
  if (callback === undefined) return number
  process.nextTick(callback, null, number)
}

const web = Object.getPrototypeOf(crypto.webcrypto)
const { getRandomValues } = web
web.getRandomValues = function (view) {
  getRandomValues.call(this, view)
  return fill(view)
}
web.randomUUID = crypto.randomUUID
syncBuiltinESMExports()

module.exports = { reseed }
