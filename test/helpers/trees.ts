// Trees of files of the host: one with everything in it, and what a tree has, to compare.

import { createHash } from 'node:crypto';
import * as fs from 'node:fs';

const SLASH = Buffer.from('/');

function join(directory: Buffer, name: Buffer): Buffer {
  return Buffer.concat([directory, SLASH, name]);
}

/** Names that a program trips over which takes them for text, options or lines. */
export const ODD_NAMES: readonly Buffer[] = [
  ' leading and trailing ',
  '-rf',
  '--help',
  'new\nline',
  '$(reboot)',
  '...',
  '..a',
  'ünïcödé',
  'x'.repeat(255),
]
  .map((name) => Buffer.from(name))
  .concat([Buffer.from([0x80, 0xff, 0x01]), Buffer.from('half \xc3', 'latin1')]);

/** A time with a part of each unit, in nanoseconds. */
const TIME_NS = 1_234_567_890_123_456_000n;

const HOLE_BYTES = 1024 * 1024;

/** Makes a tree with everything that a transfer carries. */
export function makeTree(path: string): void {
  const top = Buffer.from(path);
  const at = (name: string) => join(top, Buffer.from(name));
  fs.mkdirSync(at('empty'), { recursive: true });
  fs.mkdirSync(at('deep/er/and/deeper'), { recursive: true });
  fs.writeFileSync(at('deep/er/and/deeper/file'), 'deep');
  fs.mkdirSync(at('odd'));
  for (const name of ODD_NAMES) fs.writeFileSync(join(at('odd'), name), name);
  fs.mkdirSync(at('modes'));
  for (const mode of [0o000, 0o400, 0o644, 0o755, 0o777, 0o4755, 0o2755, 0o6711]) {
    fs.writeFileSync(at(`modes/${mode.toString(8)}`), 'x');
    fs.chmodSync(at(`modes/${mode.toString(8)}`), mode);
  }
  fs.writeFileSync(at('nothing'), '');
  fs.writeFileSync(at('large'), Buffer.alloc(700_001, 'large and more '));
  fs.symlinkSync('nothing', at('link'));
  fs.symlinkSync('/etc', at('link-to-directory'));
  fs.symlinkSync(Buffer.from([0xff, 0x2f, 0x2e, 0x2e]), at('dangling'));
  fs.writeFileSync(at('first'), 'several names');
  fs.linkSync(at('first'), at('second'));
  fs.linkSync(at('first'), at('deep/er/third'));
  makeSparse(at('holes'));
  fs.truncateSync(at('nothing'), 0);
  fs.writeFileSync(at('only-a-hole'), '');
  fs.truncateSync(at('only-a-hole'), HOLE_BYTES);
  fs.mkdirSync(at('read-only'));
  fs.writeFileSync(at('read-only/file'), 'x');
  fs.mkdirSync(at('sticky'));
  setTimes(top);
  fs.chmodSync(at('sticky'), 0o1777);
  fs.chmodSync(at('read-only'), 0o555);
}

/** Data, a hole, data, and a hole at the end. */
function makeSparse(path: Buffer): void {
  const fd = fs.openSync(path, 'w');
  fs.writeSync(fd, 'begin', 0);
  fs.writeSync(fd, 'middle', HOLE_BYTES);
  fs.ftruncateSync(fd, 3 * HOLE_BYTES);
  fs.closeSync(fd);
}

/** Gives every entry times of its own. */
function setTimes(top: Buffer): void {
  let count = 0;
  const visit = (path: Buffer): void => {
    if (fs.lstatSync(path).isDirectory()) {
      for (const name of fs.readdirSync(path, { encoding: 'buffer' })) visit(join(path, name));
    }
    const seconds = Number(TIME_NS / 1000n) / 1e6 + ++count;
    fs.lutimesSync(path, seconds + 100.25, seconds);
  };
  visit(top);
}

/** What an entry is, in a form that can be compared. */
export interface TreeItem {
  readonly path: string;
  readonly kind: string;
  readonly mode: string;
  /** Of the contents, or what a link says. */
  readonly contents: string;
  readonly modifiedUs: bigint;
  /** The first path of a file with several names. */
  readonly sameAs: string | undefined;
  readonly sparse: boolean;
}

function kindOf(status: fs.BigIntStats): string {
  if (status.isDirectory()) return 'directory';
  if (status.isSymbolicLink()) return 'symlink';
  return status.isFile() ? 'file' : 'other';
}

function contentsOf(path: Buffer, kind: string): string {
  if (kind === 'symlink') return fs.readlinkSync(path, { encoding: 'latin1' });
  if (kind !== 'file') return '';
  return createHash('sha256').update(fs.readFileSync(path)).digest('hex');
}

/** Every entry of a tree, the top first. Times are compared to the microsecond, as Node sets them. */
export function describeTree(path: string): TreeItem[] {
  const items: TreeItem[] = [];
  const first = new Map<string, string>();
  const visit = (at: Buffer, below: string): void => {
    const status = fs.lstatSync(at, { bigint: true });
    const kind = kindOf(status);
    const id = `${status.dev}:${status.ino}`;
    items.push({
      path: below,
      kind,
      mode: kind === 'symlink' ? '' : (Number(status.mode) & 0o7777).toString(8),
      contents: contentsOf(at, kind),
      modifiedUs: status.mtimeNs / 1000n,
      sameAs: kind === 'file' ? first.get(id) : undefined,
      sparse: kind === 'file' && status.blocks * 512n < status.size,
    });
    if (kind === 'file' && !first.has(id)) first.set(id, below);
    if (kind !== 'directory') return;
    const names = fs.readdirSync(at, { encoding: 'buffer' }).sort(Buffer.compare);
    for (const name of names) visit(join(at, name), `${below}/${name.toString('latin1')}`);
  };
  visit(Buffer.from(path), '');
  return items;
}

/** The same as a transfer leaves it: without setuid and setgid. */
export function carried(items: readonly TreeItem[]): TreeItem[] {
  return items.map((item) => {
    if (item.mode === '') return item;
    return { ...item, mode: (Number.parseInt(item.mode, 8) & 0o1777).toString(8) };
  });
}
