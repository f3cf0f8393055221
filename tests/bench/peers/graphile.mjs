// graphile-worker: one pool in one process; `options` are settings of its preset. With "install" it makes its schema.
import { Logger, run, runMigrations } from 'graphile-worker'
import { bench, push, ready } from './push.mjs'

const quiet = new Logger(() => (level, message) => { if (level === 'error') console.error(message) })
const preset = { worker: { connectionString: bench.dsn, logger: quiet, ...bench.options } }

if (process.argv[2] === 'install') {
  await runMigrations({ preset, logger: quiet })
  process.exit(0)
}
await ready()
const runner = await run({ preset, logger: quiet, noHandleSignals: true, taskList: { push } })
await runner.promise
