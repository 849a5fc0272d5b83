import diagnostics_channel from 'node:diagnostics_channel';
import { readFileSync, unlinkSync, writeFileSync } from 'node:fs';
import * as host from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';

import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';

import type { DiagnosticsMessage } from '../../lib/index.js';
import { AgentGuest } from '../helpers/agent-guest.js';
import { until } from '../helpers/guest-files.js';

let guest: AgentGuest;
let directory: string;
let count = 0;

beforeAll(async () => {
  guest = await AgentGuest.start();
});

beforeEach(async () => {
  directory = guest.path(`watched-${count++}`);
  await host.mkdir(directory);
});

afterAll(async () => {
  await guest.stop();
});

test('watch() yields changes from the call on, and lets go when the loop is left', async () => {
  const watcher = guest.fs.watch(directory);
  await guest.fs.writeFile(`${directory}/file`, '');
  await guest.fs.writeFile(`${directory}/file`, 'x');
  const seen: unknown[] = [];

  for await (const change of watcher) {
    seen.push(change);
    if (seen.length === 2) break;
  }

  expect(seen).toEqual([
    { eventType: 'rename', filename: 'file' },
    { eventType: 'change', filename: 'file' },
  ]);
  expect(guest.hold.held).toBe(0);
  expect(await watcher.next()).toEqual({ done: true, value: undefined });
});

test('watch() of a file names it, and its loop ends with it', async () => {
  await host.writeFile(`${directory}/file`, '');
  const watcher = guest.fs.watch(`${directory}/file`);
  await watcher.ready;
  await host.appendFile(`${directory}/file`, 'x');
  await host.rm(`${directory}/file`);
  const seen: unknown[] = [];

  for await (const { eventType, filename } of watcher) seen.push(`${eventType} ${filename}`);

  expect(seen[0]).toBe('change file');
  expect(seen.at(-1)).toBe('rename file');
});

test('watch() with recursive yields paths below, of new directories as well', async () => {
  await host.mkdir(`${directory}/old`);
  const watcher = guest.fs.watch(directory, { recursive: true });
  await watcher.ready;

  await host.writeFile(`${directory}/old/file`, '');
  await until(watcher, 'old/file');
  await host.mkdir(`${directory}/new/deep`, { recursive: true });
  await host.writeFile(`${directory}/new/deep/file`, '');
  await until(watcher, 'new/deep/file');

  await watcher.return();
  expect(guest.hold.held).toBe(0);
});

test('watch() yields names in the encoding asked for', async () => {
  const watcher = guest.fs.watch(directory, 'buffer');
  await guest.fs.writeFile(Buffer.concat([Buffer.from(`${directory}/`), Buffer.from([0xff])]), '');

  const { value } = await watcher.next();

  expect(value?.filename).toEqual(Buffer.from([0xff]));
  await watcher.return();
  const hex = guest.fs.watch(directory, { encoding: 'hex' });
  await guest.fs.writeFile(`${directory}/a`, '');
  expect((await hex.next()).value?.filename).toBe('61');
  await hex[Symbol.asyncDispose]();
});

test('next() can be called ahead, and return() settles what waits', async () => {
  const watcher = guest.fs.watch(directory);
  const waiting = [watcher.next(), watcher.next(), watcher.next()];
  await guest.fs.writeFile(`${directory}/a`, '');

  expect((await waiting[0])?.value).toMatchObject({ filename: 'a' });
  await watcher.return();

  expect(await Promise.all(waiting.slice(1))).toEqual([
    { done: true, value: undefined },
    { done: true, value: undefined },
  ]);
});

test('changes that nobody takes stay in the guest, up to a window', async () => {
  const watcher = guest.fs.watch(directory);
  await watcher.ready;
  const names = Array.from({ length: 5000 }, (_, i) => String(i).padStart(100, '0'));
  for (const name of names) await host.writeFile(`${directory}/${name}`, '');
  await delay(100);

  const seen = await until(watcher, names.at(-1) ?? '');

  expect(seen).toEqual(names.map((name) => `rename ${name}`));
  await watcher.return();
});

describe('more changes than the guest keeps', () => {
  const LIMIT = Number(readFileSync('/proc/sys/fs/inotify/max_queued_events', 'utf8'));

  /** Makes them while the agent, which takes what it is told of at once, stands still. */
  function flood(): void {
    guest.signal('SIGSTOP');
    for (let i = 0; i < LIMIT; i++) {
      writeFileSync(`${directory}/flood-with-a-rather-long-name`, '');
      unlinkSync(`${directory}/flood-with-a-rather-long-name`);
    }
    guest.signal('SIGCONT');
  }

  test('end the loop with an error behind those that were kept', async () => {
    const watcher = guest.fs.watch(directory);
    await watcher.ready;
    flood();
    let seen = 0;

    const loop = (async () => {
      for await (const _ of watcher) seen++;
    })();

    await expect(loop).rejects.toMatchObject({ code: 'ERR_FS_WATCH_QUEUE_OVERFLOW' });
    expect(seen).toBeGreaterThan(1000);
    expect(guest.hold.held).toBe(0);
  });

  test('are passed over with overflow: ignore', async () => {
    const watcher = guest.fs.watch(directory, { overflow: 'ignore' });
    await watcher.ready;
    flood();
    const loop = until(watcher, 'after');
    await delay(200);
    await host.writeFile(`${directory}/after`, '');

    expect((await loop).at(-1)).toBe('rename after');
    await watcher.return();
  });
});

describe('watch() ends', () => {
  test('with AbortError when it is aborted, whether somebody waits or not', async () => {
    const controller = new AbortController();
    const options = { signal: controller.signal };
    const waiting = guest.fs.watch(directory, options);
    const idle = guest.fs.watch(directory, options);
    const next = waiting.next().catch((error: unknown) => error);
    await idle.ready;
    controller.abort('enough');

    expect(await next).toMatchObject({ name: 'AbortError', code: 'ABORT_ERR', cause: 'enough' });
    await expect(idle.next()).rejects.toMatchObject({ name: 'AbortError' });
    expect(await idle.next()).toEqual({ done: true, value: undefined });
    expect(guest.hold.held).toBe(0);
  });

  test('with AbortError when it was aborted beforehand, without a request', async () => {
    const sends = guest.sends.length;
    const watcher = guest.fs.watch(directory, { signal: AbortSignal.abort() });

    await expect(watcher.next()).rejects.toMatchObject({ name: 'AbortError' });
    await expect(watcher.ready).rejects.toMatchObject({ name: 'AbortError' });
    expect(guest.sends.length).toBe(sends);
  });

  test('with the error of node:fs for a missing path', async () => {
    const path = `${directory}/none`;
    const watcher = guest.fs.watch(path);

    await expect(watcher.next()).rejects.toMatchObject({
      code: 'ENOENT',
      errno: -2,
      syscall: 'watch',
      path,
      filename: path,
      message: `ENOENT: no such file or directory, watch '${path}'`,
    });
  });

  test('with the error of the VM when that is gone', async () => {
    const other = await AgentGuest.start();
    const watcher = other.fs.watch(other.directory);
    await watcher.ready;
    const next = watcher.next().catch((error: unknown) => error);

    other.agent.fail(() => Object.assign(new Error('gone'), { code: 'ERR_VM_EXITED' }));

    expect(await next).toMatchObject({ code: 'ERR_VM_EXITED' });
    await expect(other.fs.watch('/').next()).rejects.toMatchObject({ code: 'ERR_VM_EXITED' });
    await other.stop();
  });

  test('and tells the diagnostics channel', async () => {
    const messages: DiagnosticsMessage[] = [];
    const listener = (message: unknown): void => void messages.push(message as DiagnosticsMessage);
    diagnostics_channel.subscribe('forklet:fs', listener);
    const watcher = guest.fs.watch(directory);
    await guest.fs.mkdir(`${directory}/x`);
    await watcher.next();
    await watcher.return();
    diagnostics_channel.unsubscribe('forklet:fs', listener);

    expect(messages.filter(({ operation }) => operation === 'watch')).toMatchObject([
      { arguments: { path: directory }, outcome: 'ok', result: { changes: 1 } },
    ]);
  });
});

test('watch() refuses wrong arguments at once', () => {
  expect(() => guest.fs.watch(5 as never)).toThrow(TypeError);
  expect(() => guest.fs.watch('/x', { recursiv: true } as never)).toThrow('"recursive"');
  expect(() => guest.fs.watch('/x', { overflow: 'x' as never })).toThrow('overflow');
  expect(() => guest.fs.watch('/x', { signal: 5 as never })).toThrow('signal');
});
