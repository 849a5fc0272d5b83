// Contents of files of the host that go to a guest.

import type { BigIntStats } from 'node:fs';
import type { FileHandle } from 'node:fs/promises';

import { encodeTreeRun } from '../protocol/protocol.js';
import type { TreeOutput } from './output.js';

/** Unit of `stat.blocks`, in bytes. */
const STATUS_BLOCK_BYTES = 512n;

/** Unit in which holes are looked for, in bytes: that of most file systems. */
const HOLE_BYTES = 4096;
const SCAN_BYTES = 64 * HOLE_BYTES;
const ZEROS = Buffer.alloc(HOLE_BYTES);

/** Whether a file takes less of the disk than it has bytes. */
export function mayHaveHoles({ size, blocks }: BigIntStats): boolean {
  return blocks * STATUS_BLOCK_BYTES < size;
}

/** Sends contents that have been read, of a file that had so many bytes before. */
export async function sendLoaded(
  output: TreeOutput,
  contents: Buffer,
  size: number,
): Promise<void> {
  if (contents.length > 0) {
    await output.put(encodeTreeRun({ offset: 0, bytes: contents.length }));
    await output.put(contents);
  }
  if (contents.length < size) {
    await output.put(encodeTreeRun({ offset: contents.length, bytes: 0 }));
  }
}

/** Sends a file as far as it was long when `status` was read; one that was cut off since is shorter. */
export async function sendContents(
  output: TreeOutput,
  handle: FileHandle,
  status: BigIntStats,
): Promise<void> {
  const size = Number(status.size);
  const send = mayHaveHoles(status) ? sendAroundHoles : sendPlainly;
  const { known, end } = await send(output, handle, size);
  if (known < size) await output.put(encodeTreeRun({ offset: end, bytes: 0 }));
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
