import { describe, expect, it } from 'vitest'

import { formatConfiguration } from '../../../src/config/format.ts'
import { file, load, loadFixture } from './fixture.ts'

function format(text: string, environment: Record<string, string> = {}): string {
  const { configuration } = load(text, environment)
  return configuration ? formatConfiguration(configuration) : ''
}

describe('formatConfiguration', () => {
  it('prints what is in effect in the spelling of the file, and nothing that is not set', () => {
    expect(format(file('storage: {cache: {blobdescriptor: inmemory}}'))).toBe(
      [
        'version: 0.1',
        'log:',
        '  level: info',
        '  formatter: text',
        '  accesslog:',
        '    disabled: false',
        'storage:',
        '  filesystem:',
        '    rootdirectory: /var/lib/registry',
        '  cache:',
        '    blobdescriptor: inmemory',
        '    blobdescriptorsize: 10000',
        '  maintenance:',
        '    uploadpurging:',
        '      enabled: true',
        '      age: 168h0m0s',
        '      interval: 24h0m0s',
        '      dryrun: false',
        'http:',
        '  addr: :5000',
        '  draintimeout: 30s',
        'catalog:',
        '  maxentries: 1000',
        'tags:',
        '  maxtags: 1000',
        'proxy:',
        '  remoteurl: https://registry.example.com',
        '  ttl: 168h0m0s',
        '  tagttl: 1m0s',
        '  ratelimitstatus: 503',
        '',
      ].join('\n'),
    )
  })

  it('shows no secret', () => {
    const shown = format(
      file(
        'redis: {addr: a, username: u, password: hunter2, sentinelpassword: hunter2}',
        'health: {http: [{uri: "http://u:hunter2@a/x?token=hunter2", headers: {Authorization: Bearer hunter2}}]}',
        'proxy: {remoteurl: "https://a", username: u, password: hunter2}',
      ),
      { https_proxy: 'http://u:hunter2@b' },
    )
    expect(shown).not.toContain('hunter2')
    expect(shown).toContain("  username: u\n  password: '***'\n")
    expect(shown).toContain('uri: http://***@a/x?***')
    expect(shown).toContain('# https_proxy=http://***@b\n')
  })

  it.each(['registry-2-image', 'registry-3-image', 'helm', 'legacy', 'merge-keys', 'rpm-default'])(
    'prints %s so that it reads the same again',
    (name) => {
      const { configuration } = loadFixture(name)
      const shown = configuration ? formatConfiguration(configuration) : ''
      const masked = { ...configuration, health: expect.anything() }
      expect(load(shown)).toEqual({ configuration: masked, warnings: [], problems: [] })
      const again = load(shown).configuration
      expect(again && formatConfiguration(again)).toBe(shown)
    },
  )

  it('prints sockets, IPv6 and a switched-off retry so that they read the same again', () => {
    const text = file(
      'http: {net: unix, addr: /run/a.sock, debug: {addr: "[::1]:1"}}',
      'redis: {addrs: ["[fd00::1]:1"], maxretries: -1, tls: {enabled: true}}',
    )
    expect(load(format(text)).configuration).toEqual(load(text).configuration)
  })
})
