// A CSV goes in; a table, a picture and the chart's numbers come out.

import fs from 'node:fs'
import { Sandbox } from '@e2b/code-interpreter'

const CSV = 'city,visitors\nBergen,540\nTurku,300\n'
const CODE = `
import pandas as pd, matplotlib.pyplot as plt
visits = pd.read_csv('/home/user/visitors.csv')
plt.bar(visits.city, visits.visitors)
plt.title('Visitors')
plt.show()
visits
`

const picture = process.argv[2] ?? 'visitors.png'
const sandbox = await Sandbox.create()
try {
  await sandbox.files.write('/home/user/visitors.csv', CSV)
  const { results, error } = await sandbox.runCode(CODE)
  if (error) throw new Error(error.traceback)
  const plot = results.find((result) => result.png)
  const table = results.find((result) => result.isMainResult)
  fs.writeFileSync(picture, Buffer.from(plot.png, 'base64'))
  console.log(`${plot.chart.title}, saved to ${picture}`)
  for (const { label, value } of plot.chart.elements) console.log(`${label}: ${value}`)
  console.log(`columns: ${Object.keys(table.data).join(', ')}`)
} finally {
  await sandbox.kill()
}
