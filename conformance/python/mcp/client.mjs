// The same as client.py with the official JavaScript client.
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'

const [url, headers, tool, args] = process.argv.slice(2)
const client = new Client({ name: 'tests', version: '1' })
const transport = new StreamableHTTPClientTransport(new URL(url), { requestInit: { headers: JSON.parse(headers) } })
await client.connect(transport)
const { tools } = await client.listTools()
const progress = []
const onprogress = (step) => progress.push(step.progress)
const result = await client.callTool({ name: tool, arguments: JSON.parse(args) }, undefined, { onprogress })
console.log(JSON.stringify({ tools: tools.map((one) => one.name), text: result.content[0].text, progress }))
await client.close()
