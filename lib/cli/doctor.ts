import { parseArgs } from 'node:util';

import { type DoctorReport, doctor } from '../doctor.js';
import { UsageError } from './exit-codes.js';

/** The report as people read it. */
export function formatReport(report: DoctorReport): string {
  const width = Math.max(...report.checks.map(({ name }) => name.length));
  const lines = report.checks.flatMap(({ name, ok, found, needed, remedy }) => {
    const line = `${ok ? 'ok  ' : 'FAIL'}  ${name.padEnd(width)}  ${found}`;
    if (ok) return [line];
    const indent = ' '.repeat(width + 8);
    const more = remedy === '' ? [] : [`${indent}remedy: ${remedy}`];
    return [line, `${indent}needed: ${needed}`, ...more];
  });
  const quirks = report.quirks.length === 0 ? 'none' : report.quirks.join(', ');
  const verdict = report.ok ? 'VMs can run on this host.' : 'VMs cannot run on this host.';
  const { count, boundBy } = report.maxForks;
  const facts = [
    `backend: ${report.backend}`,
    `quirks:  ${quirks}`,
    `forks:   ${count} more, bound by ${boundBy}`,
  ];
  return `${lines.join('\n')}\n\n${facts.join('\n')}\n\n${verdict}\n`;
}

/** `forklet doctor`. */
export async function runDoctor(args: readonly string[]): Promise<number> {
  const { json } = parse(args);
  const report = await doctor();
  process.stdout.write(json ? `${JSON.stringify(report, null, 2)}\n` : formatReport(report));
  return report.ok ? 0 : 1;
}

function parse(args: readonly string[]): { json: boolean } {
  try {
    const { values } = parseArgs({
      args: [...args],
      options: { json: { type: 'boolean', default: false } },
    });
    return { json: values.json };
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}
