import { getEventListeners, once } from 'node:events';
import * as host from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';

import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import type { FsOptions, GuestFs } from '../../lib/index.js';
import { AgentGuest } from '../helpers/agent-guest.js';

let guest: AgentGuest;

beforeAll(async () => {
  guest = await AgentGuest.start();
  await host.writeFile(guest.path('file'), 'contents');
  await host.mkdir(guest.path('directory'));
});

afterAll(async () => {
  await guest.stop();
});

async function* endless(): AsyncGenerator<string> {
  for (;;) {
    await delay(5);
    yield 'more';
  }
}

/** Calls that do not end by themselves. */
const lasting: [string, (options: FsOptions) => Promise<unknown>][] = [
  ['readFile', (options) => guest.fs.readFile('/dev/zero', options)],
  ['writeFile', (options) => guest.fs.writeFile(guest.path('endless'), endless(), options)],
  ['appendFile', (options) => guest.fs.appendFile(guest.path('endless'), endless(), options)],
  ['createReadStream', (options) => ending(guest.fs.createReadStream('/dev/zero', options))],
  [
    'createWriteStream',
    (options) => ending(guest.fs.createWriteStream(guest.path('never'), options)),
  ],
  ['watch', (options) => guest.fs.watch(guest.path('directory'), options).next()],
];

/** Rejects as soon as the stream fails. */
async function ending(stream: NodeJS.EventEmitter): Promise<void> {
  await once(stream, 'close');
}

/** Every method with that option last, on paths that are there. */
const all: [string, (fs: GuestFs, options: FsOptions) => unknown][] = [
  ['readFile', (fs, o) => fs.readFile('/x', o)],
  ['writeFile', (fs, o) => fs.writeFile('/x', '', o)],
  ['appendFile', (fs, o) => fs.appendFile('/x', '', o)],
  ['copyFile', (fs, o) => fs.copyFile('/x', '/y', 0, o)],
  ['createReadStream', (fs, o) => fs.createReadStream('/x', o)],
  ['createWriteStream', (fs, o) => fs.createWriteStream('/x', o)],
  ['readdir', (fs, o) => fs.readdir('/x', o)],
  ['stat', (fs, o) => fs.stat('/x', o)],
  ['lstat', (fs, o) => fs.lstat('/x', o)],
  ['access', (fs, o) => fs.access('/x', 0, o)],
  ['realpath', (fs, o) => fs.realpath('/x', o)],
  ['readlink', (fs, o) => fs.readlink('/x', o)],
  ['mkdir', (fs, o) => fs.mkdir('/x', o)],
  ['mkdtemp', (fs, o) => fs.mkdtemp('/x', o)],
  ['rm', (fs, o) => fs.rm('/x', o)],
  ['rename', (fs, o) => fs.rename('/x', '/y', o)],
  ['chmod', (fs, o) => fs.chmod('/x', 0o600, o)],
  ['chown', (fs, o) => fs.chown('/x', 0, 0, o)],
  ['lchown', (fs, o) => fs.lchown('/x', 0, 0, o)],
  ['link', (fs, o) => fs.link('/x', '/y', o)],
  ['symlink', (fs, o) => fs.symlink('/x', '/y', o)],
  ['utimes', (fs, o) => fs.utimes('/x', 0, 0, o)],
  ['lutimes', (fs, o) => fs.lutimes('/x', 0, 0, o)],
  ['truncate', (fs, o) => fs.truncate('/x', 0, o)],
  ['watch', (fs, o) => fs.watch('/x', o)],
  ['upload', (fs, o) => fs.upload('/x', '/y', o)],
  ['download', (fs, o) => fs.download('/x', '/y', o)],
];

describe('timeoutMs', () => {
  test.each(lasting)('ends %s()', async (_, call) => {
    await expect(call({ timeoutMs: 50 })).rejects.toMatchObject({
      name: 'VmError',
      code: 'ERR_VM_TIMEOUT',
      message: expect.stringMatching(/^vm\.fs\.\w+\(\) took longer than 50 ms$/),
    });

    expect(guest.hold.held).toBe(0);
  });

  test.each(lasting)('leaves an abort of %s() an abort', async (_, call) => {
    const controller = new AbortController();
    const { signal } = controller;
    setTimeout(() => controller.abort('enough'), 50);

    await expect(call({ timeoutMs: 60_000, signal })).rejects.toMatchObject({
      name: 'AbortError',
      cause: 'enough',
    });

    expect(getEventListeners(signal, 'abort')).toEqual([]);
  });

  test('of a signal that was aborted before is an abort, without a request', async () => {
    const sends = guest.sends.length;
    const signal = AbortSignal.abort('before');

    await expect(guest.fs.stat('/', { timeoutMs: 1000, signal })).rejects.toMatchObject({
      name: 'AbortError',
      cause: 'before',
    });

    expect(guest.sends.length).toBe(sends);
  });

  test('does nothing to what ends in time, and lets go of the signal', async () => {
    const { signal } = new AbortController();
    const options = { timeoutMs: 200, signal };

    expect(String(await guest.fs.readFile(guest.path('file'), options))).toBe('contents');
    const stream = guest.fs.createReadStream(guest.path('file'), options);
    await stream.forEach(() => {});
    const watcher = guest.fs.watch(guest.path('directory'), options);
    await watcher.ready;
    await watcher.return();
    await guest.fs.upload(guest.path('file'), guest.path('uploaded'), options);

    expect(getEventListeners(signal, 'abort')).toEqual([]);
    await delay(250);
    expect(await watcher.next()).toEqual({ done: true, value: undefined });
  });

  test.each(all)('of %s() must be from 1 to 2^31 - 1', async (_, call) => {
    for (const timeoutMs of [0, 2 ** 31]) {
      const called = (async () => await call(guest.fs, { timeoutMs }))();
      await expect(called).rejects.toThrow(/^Option "timeoutMs" must be .*; got/);
    }
  });
});
