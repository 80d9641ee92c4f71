// Makes a script of a cell: its declarations are kept for later cells, which may declare the names again.
// A cell with imports or top-level awaits becomes an async function; its declarations are moved out of it.
// Line numbers do not change. Constants become variables, since notebooks run cells repeatedly.
'use strict'

const acorn = require('acorn')
const amaro = require('amaro')

const PARSING = {
  ecmaVersion: 'latest',
  sourceType: 'script',
  allowAwaitOutsideFunction: true,
  allowImportExportEverywhere: true,
  allowHashBang: true,
}

function stripTypes(code) {
  try {
    return amaro.transformSync(code, { mode: 'strip-only' }).code
  } catch {
    // Enums, namespaces and parameter properties are more than types.
    return amaro.transformSync(code, { mode: 'transform', transform: { verbatimModuleSyntax: true } }).code
  }
}

/** The code as JavaScript, and its tree. */
function parse(code, typescript) {
  // `{ a: 1 }` is meant as a value.
  if (/^\s*\{/.test(code) && !/;\s*$/.test(code)) {
    try {
      const expression = `(${code}\n)`
      return { code: expression, tree: acorn.parse(expression, PARSING) }
    } catch {
      // It is a block.
    }
  }
  if (typescript) code = stripTypes(code)
  try {
    return { code, tree: acorn.parse(code, PARSING) }
  } catch (error) {
    if (!typescript) {
      try {
        const stripped = stripTypes(code)
        return { code: stripped, tree: acorn.parse(stripped, PARSING) }
      } catch {
        // The first error is about the code as it was written.
      }
    }
    throw new SyntaxError(error.message)
  }
}

const isFunction = (node) => /Function/.test(node.type) || node.type === 'PropertyDefinition' || node.type === 'StaticBlock'

/** Visits a tree without going into functions. */
function visit(node, parent, see) {
  see(node, parent)
  for (const key of Object.keys(node)) {
    for (const child of Array.isArray(node[key]) ? node[key] : [node[key]]) {
      if (child && typeof child.type === 'string' && !isFunction(child)) visit(child, node, see)
    }
  }
}

function names(pattern) {
  switch (pattern?.type) {
    case 'Identifier':
      return [pattern.name]
    case 'ObjectPattern':
      return pattern.properties.flatMap((property) => names(property.value ?? property.argument))
    case 'ArrayPattern':
      return pattern.elements.flatMap(names)
    case 'AssignmentPattern':
      return names(pattern.left)
    case 'RestElement':
      return names(pattern.argument)
    default:
      return []
  }
}

/** `import` as an assignment; fills in the names that it binds. */
function importing(node, code, bound) {
  const attributes = (node.attributes ?? []).map((one) => code.slice(one.start, one.end)).join(', ')
  const loaded = `await import(${node.source.raw}${attributes && `, { with: { ${attributes} } }`})`
  const parts = []
  let from = loaded
  for (const specifier of node.specifiers) {
    const local = specifier.local.name
    bound.push(local)
    if (specifier.type === 'ImportNamespaceSpecifier') from = `(${local} = ${loaded})`
    else if (specifier.type === 'ImportDefaultSpecifier') parts.push(`default: ${local}`)
    else parts.push(`${specifier.imported.raw ?? specifier.imported.name}: ${local}`)
  }
  const text = parts.length > 0 ? `({ ${parts.join(', ')} } = ${from});` : `${from};`
  // Keep the number of lines.
  return text + '\n'.repeat(code.slice(node.start, node.end).split('\n').length - 1)
}

function edited(code, edits) {
  let out = ''
  let at = 0
  for (const [start, end, text] of edits.sort((a, b) => a[0] - b[0] || a[1] - b[1])) {
    out += code.slice(at, start) + text
    at = end
  }
  return out + code.slice(at)
}

/** Exports are for others, of whom there are none; their declarations stay. */
function withoutExports(code, tree) {
  const edits = []
  for (const node of tree.body) {
    if (!node.type.startsWith('Export')) continue
    const kept = node.declaration
    edits.push(kept ? [node.start, kept.start, kept.type.includes('Declaration') ? '' : 'void '] : [node.start, node.end, ''])
  }
  return edited(code, edits)
}

function asScript(code, tree) {
  const edits = []
  for (const node of tree.body) {
    if (node.type === 'VariableDeclaration' && node.kind !== 'var') {
      edits.push([node.start, node.start + node.kind.length, 'var'.padEnd(node.kind.length)])
    } else if (node.type === 'ClassDeclaration') {
      edits.push([node.start, node.start, `var ${node.id.name} = `], [node.end, node.end, ';'])
    }
  }
  const last = tree.body.at(-1)
  return edited(code, edits) + (last?.type === 'ExpressionStatement' ? '' : '\n;undefined')
}

function asFunction(code, tree) {
  const edits = []
  const bound = []
  const functions = []
  for (const node of tree.body) {
    if (node.type === 'ImportDeclaration') edits.push([node.start, node.end, importing(node, code, bound)])
    if (node.type === 'FunctionDeclaration') functions.push(node.id.name)
    if (node.type === 'ClassDeclaration') {
      bound.push(node.id.name)
      edits.push([node.start, node.start, `${node.id.name} = `], [node.end, node.end, ';'])
    }
  }
  visit(tree, null, (node, parent) => {
    if (node.type !== 'VariableDeclaration' || (node.kind !== 'var' && parent !== tree)) return
    bound.push(...node.declarations.flatMap(({ id }) => names(id)))
    const inLoop = /^For/.test(parent.type) && parent.body !== node
    edits.push([node.start, node.declarations[0].start, inLoop ? '' : ';('])
    if (inLoop) return
    for (const { init, end } of node.declarations) {
      if (!init && node.kind !== 'var') edits.push([end, end, ' = undefined'])
    }
    const end = node.declarations.at(-1).end
    edits.push([end, end, ')'])
  })
  const last = tree.body.at(-1)
  if (last?.type === 'ExpressionStatement') {
    edits.push([last.start, last.start, ';return ('], [last.expression.end, last.expression.end, ')'])
  }
  const kept = [...new Set(bound)]
  const before = (kept.length > 0 ? `var ${kept.join(', ')};` : '') + '(async () => {'
  const lifted = functions.map((name) => `globalThis.${name} = ${name};`).join('')
  return `${before}${lifted}${edited(code, edits)}\n})()`
}

/** The source of a script for a cell. */
function compile(written, typescript) {
  let { code, tree } = parse(written, typescript)
  if (tree.body.some((node) => node.type.startsWith('Export'))) {
    code = withoutExports(code, tree)
    tree = acorn.parse(code, PARSING)
  }
  let waits = tree.body.some((node) => node.type === 'ImportDeclaration')
  visit(tree, null, (node) => {
    waits ||= node.type === 'AwaitExpression' || (node.type === 'ForOfStatement' && node.await)
  })
  return waits ? asFunction(code, tree) : asScript(code, tree)
}

module.exports = { compile }
