import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';

import { afterEach, beforeEach, expect, test } from 'vitest';

import { CacheLock } from '../../lib/internal/snapshot/cache-lock.js';

let root: string;
let file: string;
const never = new AbortController().signal;

beforeEach(() => {
  root = mkdtempSync(path.join(tmpdir(), 'forklet-lock-'));
  file = path.join(root, 'lock');
});

afterEach(() => {
  rmSync(root, { recursive: true });
});

test('a lock has one holder at a time', async () => {
  const taken = await Promise.all(Array.from({ length: 8 }, () => CacheLock.tryTake(file)));
  const [holder, ...others] = taken.filter((lock) => lock !== undefined);

  expect(holder).toBeDefined();
  expect(others).toEqual([]);
  expect(readdirSync(root)).toEqual(['lock']);
  await holder?.release();
  expect(readdirSync(root)).toEqual([]);
  await (await CacheLock.tryTake(file))?.release();
});

test('whoever waits goes on when the holder is done', async () => {
  const holder = await CacheLock.tryTake(file);
  let free = false;
  const waiting = CacheLock.untilFree(file, never).then(() => {
    free = true;
  });
  await delay(150);
  expect(free).toBe(false);
  await holder?.release();
  await waiting;
});

test('waiting ends with its signal', async () => {
  const holder = await CacheLock.tryTake(file);

  await expect(CacheLock.untilFree(file, AbortSignal.timeout(20))).rejects.toThrow();
  await holder?.release();
});

test('a holder that has died does not hold it', async () => {
  const holder = await CacheLock.tryTake(file);
  const owner = JSON.parse(readFileSync(file, 'utf8')) as Record<string, unknown>;
  await holder?.release();
  const { pid } = spawnSync('true');
  writeFileSync(file, JSON.stringify({ ...owner, pid }));

  await CacheLock.untilFree(file, never);
  expect(existsSync(file)).toBe(false);
});

test('a holder whose process id belongs to somebody else by now does not hold it', async () => {
  const holder = await CacheLock.tryTake(file);
  const owner = JSON.parse(readFileSync(file, 'utf8')) as Record<string, unknown>;
  await holder?.release();
  writeFileSync(file, JSON.stringify({ ...owner, started: '1' }));

  await CacheLock.untilFree(file, never);
  expect(existsSync(file)).toBe(false);
});

test.each([
  ['of another machine', JSON.stringify({ pid: 1, started: '1', domain: 'other', nonce: 'x' })],
  ['that says nothing', 'garbage'],
])('a holder %s is believed while its heart beats', async (_, contents) => {
  writeFileSync(file, contents);

  await expect(CacheLock.untilFree(file, AbortSignal.timeout(300))).rejects.toThrow();
  expect(existsSync(file)).toBe(true);
});

test('nobody releases what somebody else has taken over', async () => {
  const first = await CacheLock.tryTake(file);
  rmSync(file);
  const second = await CacheLock.tryTake(file);
  await first?.release();

  expect(existsSync(file)).toBe(true);
  await second?.release();
  expect(existsSync(file)).toBe(false);
});
