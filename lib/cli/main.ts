#!/usr/bin/env node
import { errorCode } from '../errors.js';
import { runDoctor } from './doctor.js';
import { FAILURE, UsageError } from './exit-codes.js';
import { runCommand } from './run.js';
import { runShell } from './shell.js';
import { runSnapshot } from './snapshot.js';
import { usage } from './usage.js';

async function main(argv: readonly string[]): Promise<number> {
  const [command, ...rest] = argv;
  switch (command) {
    case 'doctor':
      return await runDoctor(rest);
    case 'run':
      return await runCommand(rest);
    case 'shell':
      return await runShell(rest);
    case 'snapshot':
      return await runSnapshot(rest);
    case '--help':
    case '-h':
    case 'help':
      process.stdout.write(usage());
      return 0;
    case '--version':
      process.stdout.write(`${await version()}\n`);
      return 0;
    case undefined:
      throw new UsageError('No command');
    default:
      throw new UsageError(`Unknown command '${command}'`);
  }
}

async function version(): Promise<string> {
  const { readFile } = await import('node:fs/promises');
  const manifest = await readFile(new URL('../../package.json', import.meta.url), 'utf8');
  return (JSON.parse(manifest) as { version: string }).version;
}

/** One line, whatever went wrong: people read it, and programs branch on the exit code. */
function report(error: unknown): number {
  if (error instanceof UsageError) {
    process.stderr.write(`forklet: ${error.message}. See: forklet --help\n`);
    return FAILURE;
  }
  const code = errorCode(error);
  const message = error instanceof Error ? error.message : String(error);
  const prefix = code === undefined || message.startsWith(code) ? '' : `${code}: `;
  process.stderr.write(`forklet: ${prefix}${message.replace(/\s*\n\s*/g, ' ')}\n`);
  return FAILURE;
}

// `exitCode` rather than exit(), so that what was written to a pipe still gets out.
main(process.argv.slice(2)).then(
  (code) => {
    process.exitCode = code;
  },
  (error: unknown) => {
    process.exitCode = report(error);
  },
);
