import { createHash } from 'node:crypto';
import { parseArgs } from 'node:util';

import type { SnapshotRecipe } from '../snapshot.js';
import { UsageError } from './exit-codes.js';
import { toVmOptions, VM_OPTIONS } from './run-options.js';

/** Longest command, in characters, that is part of a key as it is. */
const MAX_COMMAND_LENGTH = 512;

export interface BuildArguments {
  readonly recipe: Required<Pick<SnapshotRecipe, 'key' | 'options' | 'at'>>;
  readonly command: readonly string[];
  readonly output: string | undefined;
  readonly overwrite: boolean;
}

/** Splits at the first `--`, so that no option of the command is ever taken for one of ours. */
export function parseBuildArguments(args: readonly string[]): BuildArguments {
  const separator = args.indexOf('--');
  const command = separator < 0 ? [] : args.slice(separator + 1);
  if (separator >= 0 && command.length === 0) throw new UsageError("No command behind '--'");
  const { values, positionals } = parse(separator < 0 ? args : args.slice(0, separator));
  const [name, stray] = positionals;
  if (name === undefined || name === '') throw new UsageError('A snapshot needs a key');
  if (stray !== undefined) {
    throw new UsageError(`Unexpected '${stray}'; the command goes behind '--'`);
  }
  const { at, output, overwrite } = values;
  if (at !== 'agent' && at !== 'program') {
    throw new UsageError(`--at takes agent or program; got '${at}'`);
  }
  if (at === 'program' && command.length === 0) {
    throw new UsageError('--at=program needs a command, which starts the program');
  }
  const recipe = { key: toKey(name, command), options: toVmOptions(values), at } as const;
  return { recipe, command, output, overwrite };
}

/** What the command does is part of what the snapshot is. */
function toKey(name: string, command: readonly string[]): string {
  if (command.length === 0) return name;
  const text = JSON.stringify(command);
  const shown =
    text.length <= MAX_COMMAND_LENGTH
      ? text
      : `sha256:${createHash('sha256').update(text).digest('hex')}`;
  return `${name} -- ${shown}`;
}

function parse(args: readonly string[]) {
  try {
    return parseArgs({
      args: [...args],
      allowPositionals: true,
      options: {
        ...VM_OPTIONS,
        at: { type: 'string', default: 'agent' },
        output: { type: 'string' },
        overwrite: { type: 'boolean', default: false },
      },
    });
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}
