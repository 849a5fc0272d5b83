// Runs the benches and prints what they measured beside the reference and the targets.
//
//   npm run bench -- [option...] [name...]     all, or those that are named
//     --quick              few samples, to see that all of it works; its figures mean nothing
//     --list               print the names
//     --json FILE          where the results go, with all samples (out/bench/results.json)
//     --memory-mib N       guest memory (the library's default)
//
// The exit code tells whether everything ran, not whether the targets were met.

import { execFileSync } from 'node:child_process';
import { mkdir, readdir, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

import { MiB } from '../dist/index.js';
import { Fixture } from './support/fixture.mjs';
import { describeHost } from './support/host.mjs';
import { complete, table } from './support/report.mjs';

const here = new URL('.', import.meta.url);
// In the order in which they share what they need.
const ORDER = ['boot', 'exec'];

async function names() {
  const files = await readdir(here);
  const all = files
    .filter((file) => file.endsWith('.mjs') && file !== 'run.mjs')
    .map((file) => file.slice(0, -'.mjs'.length));
  const rank = (name) => (ORDER.includes(name) ? ORDER.indexOf(name) : ORDER.length);
  return all.sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
}

function parse() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      quick: { type: 'boolean', default: false },
      list: { type: 'boolean', default: false },
      json: { type: 'string', default: fileURLToPath(new URL('../out/bench/results.json', here)) },
      'memory-mib': { type: 'string' },
    },
  });
  const memory = values['memory-mib'];
  return { ...values, memoryBytes: memory && Number(memory) * MiB, names: positionals };
}

async function main() {
  const options = parse();
  const known = await names();
  if (options.list) return console.log(known.join('\n'));
  const unknown = options.names.filter((name) => !known.includes(name));
  if (unknown.length > 0) {
    throw new Error(`There is no bench '${unknown[0]}'; there are: ${known.join(', ')}`);
  }
  const chosen = options.names.length === 0 ? known : options.names;

  execFileSync('bash', [fileURLToPath(new URL('build.sh', here))], { stdio: 'inherit' });
  const { quick, memoryBytes } = options;
  const fixture = new Fixture({ memoryBytes, pages: quick ? 256 : 4096 });
  const host = await describeHost();
  const rows = [];
  const failures = [];
  try {
    for (const name of chosen) {
      console.error(`bench: ${name}`);
      const { run } = await import(new URL(`${name}.mjs`, here));
      const report = (row) => rows.push(complete({ bench: name, ...row }));
      try {
        await run({ quick, rounds: quick ? 1 : 10, fixture, report });
      } catch (error) {
        failures.push({ bench: name, error: String(error?.stack ?? error) });
        console.error(error);
      }
    }
  } finally {
    await fixture.close();
  }
  console.log(table(rows));
  const results = { date: new Date().toISOString(), host, quick, memoryBytes, rows, failures };
  await mkdir(dirname(options.json), { recursive: true });
  await writeFile(options.json, `${JSON.stringify(results, null, 2)}\n`);
  console.log(
    `\n${host.cpus} x ${host.cpu}, Linux ${host.kernel}, KVM ${host.kvm.backend}, ` +
      `load ${host.loadAverage.toFixed(1)}; commit ${host.commit.slice(0, 12)}`,
  );
  if (failures.length > 0) {
    throw new Error(`failed: ${failures.map(({ bench }) => bench).join(', ')}`);
  }
}

main().catch((error) => {
  console.error(`bench: ${error.message}`);
  process.exitCode = 1;
});
