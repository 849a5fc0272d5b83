// What tests of the guest's files wait for.

import type { Readable, Writable } from 'node:stream';
import { setTimeout as delay, setImmediate as immediate } from 'node:timers/promises';

import type { FileWatcher, Vm } from '../../lib/index.js';
import { patience } from './patience.js';

/** How a stream ends: when it is closed, the error that it had. */
export async function end(stream: Readable | Writable): Promise<Error | undefined> {
  let failure: Error | undefined;
  stream.on('error', (error: Error) => {
    failure = error;
  });
  // Closed, but its events may still be to come.
  if (stream.closed) await immediate();
  else await new Promise((resolve) => stream.on('close', resolve));
  return failure;
}

/** Takes changes up to the first of a name. */
export async function until(watcher: FileWatcher, filename: string): Promise<string[]> {
  const seen: string[] = [];
  while (!seen.at(-1)?.endsWith(` ${filename}`)) {
    const { value } = await watcher.next();
    if (value === undefined) throw new Error(`The watch ended after ${seen}`);
    seen.push(`${value.eventType} ${value.filename}`);
  }
  return seen;
}

/** A count of bytes that has come to rest: nothing is under way any more. */
export async function atRest(
  vm: Vm,
  field: 'vsockBytesFromGuest' | 'vsockBytesToGuest',
): Promise<number> {
  let bytes = -1;
  for (let quiet = 0; quiet < 5; quiet++) {
    const now = (await vm.stats())[field];
    if (now !== bytes) quiet = 0;
    bytes = now;
    await delay(patience(300));
  }
  return bytes;
}
