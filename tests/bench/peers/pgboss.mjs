// pg-boss: one instance in one process; `options` are those of work(). With "install" it makes its schema and its queue.
import { PgBoss } from 'pg-boss'
import { bench, push, ready } from './push.mjs'

const boss = new PgBoss({ connectionString: bench.dsn, useListenNotify: true, max: 10, schedule: false })
boss.on('error', error => { console.error(error); process.exit(1) })
await boss.start()
if (process.argv[2] === 'install') {
  await boss.createQueue('push', { notify: true })
  await boss.stop({ graceful: false })
  process.exit(0)
}
await ready()
await boss.work('push', bench.options, jobs => Promise.all(jobs.map(job => push(job.data))))
