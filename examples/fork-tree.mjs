// One machine is prepared once, and forked into many that go different ways from there: each has
// the files, memory and processes of the moment when it was frozen, and writes to its own.
//
//   node examples/fork-tree.mjs
import { Vm } from 'forklet';

const vm = await Vm.create();
try {
  await vm.fs.writeFile('/srv/words', 'pear\napple\nfig\n');
  const snapshot = await vm.snapshot({ label: 'prepared' });

  const commands = ['sort /srv/words', 'sort -r /srv/words', 'wc -l </srv/words'];
  const forks = await snapshot.forkMany(commands.length);
  await Promise.all(
    forks.map(async (fork, i) => {
      const { stdout } = await fork.exec(commands[i], { check: true });
      await fork.fs.writeFile('/srv/words', stdout);
    }),
  );

  // A fork can be forked like any other VM: this one goes on from the first.
  const grandchild = await forks[0].fork();
  await grandchild.fs.writeFile('/srv/words', 'zucchini\n', { flag: 'a' });

  const tree = {
    vm,
    'fork 0': forks[0],
    'fork 0.0': grandchild,
    'fork 1': forks[1],
    'fork 2': forks[2],
  };
  for (const [name, machine] of Object.entries(tree)) {
    const words = await machine.fs.readFile('/srv/words', 'utf8');
    console.log(`${name}: ${words.trim().split('\n').join(' ')}`);
  }

  await Promise.all([grandchild, ...forks].map((fork) => fork.close()));
  await snapshot.close();
} finally {
  await vm.close();
}
