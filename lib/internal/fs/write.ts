import type { Operation } from '../agent/connection.js';
import type { CheckedWrite } from './options.js';

type Piece = string | NodeJS.ArrayBufferView;

function toBytes(piece: Piece, encoding: BufferEncoding): Uint8Array {
  if (typeof piece === 'string') return Buffer.from(piece, encoding);
  if (ArrayBuffer.isView(piece)) {
    return new Uint8Array(piece.buffer, piece.byteOffset, piece.byteLength);
  }
  throw new TypeError('An iterable of file contents must yield strings, Buffers or typed arrays');
}

/** Sends one piece; `false` when the guest stopped taking any, for which its reply has the reason. */
function send(operation: Operation, bytes: Uint8Array): Promise<boolean> {
  return new Promise((resolve) => {
    operation.input.write(bytes, (error) => resolve(!error));
  });
}

/**
 * Sends the contents of a file and their end; resolves with the number of bytes.
 *
 * When the source fails, the operation is cancelled and the source's error is thrown once the guest
 * has let go of the file.
 */
export async function writeContents(
  operation: Operation,
  { data, encoding }: CheckedWrite,
): Promise<number> {
  if (typeof data === 'string' || ArrayBuffer.isView(data)) {
    const bytes = toBytes(data, encoding);
    if (bytes.length > 0) await send(operation, bytes);
    operation.input.end();
    return bytes.length;
  }
  let total = 0;
  try {
    for await (const piece of data) {
      const bytes = toBytes(piece, encoding);
      if (bytes.length === 0) continue;
      if (!(await send(operation, bytes))) return total;
      total += bytes.length;
    }
  } catch (error) {
    operation.cancel();
    await operation.reply;
    throw error;
  }
  operation.input.end();
  return total;
}
