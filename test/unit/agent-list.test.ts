import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';

import { describe, expect, test } from 'vitest';

import {
  encodeCancel,
  encodeReaddir,
  encodeRemove,
  encodeWindow,
  Stream,
} from '../../lib/internal/protocol/protocol.js';
import type { HostAgent } from '../helpers/host-agent.js';
import { sharedAgent } from '../helpers/shared-agent.js';

const { ECANCELED, ENAMETOOLONG, ENOENT, ENOTDIR } = constants.errno;

let agent: HostAgent;
let directory: string;

sharedAgent((...made) => {
  [agent, directory] = made;
});

function path(name: string): string {
  return join(directory, name);
}

describe('readdir', () => {
  test('lists names and types, without . and ..', async () => {
    mkdirSync(path('listed/sub'), { recursive: true });
    writeFileSync(path('listed/file \u00e4'), '');
    symlinkSync('x', path('listed/link'));

    const { entries } = await agent.readdir(path('listed'));

    const found = entries.map(({ name, type }) => `${name} ${type}`);
    expect(found.sort()).toEqual(['file \u00e4 8', 'link 10', 'sub 4']);
  });

  test('of an empty directory is empty', async () => {
    mkdirSync(path('empty'));

    expect(await agent.readdir(path('empty'))).toMatchObject({ reply: { errno: 0 }, entries: [] });
  });

  test('lists 10,000 entries, through a window of 1,000 bytes at a time', async () => {
    mkdirSync(path('many'));
    for (let i = 0; i < 10_000; i++) writeFileSync(path(`many/entry-${i}`), '');

    const { entries } = await agent.readdir(path('many'));
    const narrow = agent.start((id) => encodeReaddir(id, path('many'), { outputLimit: 0 }));
    let over = false;
    void narrow.done.then(() => {
      over = true;
    });
    for (let limit = 1000; !over; limit += 1000) {
      agent.send(encodeWindow(narrow.id, Stream.output, limit));
      await agent.readFile('/proc/self/comm');
    }

    expect(new Set(entries.map(({ name }) => name.toString())).size).toBe(10_000);
    expect((await narrow.done).stdout).toHaveLength(
      entries.reduce((sum, { name }) => sum + name.length + 4, 0),
    );
  });

  test('lists a tree by the paths below it, and follows no link', async () => {
    mkdirSync(path('trees/a/b/c'), { recursive: true });
    mkdirSync(path('trees/empty'));
    writeFileSync(path('trees/a/b/file'), '');
    symlinkSync('..', path('trees/a/up'));

    const { entries } = await agent.readdir(path('trees'), { recursive: true });

    const found = entries.map(({ name, type }) => `${name} ${type}`);
    expect(found.sort()).toEqual(
      ['a 4', 'a/b 4', 'a/b/c 4', 'a/b/file 8', 'a/up 10', 'empty 4'].sort(),
    );
  });

  test('lists a tree of thousands of directories, while others go on', async () => {
    for (let i = 0; i < 2000; i++) mkdirSync(path(`forest/${i % 40}/${i}`), { recursive: true });

    const listing = agent.readdir(path('forest'), { recursive: true });
    expect(await agent.readFile('/proc/self/comm')).toMatchObject({ errno: 0 });

    const { entries } = await listing;
    expect(new Set(entries.map(({ name }) => name.toString())).size).toBe(2040);
  });

  test('of a tree stops at its window, and can be cancelled', async () => {
    const request = { outputLimit: 10, recursive: true };
    const operation = agent.start((id) => encodeReaddir(id, path('forest'), request));
    await operation.until((o) => o.received(Stream.output).length === 10);

    agent.send(encodeCancel(operation.id));

    expect(await operation.done).toMatchObject({ errno: ECANCELED });
  });

  test('of a tree that is deeper than a path is long fails', async () => {
    const script =
      'mkdir deep-tree && cd deep-tree && for i in $(seq 600); do mkdir 0123456789 && cd -P 0123456789 || exit 1; done';
    expect(await agent.sh(script, { cwd: directory })).toMatchObject({ exitCode: 0 });

    const request = { outputLimit: 2 ** 30, recursive: true };
    const listing = agent.start((id) => encodeReaddir(id, path('deep-tree'), request));

    expect(await listing.done).toMatchObject({ errno: ENAMETOOLONG });
    await agent.start((id) => encodeRemove(id, path('deep-tree'), { recursive: true })).done;
  });

  test('fails for a file and for a missing directory', async () => {
    expect((await agent.readdir('/etc/passwd')).reply.errno).toBe(ENOTDIR);
    expect((await agent.readdir(path('none'))).reply.errno).toBe(ENOENT);
  });
});
