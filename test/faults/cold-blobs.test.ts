// The fault matrix: see matrix-of.ts. Blobs are half of it, and so in two files: files run side by side.

import { describeMatrix } from './matrix-of.ts'

describeMatrix(['blob'], ['cold'])
