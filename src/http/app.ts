// Everything that is not the registry: what load balancers, orchestrators and dashboards ask. Hono serves it;
// the registry's own routes do not go through it (see exchange.ts for why).

import { Hono } from 'hono'
import type { Health } from '../telemetry/health.ts'
import type { Metrics } from '../telemetry/metrics.ts'
import { adminGuard } from './admin-guard.ts'
import { errorResponse } from './error-response.ts'
import type { ListenAddress } from './listener.ts'
import { RegistryError } from '../oci/registry-error.ts'

export interface AppDeps {
  readonly health: Health
  readonly metrics: Metrics
}

/** For the listener that clients use: liveness and readiness only. */
export function publicApp({ health }: AppDeps): Hono {
  const app = new Hono()
  // As registry:2: load balancers look here.
  app.get('/', (c) => c.body(null, 200, { 'Content-Length': '0', 'Cache-Control': 'no-cache' }))
  addProbes(app, health)
  return withFallbacks(app)
}

export interface DebugAppDeps extends AppDeps {
  /** See admin-routes.ts. */
  readonly admin: Hono
}

export interface DebugAppOptions {
  /** Operators may call it by this host. */
  readonly listen: ListenAddress
  /** Undefined: no metrics. */
  readonly prometheusPath: string | undefined
}

/** For `http.debug.addr`. */
export function debugApp({ admin, health, metrics }: DebugAppDeps, options: DebugAppOptions): Hono {
  const app = new Hono()
  app.use('/admin/*', adminGuard(options.listen))
  app.route('/', admin)
  addProbes(app, health)
  app.get('/debug/health', (c) => {
    const failures = health.failures()
    return c.json(failures, Object.keys(failures).length > 0 ? 503 : 200)
  })
  if (options.prometheusPath !== undefined) {
    app.get(options.prometheusPath, async (c) => {
      const { registry } = metrics
      return c.body(await registry.metrics(), 200, { 'Content-Type': registry.contentType })
    })
  }
  return withFallbacks(app)
}

function addProbes(app: Hono, health: Health): void {
  app.get('/livez', (c) => c.text('ok\n'))
  // Neither upstreams nor the disk count: without them a cache still serves what it can.
  app.get('/readyz', (c) => {
    const reasons = linesOf(health.reasonsNotToServe())
    const isReady = reasons.length === 0
    const isVerbose = c.req.query('verbose') !== undefined
    const lines = isVerbose ? [...details(health), ...reasons] : reasons
    if (isReady) lines.push('ok')
    return c.text(lines.map((line) => `${line}\n`).join(''), isReady ? 200 : 503)
  })
}

/** For people: also what is no reason to send clients elsewhere. Clients read it too: no word of our files. */
function details(health: Health): string[] {
  const reasons = health.reasonsNotToServe()
  const advisory = Object.keys(health.failures()).filter((name) => !(name in reasons))
  return [
    ...health.passing().map((name) => `${name}: ok`),
    ...advisory.map((name) => `${name}: failing, /debug/health on http.debug.addr says why`),
    ...health.notes(),
  ]
}

function linesOf(failures: Readonly<Record<string, string>>): string[] {
  return Object.entries(failures).map(([name, reason]) => `${name}: ${reason}`)
}

function withFallbacks(app: Hono): Hono {
  app.notFound(() => failure(new RegistryError('NAME_UNKNOWN', { detail: 'no such page' })))
  app.onError((error) => failure(error))
  return app
}

function failure(error: Error): Response {
  const { body, status } = errorResponse(error)
  return Response.json(body, { status })
}
