import {
  chmodSync,
  linkSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readlinkSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';

import { describe, expect, test } from 'vitest';

import {
  encodeAccess,
  encodeChmod,
  encodeChown,
  encodeLink,
  encodeReadlink,
  encodeRealpath,
  encodeRename,
  encodeSymlink,
  encodeTruncate,
  encodeUtimes,
} from '../../lib/internal/protocol/protocol.js';
import type { HostAgent } from '../helpers/host-agent.js';
import { sharedAgent } from '../helpers/shared-agent.js';

const { EACCES, EEXIST, EINVAL, EISDIR, ELOOP, ENOENT, ENOTDIR, ENOTEMPTY, EPERM } =
  constants.errno;
const KEEP = 0xffff_ffff;

let agent: HostAgent;
let directory: string;

sharedAgent((...made) => {
  [agent, directory] = made;
});

function path(name: string): string {
  return join(directory, name);
}

function file(name: string, contents = ''): string {
  writeFileSync(path(name), contents);
  return path(name);
}

async function errno(encode: (id: number) => Uint8Array): Promise<number> {
  return (await agent.start(encode).done).errno;
}

describe('rename', () => {
  const rename = (from: string, to: string) => errno((id) => encodeRename(id, from, to));

  test('moves a file over another', async () => {
    expect(await rename(file('from', 'new'), file('to', 'old'))).toBe(0);

    expect(readFileSync(path('to'), 'utf8')).toBe('new');
  });

  test('fails as rename(2) does', async () => {
    mkdirSync(path('full/inner'), { recursive: true });
    mkdirSync(path('other'));

    expect(await rename(path('none'), path('x'))).toBe(ENOENT);
    expect(await rename(path('other'), path('full'))).toBe(ENOTEMPTY);
    expect(await rename(path('full'), path('full/inner/x'))).toBe(EINVAL);
    expect(await rename(file('plain'), path('other'))).toBe(EISDIR);
    expect(await rename(path('other'), path('plain'))).toBe(ENOTDIR);
  });
});

describe('link and symlink', () => {
  test('link gives a file a second name', async () => {
    expect(await errno((id) => encodeLink(id, file('one'), path('two')))).toBe(0);

    expect(statSync(path('two')).ino).toBe(statSync(path('one')).ino);
  });

  test('link fails for a missing file, an existing name, and a directory', async () => {
    expect(await errno((id) => encodeLink(id, path('none'), path('x')))).toBe(ENOENT);
    expect(await errno((id) => encodeLink(id, file('a'), file('b')))).toBe(EEXIST);
    expect(await errno((id) => encodeLink(id, directory, path('x')))).toBe(EPERM);
  });

  test('symlink stores its target as it is', async () => {
    const target = Buffer.from([0x2e, 0x2e, 0x2f, 0xff]);

    expect(await errno((id) => encodeSymlink(id, target, path('soft')))).toBe(0);

    expect(readlinkSync(path('soft'), 'buffer')).toEqual(target);
    expect(await errno((id) => encodeSymlink(id, 'x', path('soft')))).toBe(EEXIST);
    expect(await errno((id) => encodeSymlink(id, '', path('void')))).toBe(ENOENT);
  });
});

describe('readlink and realpath', () => {
  test('readlink answers with the longest target there can be', async () => {
    const target = 'x'.repeat(4095);
    symlinkSync(target, path('long'));

    const reply = await agent.start((id) => encodeReadlink(id, path('long'))).done;

    expect(reply).toMatchObject({ errno: 0, path: Buffer.from(target) });
  });

  test('many readlinks at once are all answered', async () => {
    const target = 'y'.repeat(4000);
    symlinkSync(target, path('often'));

    const replies = await Promise.all(
      Array.from(
        { length: 500 },
        () => agent.start((id) => encodeReadlink(id, path('often'))).done,
      ),
    );

    expect(replies.every((reply) => reply.path?.toString() === target)).toBe(true);
  });

  test('readlink fails for what is no link', async () => {
    expect(await errno((id) => encodeReadlink(id, file('no-link')))).toBe(EINVAL);
    expect(await errno((id) => encodeReadlink(id, path('none')))).toBe(ENOENT);
  });

  test('realpath resolves links and dots', async () => {
    mkdirSync(path('real/deep'), { recursive: true });
    symlinkSync('real', path('alias'));

    const odd = path('alias/./deep/../deep//');
    const reply = await agent.start((id) => encodeRealpath(id, odd)).done;

    expect(reply.path?.toString()).toBe(path('real/deep'));
  });

  test('realpath fails for a missing path, below a file, and in a circle', async () => {
    symlinkSync('circle', path('circle'));

    expect(await errno((id) => encodeRealpath(id, path('none')))).toBe(ENOENT);
    expect(await errno((id) => encodeRealpath(id, join(file('leaf'), 'x')))).toBe(ENOTDIR);
    expect(await errno((id) => encodeRealpath(id, path('circle')))).toBe(ELOOP);
  });
});

describe('attributes', () => {
  test('access says what is allowed', async () => {
    chmodSync(file('plain-file'), 0o644);

    expect(await errno((id) => encodeAccess(id, path('plain-file'), 0))).toBe(0);
    expect(await errno((id) => encodeAccess(id, path('plain-file'), 6))).toBe(0);
    expect(await errno((id) => encodeAccess(id, path('plain-file'), 1))).toBe(EACCES);
    expect(await errno((id) => encodeAccess(id, path('none'), 0))).toBe(ENOENT);
  });

  test('chmod sets all bits', async () => {
    expect(await errno((id) => encodeChmod(id, file('mode'), 0o4711))).toBe(0);

    expect(statSync(path('mode')).mode & 0o7777).toBe(0o4711);
    expect(await errno((id) => encodeChmod(id, path('none'), 0o600))).toBe(ENOENT);
  });

  test('chown leaves what it is not told, and takes a link for itself when asked to', async () => {
    const { uid, gid } = statSync(file('owned'));
    symlinkSync('/nowhere', path('owned-link'));
    const owner = { user: KEEP, group: gid };

    expect(await errno((id) => encodeChown(id, path('owned'), owner))).toBe(0);
    expect(
      await errno((id) => encodeChown(id, path('owned-link'), { ...owner, followLinks: false })),
    ).toBe(0);
    expect(await errno((id) => encodeChown(id, path('owned-link'), owner))).toBe(ENOENT);

    expect(statSync(path('owned'))).toMatchObject({ uid, gid });
  });

  test('utimes sets nanoseconds, also before 1970, of a file or of a link', async () => {
    symlinkSync(file('timed'), path('timed-link'));
    const times = { accessedNs: -1n, modifiedNs: 1_234_567_890_123_456_789n };

    expect(await errno((id) => encodeUtimes(id, path('timed-link'), times))).toBe(0);
    expect(
      await errno((id) =>
        encodeUtimes(id, path('timed-link'), {
          accessedNs: 5n,
          modifiedNs: 6n,
          followLinks: false,
        }),
      ),
    ).toBe(0);

    const { mtimeNs, atimeNs } = statSync(path('timed'), { bigint: true });
    expect([atimeNs, mtimeNs]).toEqual([-1n, 1_234_567_890_123_456_789n]);
    expect(lstatSync(path('timed-link'), { bigint: true })).toMatchObject({ mtimeNs: 6n });
  });

  test('truncate cuts and extends', async () => {
    linkSync(file('cut', 'contents'), path('cut-too'));

    expect(await errno((id) => encodeTruncate(id, path('cut'), 3))).toBe(0);
    expect(readFileSync(path('cut-too'), 'utf8')).toBe('con');
    expect(await errno((id) => encodeTruncate(id, path('cut'), 5 * 2 ** 30))).toBe(0);
    expect(statSync(path('cut')).size).toBe(5 * 2 ** 30);
    expect(await errno((id) => encodeTruncate(id, directory, 0))).toBe(EISDIR);
    expect(await errno((id) => encodeTruncate(id, path('none'), 0))).toBe(ENOENT);
  });
});
