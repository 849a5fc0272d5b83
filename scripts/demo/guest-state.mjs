// What a fork has from before the freeze: a file, and a shell that counts what it is told.

import { expectSame } from './steps.mjs';

const FILE = '/tmp/before';
const COUNTER = 'n=0; while read -r line; do n=$((n + 1)); echo "$n $line"; done';

/** Makes both, and returns the id by which forks reach the shell. */
export async function makeState(vm) {
  await vm.fs.writeFile(FILE, 'written before the freeze');
  const counter = vm.exec(COUNTER);
  const { id } = await counter.started;
  return { id, answer: await tell(counter, 'parent', 1) };
}

async function tell(counter, line, count) {
  counter.stdin.write(`${line}\n`);
  const { value } = await counter.lines().next();
  expectSame("the shell's answer", value, `${count} ${line}`);
  return value;
}

/** Looks for both in a fork, and lets the shell go on there. */
export async function checkState(fork, id, line) {
  const text = await fork.fs.readFile(FILE, 'utf8');
  expectSame(FILE, text, 'written before the freeze');
  return { file: `${FILE}: '${text}'`, answer: await tell(fork.attach(id), line, 2) };
}
