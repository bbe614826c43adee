// The fault matrix: see matrix-of.ts.

import { describeMatrix } from './matrix-of.ts'

describeMatrix(['token', 'tags', 'referrers'])
