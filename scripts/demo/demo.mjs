// What forklet does, in a minute: boots a VM in this process and runs commands in it, freezes it,
// forks copies of it, saves it, and forks it in another process.
//
//   npm run demo      sets everything up first

import { doctor, Vm } from '../../dist/index.js';
import { showCommands } from './commands.mjs';
import { showForks } from './forks.mjs';
import { makeState } from './guest-state.mjs';
import { countRemains, temporaryDirectory } from './remains.mjs';
import { showLoad, showSave } from './saved.mjs';
import { expectSame, milliseconds, seconds, step, timed } from './steps.mjs';
import { showTimes } from './times.mjs';

async function boot(backend) {
  let vm;
  await step(`Boot Linux inside this process (KVM backend: ${backend})`, async () => {
    vm = await Vm.create();
    const { prepareMs, createMs, loadMs, startMs, guestMs, configureMs } = vm.timings;
    const host = prepareMs + createMs + loadMs + startMs;
    return [
      `host: ${host.toFixed(0)} ms (files ${prepareMs.toFixed(0)}, VM ${createMs.toFixed(0)}, ` +
        `load ${loadMs.toFixed(0)}, start ${startMs.toFixed(0)})`,
      `guest: ${seconds(guestMs + configureMs)} until its agent answered`,
    ];
  });
  return vm;
}

async function freeze(vm) {
  let frozen;
  await step('Frozen, with a file and a shell that counts', async () => {
    const { id: counter, answer } = await makeState(vm);
    const { result: snapshot, ms } = await timed(() => vm.snapshot());
    frozen = { snapshot, counter };
    return [`the shell: '${answer}'`, `frozen in ${milliseconds(ms)}; the VM goes on`];
  });
  return frozen;
}

async function showSnapshot(vm) {
  const { snapshot, counter } = await freeze(vm);
  try {
    const directory = temporaryDirectory();
    await showSave(snapshot, directory);
    await showTimes(snapshot, directory);
    await showForks({ vm, snapshot, directory, counter });
    await showLoad(directory, counter);
  } finally {
    await snapshot.close();
  }
}

const report = await doctor();
if (!report.ok) {
  for (const { name, ok, found, remedy } of report.checks) {
    if (!ok) console.error(`${name}: ${found}\n  ${remedy}`);
  }
  process.exit(1);
}

const vm = await boot(report.backend);
let held;
try {
  await showCommands(vm);
  await showSnapshot(vm);
  held = countRemains();
} finally {
  await vm.close();
}
await step('Closed', () => {
  expectSame('what is left of the VMs', countRemains(), 0);
  return [`mappings and descriptors of VMs in this process: ${held} before, 0 now`];
});
