// A cache in front of three upstreams that have the same repository and tag, each with another content: what is mixed
// up between them cannot stay unseen.

import { onTestFinished } from 'vitest'
import { startFakeUpstream, type FakeUpstream } from './fake-upstream.ts'
import { buildImage, type TestImage } from './images.ts'
import { startLayover, type Layover } from './layover.ts'

/** The upstreams, the main one last. */
export const NAMES = ['ghcr.test', 'quay.test:5000', 'main'] as const
export type Name = (typeof NAMES)[number]

export const REPOSITORY = 'team/app'

export interface UpstreamSet {
  readonly layover: Layover
  readonly upstreams: Readonly<Record<Name, FakeUpstream>>
  readonly images: Readonly<Record<Name, TestImage>>
  /** Requests that each has been sent. */
  readonly counts: () => Record<Name, number>
}

type Keys = Readonly<Record<string, unknown>>

/** @param more keys for each upstream, and for `proxy` and `http` */
export async function startUpstreams(
  more: Partial<Record<Name, Keys>> & { readonly proxy?: Keys; readonly http?: Keys } = {},
): Promise<UpstreamSet> {
  const [ghcr, quay, main] = await Promise.all(NAMES.map(() => startFakeUpstream()))
  if (!ghcr || !quay || !main) throw new Error('an upstream is missing')
  onTestFinished(async () => {
    await Promise.all([ghcr.close(), quay.close()])
  })
  const upstreams = { 'ghcr.test': ghcr, 'quay.test:5000': quay, main }
  const images = {
    'ghcr.test': buildImage({ seed: 'ghcr' }),
    'quay.test:5000': buildImage({ seed: 'quay' }),
    main: buildImage({ seed: 'main' }),
  }
  for (const name of NAMES) upstreams[name].addImage(REPOSITORY, '1', images[name])
  const listeners = [
    { addr: '127.0.0.1:0', upstream: 'ghcr.test' },
    { addr: '127.0.0.1:0', upstream: 'quay.test:5000' },
  ]
  const others = {
    'ghcr.test': { remoteurl: ghcr.url, hosts: ['ghcr.cache.test'], ...more['ghcr.test'] },
    'quay.test:5000': {
      remoteurl: quay.url,
      hosts: ['quay.cache.test'],
      ...more['quay.test:5000'],
    },
  }
  const { layover } = await startLayover({
    upstream: main,
    configuration: {
      http: {
        addr: '127.0.0.1:0',
        draintimeout: '5s',
        debug: { addr: '127.0.0.1:0', prometheus: { enabled: true } },
        listeners,
        ...more.http,
      },
      proxy: {
        remoteurl: main.url,
        ...more.main,
        ...more.proxy,
        upstreams: { ...others, ...(more.proxy?.['upstreams'] as Keys | undefined) },
      },
    },
  })
  const counts = (): Record<Name, number> => ({
    'ghcr.test': ghcr.count(),
    'quay.test:5000': quay.count(),
    main: main.count(),
  })
  return { layover, upstreams, images, counts }
}
