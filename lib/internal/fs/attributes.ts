// What files are and whom they belong to: `stat`, `chown`, `utimes`; and `mkdtemp`.

import { randomInt } from 'node:crypto';
import type { BigIntStats, Stats } from 'node:fs';

import type { FileTime, FsOptions, GuestPath, StatOptions } from '../../guest-fs-options.js';
import { encodeChown, encodeMkdir, encodeStat, encodeUtimes } from '../protocol/protocol.js';
import type { Guest } from '../vm/guest.js';
import { checkId, checkSimple, checkStat, checkTime } from './options.js';
import { checkPath, pathText } from './paths.js';
import {
  brokenReply,
  Errno,
  failureOf,
  observeCall,
  replyOf,
  request,
  textOrBytes,
} from './request.js';
import { makeBigIntStats, makeStats } from './stats.js';

export async function describe(
  guest: Guest,
  method: 'stat' | 'lstat',
  path: GuestPath,
  options: StatOptions | undefined,
): Promise<Stats | BigIntStats> {
  const { bigint, signal } = checkStat(method, options);
  const { stat } = await request(guest, path, {
    method,
    signal,
    encode: (id, checked) => encodeStat(id, checked, { followLinks: method === 'stat' }),
  });
  if (stat === null) throw brokenReply('a stat without its fields');
  return bigint ? makeBigIntStats(stat) : makeStats(stat);
}

export async function changeOwner(
  guest: Guest,
  method: 'chown' | 'lchown',
  path: GuestPath,
  uid: number,
  gid: number,
  options: FsOptions | undefined,
): Promise<void> {
  const owner = { user: checkId('uid', uid), group: checkId('gid', gid) };
  const { signal } = checkSimple(method, options);
  await request(guest, path, {
    method,
    rest: { uid, gid },
    signal,
    encode: (id, checked) =>
      encodeChown(id, checked, { ...owner, followLinks: method === 'chown' }),
  });
}

export async function changeTimes(
  guest: Guest,
  method: 'utimes' | 'lutimes',
  path: GuestPath,
  atime: FileTime,
  mtime: FileTime,
  options: FsOptions | undefined,
): Promise<void> {
  const times = { accessedNs: checkTime('atime', atime), modifiedNs: checkTime('mtime', mtime) };
  const { signal } = checkSimple(method, options);
  await request(guest, path, {
    method,
    syscall: method === 'utimes' ? 'utime' : 'lutime',
    rest: { atime, mtime },
    signal,
    encode: (id, checked) =>
      encodeUtimes(id, checked, { ...times, followLinks: method === 'utimes' }),
  });
}

const ALPHABET = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789';
const PLACES = 'XXXXXX';
const TEMPORARY_MODE = 0o700;
/** As many names as mkdtemp(3) tries, or more. */
const ATTEMPTS = 100;

function randomName(): string {
  return Array.from(PLACES, () => ALPHABET[randomInt(ALPHABET.length)]).join('');
}

function join(prefix: GuestPath, name: string): Buffer {
  return Buffer.concat([Buffer.from(prefix as string), Buffer.from(name)]);
}

/** The host makes the names up: its random numbers are better than those of a guest. */
export function makeTemporary(
  guest: Guest,
  given: GuestPath,
  options: { encoding: BufferEncoding | 'buffer'; signal: AbortSignal | undefined },
): Promise<string | Buffer> {
  const prefix = checkPath(given, 'prefix');
  const { encoding, signal } = options;
  const call = { method: 'mkdtemp', path: `${pathText(prefix)}${PLACES}`, signal };
  return observeCall(guest, call, async () => {
    for (let attempt = 1; ; attempt++) {
      const path = join(prefix, randomName());
      const operation = guest.agent.begin('other', ({ id }) =>
        encodeMkdir(id, path, { mode: TEMPORARY_MODE }),
      );
      const { errno } = await replyOf(operation, signal);
      if (errno === 0) return { value: textOrBytes(path, encoding) };
      if (errno !== Errno.EEXIST || attempt === ATTEMPTS) throw failureOf(call, errno);
    }
  });
}
