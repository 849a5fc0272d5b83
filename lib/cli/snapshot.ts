import path from 'node:path';
import { parseArgs } from 'node:util';

import { errorCode } from '../errors.js';
import { type CacheEntry, listEntries, removeEntry } from '../internal/snapshot/cache-entries.js';
import { ensureSnapshot } from '../internal/snapshot/snapshot-cache.js';
import { escapeControl } from '../internal/vm/console-buffer.js';
import { Snapshot } from '../snapshot.js';
import { MiB } from '../units.js';
import type { Vm } from '../vm.js';
import { signalExitCode, UsageError } from './exit-codes.js';
import { SignalRelay } from './signal-relay.js';
import { type BuildArguments, parseBuildArguments } from './snapshot-options.js';

/** Digits of a name that are shown, and enough to tell entries apart. */
const SHOWN_DIGITS = 12;

/** `forklet snapshot`. */
export async function runSnapshot(args: readonly string[]): Promise<number> {
  const [command, ...rest] = args;
  switch (command) {
    case 'build':
      return await build(parseBuildArguments(rest));
    case 'ls':
      return await list(rest);
    case 'rm':
      return await remove(rest);
    case 'verify':
      return await verify(rest);
    default:
      throw new UsageError(
        command === undefined
          ? "'snapshot' needs build, ls, rm or verify"
          : `Unknown command 'snapshot ${command}'`,
      );
  }
}

async function build({ recipe, command, output, overwrite }: BuildArguments): Promise<number> {
  const relay = new SignalRelay();
  const { abort } = relay;
  try {
    const { core, directory } = await ensureSnapshot({
      ...recipe,
      signal: abort.signal,
      ...(command.length > 0 && { prepare: (vm) => prepare(vm, recipe.at, command, abort) }),
      onProgress: ({ stage, elapsedMs }) => {
        process.stderr.write(`${(elapsedMs / 1000).toFixed(1).padStart(6)} s  ${stage}\n`);
      },
    });
    const snapshot = Snapshot.of(core);
    try {
      if (output === undefined) {
        process.stdout.write(`${directory}\n`);
      } else {
        await snapshot.save(output, { overwrite, signal: abort.signal });
        process.stdout.write(`${path.resolve(output)}\n`);
      }
    } finally {
      await snapshot.close();
    }
    return 0;
  } catch (error) {
    if (relay.received !== undefined) return signalExitCode(relay.received);
    // The command's own failure says more than that everything was given up for it.
    throw error instanceof Error && abort.signal.aborted ? (error.cause ?? error) : error;
  } finally {
    relay.stop();
  }
}

/** Runs the command to its end, or starts the one whose program will park. */
async function prepare(
  vm: Vm,
  at: 'agent' | 'program',
  command: readonly string[],
  abort: AbortController,
): Promise<void> {
  const running = vm.exec(command, {
    stdin: 'ignore',
    stdout: process.stderr,
    stderr: process.stderr,
    check: at === 'agent',
  });
  if (at === 'agent') {
    await running;
    return;
  }
  running.then(
    () => abort.abort(new Error('The command ended before a program had parked')),
    // Closing the VM behind the freeze ends it as well.
    (error: unknown) => errorCode(error) !== 'ERR_VM_CLOSED' && abort.abort(error),
  );
  await running.started;
}

function parse<T extends Record<string, { type: 'boolean'; default: boolean }>>(
  args: readonly string[],
  options: T,
) {
  try {
    return parseArgs({ args: [...args], allowPositionals: true, options });
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}

async function list(args: readonly string[]): Promise<number> {
  const { values, positionals } = parse(args, { json: { type: 'boolean', default: false } });
  if (positionals.length > 0) throw new UsageError(`Unexpected '${positionals[0]}'`);
  const entries = await listEntries();
  process.stdout.write(values.json ? `${JSON.stringify(entries, null, 2)}\n` : formatList(entries));
  return 0;
}

/** The entries as people read them. */
export function formatList(entries: readonly CacheEntry[], now = new Date()): string {
  const rows = entries.map(({ name, description, allocatedBytes, modifiedAt }) => [
    name.slice(0, SHOWN_DIGITS),
    description?.at ?? '?',
    description === undefined ? '?' : size(description.memoryBytes),
    size(allocatedBytes),
    age(now.getTime() - modifiedAt.getTime()),
    escapeControl(description?.key ?? '?').replaceAll('\n', ' '),
  ]);
  const table = [['NAME', 'AT', 'MEMORY', 'ON DISK', 'AGE', 'KEY'], ...rows];
  const widths = [0, 1, 2, 3, 4].map((column) =>
    Math.max(...table.map((row) => (row[column] ?? '').length)),
  );
  return table
    .map((row) => `${row.map((cell, i) => cell.padEnd(widths[i] ?? 0)).join('  ')}\n`)
    .join('');
}

function size(bytes: number): string {
  return `${Math.ceil(bytes / MiB)} MiB`;
}

function age(ms: number): string {
  const minutes = Math.max(0, Math.floor(ms / 60_000));
  if (minutes < 120) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h` : `${Math.floor(hours / 24)} d`;
}

/** Entries by key, or by name or the beginning of one. */
function find(entries: readonly CacheEntry[], wanted: string): CacheEntry[] {
  const byKey = entries.filter(({ description }) => description?.key === wanted);
  if (byKey.length > 0) return byKey;
  const byName = /^[0-9a-f]{4,}$/.test(wanted)
    ? entries.filter(({ name }) => name.startsWith(wanted))
    : [];
  if (byName.length > 1) throw new Error(`More than one snapshot begins with '${wanted}'`);
  return byName;
}

async function remove(args: readonly string[]): Promise<number> {
  const { positionals } = parse(args, {});
  if (positionals.length === 0) throw new UsageError('No snapshot to remove');
  const entries = await listEntries();
  const found = positionals.flatMap((wanted) => {
    const some = find(entries, wanted);
    if (some.length === 0) throw new Error(`There is no snapshot '${wanted}' in the cache`);
    return some;
  });
  for (const { name, directory } of new Set(found)) {
    await removeEntry(directory);
    process.stdout.write(`${name}\n`);
  }
  return 0;
}

async function verify(args: readonly string[]): Promise<number> {
  const { positionals } = parse(args, {});
  if (positionals.length === 0) throw new UsageError('No snapshot to verify');
  const entries = await listEntries();
  let status = 0;
  for (const wanted of positionals) {
    const found = find(entries, wanted);
    const directories = found.length > 0 ? found.map(({ directory }) => directory) : [wanted];
    for (const directory of directories) {
      if (!(await isSound(directory))) status = 1;
    }
  }
  return status;
}

/** Loads a snapshot with all of its checks, and says what came of it. */
async function isSound(directory: string): Promise<boolean> {
  try {
    await (await Snapshot.load(directory, { verify: true })).close();
    process.stdout.write(`ok    ${directory}\n`);
    return true;
  } catch (error) {
    if (errorCode(error) !== 'ERR_VM_BAD_SNAPSHOT') throw error;
    process.stdout.write(`FAIL  ${directory}: ${escapeControl((error as Error).message)}\n`);
    return false;
  }
}
