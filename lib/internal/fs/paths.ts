// Paths as callers give them.

import type { GuestPath } from '../../guest-fs-options.js';
import { show } from '../base/validate.js';

/** What Linux takes as a path, in bytes with the NUL at its end. */
const PATH_MAX = 4096;

/** Most that is handed to the guest, which refuses it then; two of them fit into a request. */
const MAX_PATH_BYTES = 4 * PATH_MAX;

export function pathText(path: GuestPath): string {
  return typeof path === 'string' ? path : Buffer.from(path).toString('utf8');
}

/** Checks a path and takes it as it is now: bytes may change before the request leaves. */
export function checkPath(path: unknown, name = 'path'): GuestPath {
  if (typeof path !== 'string' && !(path instanceof Uint8Array)) {
    throw new TypeError(`The ${name} must be a string or a Uint8Array; got ${show(path)}`);
  }
  const hasNul = typeof path === 'string' ? path.includes('\0') : path.includes(0);
  if (hasNul) throw new TypeError(`The ${name} must not contain NUL; got ${show(path)}`);
  // Longer ones are the guest's to refuse, as long as they fit into a request.
  const bytes = typeof path === 'string' ? Buffer.byteLength(path) : path.length;
  if (bytes > MAX_PATH_BYTES) {
    throw new RangeError(`The ${name} must have less than ${PATH_MAX} bytes; got ${bytes}`);
  }
  return typeof path === 'string' ? path : Buffer.from(path);
}
