import type { Readable } from 'node:stream';
import { StringDecoder } from 'node:string_decoder';

import type { ExecRun } from './run.js';

/**
 * Cuts a command's standard output into lines. `handle` is awaited at the end, for its failure.
 *
 * A line may have at most `maxOutputBytes` characters: a guest that never ends one would otherwise
 * fill the host's memory.
 */
export function readLines<T extends string | Buffer>(
  handle: PromiseLike<unknown>,
  run: ExecRun<T>,
): AsyncGenerator<string, void, undefined> {
  return generate(handle, run, run.stdout.take());
}

async function* generate<T extends string | Buffer>(
  handle: PromiseLike<unknown>,
  run: ExecRun<T>,
  stdout: Readable,
): AsyncGenerator<string, void, undefined> {
  const settled = Promise.resolve(handle);
  // Thrown below, when the lines before it have been read.
  settled.catch(() => {});
  const decoder = new StringDecoder(run.encoding === 'buffer' ? 'utf8' : run.encoding);
  let partial = '';
  let done = false;
  try {
    for await (const chunk of stdout) {
      const parts = decoder.write(chunk as Buffer).split('\n');
      const last = parts.pop() ?? '';
      for (const part of parts) {
        const line = partial + part;
        partial = '';
        yield line.endsWith('\r') ? line.slice(0, -1) : line;
      }
      partial += last;
      if (partial.length > run.maxOutputBytes) {
        run.failOverlongLine();
        break;
      }
    }
    partial += decoder.end();
    if (partial !== '' && partial.length <= run.maxOutputBytes) yield partial;
    done = true;
  } catch (error) {
    done = true;
    // The command's failure destroyed the stream; the handle tells it with the output so far.
    await settled;
    throw error;
  } finally {
    if (!done) {
      run.leave();
      await settled.then(ignore, ignore);
    }
  }
  await settled;
}

function ignore(): void {}
