// Trees as a guest or a host may send them: right, wrong, and random.

import {
  encodeTreeEntry,
  encodeTreeRun,
  type TreeEntryFields,
  TreeType,
} from '../../lib/internal/protocol/protocol.js';
import type { Random } from './random.js';

type Name = string | Uint8Array;
type More = Partial<Omit<TreeEntryFields, 'type' | 'name' | 'target'>>;

const TIMES = { accessedNs: 1_000_000_000n, modifiedNs: 2_000_000_000n };

function entry(type: number, name: Name, more: Partial<TreeEntryFields>): Buffer {
  return encodeTreeEntry({ type, name: Buffer.from(name as string), ...TIMES, ...more });
}

export function directory(name: Name, more: More = {}): Buffer {
  return entry(TreeType.directory, name, { mode: 0o755, ...more });
}

/** A file with all of its contents in one run. */
export function file(name: Name, contents = '', more: More = {}): Buffer {
  const bytes = Buffer.from(contents);
  const head = entry(TreeType.file, name, { mode: 0o644, size: bytes.length, ...more });
  if (bytes.length === 0) return head;
  return Buffer.concat([head, run(0, contents)]);
}

/** Part of a file's contents. */
export function run(offset: number, contents: string): Buffer {
  const bytes = Buffer.from(contents);
  return Buffer.concat([encodeTreeRun({ offset, bytes: bytes.length }), bytes]);
}

export function symlink(name: Name, target: Name, more: More = {}): Buffer {
  return entry(TreeType.symlink, name, { target: Buffer.from(target as string), ...more });
}

/** Another name of the file with that number. */
export function link(name: Name, number: number): Buffer {
  return encodeTreeEntry({ type: TreeType.link, name: Buffer.from(name as string), size: number });
}

export function leave(): Buffer {
  return encodeTreeEntry({ type: TreeType.leave });
}

export function end(skipped = 0): Buffer {
  return encodeTreeEntry({ type: TreeType.end, size: skipped });
}

/** A whole tree: a directory with these entries. */
export function tree(...entries: Buffer[]): Buffer {
  return Buffer.concat([directory(''), ...entries, leave(), end()]);
}

/** Names in random trees: few, so that they meet; and most of them in order. */
function randomName(random: Random): Name {
  if (random.below(12) > 0) return random.pick(['a', 'b', 'c', 'd']);
  const odd = ['..', '.', '', '/', '/etc', 'a/b', '../outside', 'a\0b', 'x'.repeat(255)];
  return random.pick([...odd, Buffer.from([0xff])]);
}

function randomMode(random: Random): number {
  return random.pick([0o755, 0o644, 0o777, 0o1777, 0o400, 0, 0o4755, random.below(2 ** 16)]);
}

function randomEntry(random: Random, targets: readonly string[], linked: number): Buffer {
  const name = randomName(random);
  const more = { mode: randomMode(random) };
  switch (random.below(8)) {
    case 0:
    case 1:
      return directory(name, more);
    case 2:
      return file(name, 'x'.repeat(random.below(50)), { ...more, linked: random.below(2) === 1 });
    case 3:
      return Buffer.concat([
        file(name, '', { ...more, size: 100, linked: true }),
        run(random.below(60), 'x'.repeat(random.below(50))),
        random.below(3) > 0 ? run(100, '') : Buffer.alloc(0),
      ]);
    case 4:
    case 5:
      return symlink(name, random.pick(targets));
    case 6:
      return link(name, random.below(linked + 1));
    default:
      return leave();
  }
}

/** A sequence of entries that is a tree now and then. `targets` are what links say. */
export function randomTree(random: Random, targets: readonly string[]): Buffer {
  const parts = [random.below(10) > 0 ? directory('') : file('', 'top')];
  const count = random.below(20);
  for (let i = 0; i < count; i++) parts.push(randomEntry(random, targets, i));
  if (random.below(4) > 0) {
    for (let i = random.below(4); i >= 0; i--) parts.push(leave());
    parts.push(end(random.below(3)));
  }
  return Buffer.concat(parts);
}

/** A tree that is right: what is in it is made deeper by every directory. */
export function validTree(random: Random, targets: readonly string[]): Buffer {
  const parts: Buffer[] = [];
  let linked = 0;
  let depth = 0;
  for (let i = 0; i < 12; i++) {
    const name = `${random.pick(['a', 'b', 'c'])}${i}`;
    const kind = random.below(6);
    if (kind === 0) {
      parts.push(directory(name));
      depth++;
    } else if (kind === 1 && depth > 0) {
      parts.push(leave());
      depth--;
    } else if (kind === 2) {
      parts.push(symlink(name, random.pick(targets)));
    } else if (kind === 3 && linked > 0) {
      parts.push(link(name, random.below(linked)));
    } else {
      parts.push(file(name, 'contents', { linked: true }));
      linked++;
    }
  }
  for (; depth > 0; depth--) parts.push(leave());
  return tree(...parts);
}

/** The same with some bytes changed, cut off, or repeated. */
export function mutated(random: Random, bytes: Buffer): Buffer {
  const changed = Buffer.from(bytes);
  for (let i = random.below(4); i >= 0; i--) {
    // Mostly what an entry begins with.
    const at = random.below(changed.length);
    changed[at] = random.pick([0, 1, 2, 3, 4, 5, 6, 0x2e, 0x2f, 0x7f, 0xff, random.below(256)]);
  }
  const from = random.below(changed.length);
  switch (random.below(4)) {
    case 0:
      return changed.subarray(0, from);
    case 1:
      return Buffer.concat([changed, changed.subarray(from)]);
    default:
      return changed;
  }
}
