// Contents of files of the host that go to a guest.

import type { BigIntStats } from 'node:fs';
import type { FileHandle } from 'node:fs/promises';

import { encodeTreeRun } from './protocol.js';
import type { TreeOutput } from './tree-output.js';

/** Unit of `stat.blocks`, in bytes. */
const STATUS_BLOCK_BYTES = 512n;

/** Unit in which holes are looked for, in bytes: that of most file systems. */
const HOLE_BYTES = 4096;
const SCAN_BYTES = 64 * HOLE_BYTES;
const ZEROS = Buffer.alloc(HOLE_BYTES);

/** Sends a file as far as it was long when `status` was read; one that was cut off since is shorter. */
export async function sendContents(
  output: TreeOutput,
  handle: FileHandle,
  { size, blocks }: BigIntStats,
): Promise<void> {
  const mayHaveHoles = blocks * STATUS_BLOCK_BYTES < size;
  const send = mayHaveHoles ? sendAroundHoles : sendPlainly;
  const { known, end } = await send(output, handle, Number(size));
  if (known < Number(size)) await output.put(encodeTreeRun({ offset: end, bytes: 0 }));
}

/** How far contents were sent, and how far the file reaches. */
interface Sent {
  readonly known: number;
  readonly end: number;
}

async function sendPlainly(output: TreeOutput, handle: FileHandle, size: number): Promise<Sent> {
  let end = 0;
  while (end < size) {
    const bytes = await output.putRun(end, size - end, async (into, at, count) => {
      return (await handle.read(into, at, count, end)).bytesRead;
    });
    if (bytes === 0) break;
    end += bytes;
  }
  return { known: end, end };
}

/** Node has no SEEK_DATA: what is all zeros in a file that has fewer blocks than bytes is a hole. */
async function sendAroundHoles(
  output: TreeOutput,
  handle: FileHandle,
  size: number,
): Promise<Sent> {
  const scan = Buffer.allocUnsafe(SCAN_BYTES);
  let known = 0;
  let end = 0;
  while (end < size) {
    // A hole sends nothing, and may take long.
    output.check();
    const { bytesRead } = await handle.read(scan, 0, Math.min(SCAN_BYTES, size - end), end);
    if (bytesRead === 0) break;
    for (const [from, to] of partsOf(scan.subarray(0, bytesRead))) {
      for (let at = from; at < to; ) {
        at += await output.putRun(end + at, to - at, async (into, where, count) => {
          return scan.copy(into, where, at, at + count);
        });
      }
      known = end + to;
    }
    end += bytesRead;
  }
  return { known, end };
}

/** The parts of a scan that are no holes. */
function partsOf(scan: Buffer): [from: number, to: number][] {
  const parts: [number, number][] = [];
  for (let at = 0; at < scan.length; at += HOLE_BYTES) {
    const block = scan.subarray(at, at + HOLE_BYTES);
    if (block.equals(ZEROS.subarray(0, block.length))) continue;
    const last = parts.at(-1);
    if (last?.[1] === at) last[1] = at + block.length;
    else parts.push([at, at + block.length]);
  }
  return parts;
}
