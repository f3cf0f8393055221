// What the Node workers share: the POST of one push, and the few words spoken with the bench.
//
// BENCH holds {dsn, url, certificate, token, inFlight, jobs, options}. A worker says {"ready"}, begins at the line "go",
// and says {"first", "last"} (nanoseconds of the monotonic clock) once `jobs` pushes are answered; it goes on until its
// stdin ends. Any answer but 200 ends it.
import { readFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { Pool } from 'undici'

export const bench = JSON.parse(process.env.BENCH)
const url = new URL(bench.url)
const pool = new Pool(url.origin, {
  connections: bench.inFlight,
  connect: bench.certificate ? { ca: readFileSync(bench.certificate) } : {},
})
const headers = { authorization: `Bearer ${bench.token}`, 'content-type': 'application/json' }
let first, answered = 0

/** One push to FCM, from a job's payload. */
export async function push (job) {
  first ??= process.hrtime.bigint()
  const body = JSON.stringify({
    message: {
      token: job.token,
      data: { notification_id: job.notification_id, scenario_type: job.scenario_type },
      android: {
        priority: 'HIGH',
        ttl: '259200s',
        notification: {
          title_loc_key: 'milestone_title', body_loc_key: 'milestone_body', tag: job.tag, channel_id: 'herald', visibility: 'PRIVATE',
        },
      },
    },
  })
  const answer = await pool.request({ path: url.pathname, method: 'POST', headers, body })
  await answer.body.json()
  if (answer.statusCode !== 200) throw new Error(`answered ${answer.statusCode}`)
  if (++answered === bench.jobs) say({ first: Number(first), last: Number(process.hrtime.bigint()) })
}

export function say (what) {
  process.stdout.write(JSON.stringify(what) + '\n')
}

/** Say that all is prepared; resolves at "go". */
export function ready () {
  const lines = createInterface({ input: process.stdin })
  lines.on('close', () => process.exit(0))
  say({ ready: true })
  return new Promise(resolve => lines.once('line', resolve))
}

process.on('unhandledRejection', error => { console.error(error); process.exit(1) })
