// How far an IP address reaches. A name says nothing: what counts is the address that is connected to.
// @see https://www.iana.org/assignments/iana-ipv4-special-registry and .../iana-ipv6-special-registry

import { BlockList, isIP } from 'node:net'

export type AddressScope =
  | 'public'
  /** Of a site: RFC 1918, shared (RFC 6598), unique local. */
  | 'private'
  /** This machine. */
  | 'loopback'
  /** This wire, and where clouds answer the questions of their machines, with credentials among the answers. */
  | 'link-local'
  /** Nothing that a registry could have: multicast, documentation, tunnels, not an address. */
  | 'unusable'

/** The first that holds the address counts. */
const RANGES: readonly (readonly [AddressScope, readonly string[]])[] = [
  [
    'link-local',
    [
      '169.254.0.0/16',
      'fe80::/10',
      // Metadata services outside the link-local ranges: AWS over IPv6, Alibaba, Azure, Oracle.
      'fd00:ec2::/32',
      '100.100.100.200/32',
      '168.63.129.16/32',
      '192.0.0.192/32',
    ],
  ],
  ['loopback', ['127.0.0.0/8', '::1/128']],
  ['private', ['10.0.0.0/8', '100.64.0.0/10', '172.16.0.0/12', '192.168.0.0/16', 'fc00::/7']],
  [
    'unusable',
    [
      '0.0.0.0/8',
      '192.0.0.0/24',
      '192.0.2.0/24',
      '192.88.99.0/24',
      '198.18.0.0/15',
      '198.51.100.0/24',
      '203.0.113.0/24',
      '224.0.0.0/3',
      '2001::/23',
      '2001:db8::/32',
      '3fff::/20',
    ],
  ],
  // All that is public unicast in IPv6 today lies in 2000::/3.
  ['public', ['0.0.0.0/0', '2000::/3']],
]

const SCOPES = RANGES.map(([scope, subnets]) => [scope, blockOf(subnets)] as const)

/** @param text without brackets */
export function addressScope(text: string): AddressScope {
  // A zone (`%eth0`) says which wire, not whose.
  const address = text.replace(/%.*$/, '')
  const family = isIP(address)
  if (family === 0) return 'unusable'
  const inner = family === 6 ? embeddedIPv4(address) : undefined
  if (inner !== undefined) return addressScope(inner)
  const type = family === 4 ? 'ipv4' : 'ipv6'
  return SCOPES.find(([, block]) => block.check(address, type))?.[0] ?? 'unusable'
}

/** Prefixes whose addresses lead to the IPv4 address within them: mapped, NAT64, 6to4. */
const EMBEDDING: readonly { readonly prefix: readonly number[]; readonly offset: number }[] = [
  { prefix: [0, 0, 0, 0, 0, 0xffff], offset: 6 },
  { prefix: [0x64, 0xff9b, 0, 0, 0, 0], offset: 6 },
  { prefix: [0x2002], offset: 1 },
]

function embeddedIPv4(address: string): string | undefined {
  const groups = groupsOf(address)
  const found = EMBEDDING.find(({ prefix }) => prefix.every((group, i) => groups[i] === group))
  if (!found) return undefined
  const [high = 0, low = 0] = groups.slice(found.offset, found.offset + 2)
  return [high >> 8, high & 255, low >> 8, low & 255].join('.')
}

/** The eight groups of an IPv6 address, in any of its spellings. */
function groupsOf(address: string): number[] {
  // The URL parser knows them all.
  const plain = new URL(`http://[${address}]`).hostname.slice(1, -1)
  const [head = '', tail] = plain.split('::')
  const [first, last] = [numbersIn(head), numbersIn(tail ?? '')]
  return [...first, ...Array<number>(8 - first.length - last.length).fill(0), ...last]
}

function numbersIn(part: string): number[] {
  return part === '' ? [] : part.split(':').map((group) => Number.parseInt(group, 16))
}

function blockOf(subnets: readonly string[]): BlockList {
  const block = new BlockList()
  for (const subnet of subnets) {
    const [network = '', bits] = subnet.split('/')
    block.addSubnet(network, Number(bits), isIP(network) === 4 ? 'ipv4' : 'ipv6')
  }
  return block
}
