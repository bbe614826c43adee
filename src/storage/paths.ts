// Every name on disk, and nothing else. Below `docker/` stands what registry:2 and registry:3 write and
// read, so that a volume can be handed over in both directions; below `layover/` stands what is ours and
// can be deleted while no process runs, without losing anything but last-use times, half-finished downloads and, where the
// main upstream is not Docker Hub, the links of upstreams with names of their own (see cache/host-ownership.ts).
//
//   <root>/
//   ├── docker/registry/v2/
//   │   ├── blobs/<algorithm>/<aa>/<hex>/data              bytes: layers, configs and manifests
//   │   └── repositories/<name>/
//   │       ├── _layers/<algorithm>/<hex>/link             "this repository holds that blob"
//   │       └── _manifests/
//   │           ├── revisions/<algorithm>/<hex>/link       "this repository holds that manifest"
//   │           └── tags/<tag>/current/link                the digest that the tag had when last asked
//   │               └── index/<algorithm>/<hex>/link       digests that the tag had at some time
//   ├── scheduler-state.json                               registry's expiry times
//   └── layover/
//       ├── admin.sock                                     where the one process that serves from here listens
//       ├── spool/<algorithm>-<hex>-<sender>.part          a download that is not complete, and who sent it
//       ├── temporary/                                     small files on their way to a rename
//       ├── quarantine/                                    bytes that did not match their name
//       ├── hosts.json                                     which hosts had upstreams of their own, not the main one
//       └── index/                                         last use of everything, rebuilt when lost
//
// A link file holds the digest's text without a newline. All of it is on one file system: moves are renames.

import { createHash } from 'node:crypto'
import path from 'node:path'
import { algorithmOf, hexOf, type Digest } from '../oci/digest.ts'
import type { RepositoryName, Tag } from '../oci/reference.ts'

/** Who sent a part, as 32 hex digits: names of upstreams are too long and too odd for the name of a file. */
export type SenderId = string & { readonly __brand: 'SenderId' }

export function senderIdOf(name: string): SenderId {
  return createHash('sha256').update(name).digest('hex').slice(0, 32) as SenderId
}

export class StoragePaths {
  readonly root: string
  readonly blobs: string
  readonly repositories: string
  readonly schedulerState: string
  readonly spool: string
  readonly temporary: string
  readonly quarantine: string
  readonly index: string
  readonly hostNames: string
  readonly adminSocket: string

  /** @param rootDirectory `storage.filesystem.rootdirectory`; may be relative, may be a symbolic link */
  constructor(rootDirectory: string) {
    this.root = path.resolve(rootDirectory)
    const registry = path.join(this.root, 'docker', 'registry', 'v2')
    this.blobs = path.join(registry, 'blobs')
    this.repositories = path.join(registry, 'repositories')
    this.schedulerState = path.join(this.root, 'scheduler-state.json')
    const own = path.join(this.root, 'layover')
    this.spool = path.join(own, 'spool')
    this.temporary = path.join(own, 'temporary')
    this.quarantine = path.join(own, 'quarantine')
    this.index = path.join(own, 'index')
    this.hostNames = path.join(own, 'hosts.json')
    this.adminSocket = path.join(own, 'admin.sock')
  }

  blobData(digest: Digest): string {
    const hex = hexOf(digest)
    return path.join(this.blobs, algorithmOf(digest), hex.slice(0, 2), hex, 'data')
  }

  repository(name: RepositoryName): string {
    return path.join(this.repositories, name)
  }

  layerLink(name: RepositoryName, digest: Digest): string {
    return path.join(this.repository(name), '_layers', algorithmOf(digest), hexOf(digest), 'link')
  }

  manifests(name: RepositoryName): string {
    return path.join(this.repository(name), '_manifests')
  }

  revisionLink(name: RepositoryName, digest: Digest): string {
    const parts = [algorithmOf(digest), hexOf(digest), 'link']
    return path.join(this.manifests(name), 'revisions', ...parts)
  }

  tags(name: RepositoryName): string {
    return path.join(this.manifests(name), 'tags')
  }

  tag(name: RepositoryName, tag: Tag): string {
    return path.join(this.tags(name), tag)
  }

  tagLink(name: RepositoryName, tag: Tag): string {
    return path.join(this.tag(name, tag), 'current', 'link')
  }

  tagHistoryLink(name: RepositoryName, tag: Tag, digest: Digest): string {
    return path.join(this.tag(name, tag), 'index', algorithmOf(digest), hexOf(digest), 'link')
  }

  spoolFile(digest: Digest, sender: SenderId): string {
    return path.join(this.spool, `${algorithmOf(digest)}-${hexOf(digest)}-${sender}.part`)
  }

  quarantined(digest: Digest): string {
    return path.join(this.quarantine, `${algorithmOf(digest)}-${hexOf(digest)}`)
  }
}
