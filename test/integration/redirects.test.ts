// Where an upstream may send the whole service. All addresses are on the loopback, so the tests say what they stand for:
// 127.0.0.2 is public, and 127.0.0.1 within our network.

import { createServer } from 'node:http'
import { describe, expect, it, onTestFinished } from 'vitest'
import type { AddressScope } from '../../src/upstream/address-scope.ts'
import { startFakeUpstream } from '../support/fake-upstream.ts'
import { buildImage } from '../support/images.ts'
import { startLayover } from '../support/layover.ts'

const NAME = 'team/app'

function scopeOf(address: string): AddressScope {
  return address === '127.0.0.2' ? 'public' : 'private'
}

/** A public registry that has nothing itself. @param target where it sends everybody */
async function startPublic(target: string): Promise<string> {
  const server = createServer((request, response) => {
    response.writeHead(307, { location: target + (request.url ?? '') }).end()
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.2', resolve))
  onTestFinished(() => {
    server.close()
    server.closeAllConnections()
  })
  const address = server.address()
  return `http://127.0.0.2:${typeof address === 'object' ? address?.port : 0}`
}

/** @param keys of `proxy` */
async function start(keys: Readonly<Record<string, unknown>> = {}) {
  const inside = await startFakeUpstream()
  const image = buildImage()
  inside.addImage(NAME, '1', image)
  const remoteurl = await startPublic(inside.url)
  const configuration = { proxy: { remoteurl, ...keys } }
  const { layover } = await startLayover({ upstream: inside, scopeOf, configuration })
  const statuses: (number | undefined)[] = []
  for (const rest of [
    'manifests/1',
    `manifests/${image.manifest.digest}`,
    `blobs/${image.config.digest}`,
    'tags/list',
    `referrers/${image.manifest.digest}`,
  ]) {
    statuses.push((await layover.get(`/v2/${NAME}/${rest}`)).status)
  }
  return { inside, layover, remoteurl, statuses }
}

describe('a public upstream that sends us into our own network', () => {
  it('is not followed, whatever is asked for, and the log says where it led', async () => {
    const { inside, layover, remoteurl, statuses } = await start()
    expect(statuses).toEqual([503, 503, 503, 503, 503])
    expect(inside.requests).toEqual([])
    const host = new URL(remoteurl).host
    const told = `${host} leads to 127.0.0.1, which is not a public address: if that is right, add it to proxy.redirecthosts`
    expect(layover.messages().filter((message) => message.startsWith(told))).toHaveLength(1)
  })

  it.each([{ redirecthosts: ['127.0.0.1'] }, { allowprivateaddresses: true }])(
    'is followed where the configuration says so: %j',
    async (keys) => {
      expect((await start(keys)).statuses).toEqual([200, 200, 200, 200, 200])
    },
  )
})
