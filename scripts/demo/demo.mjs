// What forklet does, in one minute: boots a VM in this process and runs commands in it.
//
//   npm run demo      sets everything up first

import { doctor, Vm } from '../../dist/index.js';
import { showCommands } from './commands.mjs';
import { seconds, step } from './steps.mjs';

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

const report = await doctor();
if (!report.ok) {
  for (const { name, ok, found, remedy } of report.checks) {
    if (!ok) console.error(`${name}: ${found}\n  ${remedy}`);
  }
  process.exit(1);
}

const vm = await boot(report.backend);
try {
  await showCommands(vm);
} finally {
  await step('Closed', async () => {
    await vm.close();
    return ['threads, memory and descriptors are released'];
  });
}
