// Everything that is not the registry: what load balancers, orchestrators and dashboards ask. Hono serves it;
// the registry's own routes do not go through it (see exchange.ts for why).

import { Hono } from 'hono'
import type { Health } from '../telemetry/health.ts'
import type { Metrics } from '../telemetry/metrics.ts'
import { errorResponse } from './error-response.ts'
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

/** For `http.debug.addr`. @param options.prometheusPath undefined: no metrics */
export function debugApp(
  { health, metrics }: AppDeps,
  options: { prometheusPath: string | undefined },
): Hono {
  const app = new Hono()
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
    const failures = health.reasonsNotToServe()
    const lines = Object.entries(failures).map(([name, reason]) => `${name}: ${reason}\n`)
    return c.text(lines.length > 0 ? lines.join('') : 'ok\n', lines.length > 0 ? 503 : 200)
  })
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
