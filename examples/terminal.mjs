// A shell in a terminal, driven by a program: lines, Ctrl-C, another size, a full-screen editor.
//
//   node examples/terminal.mjs
import { Vm } from 'forklet';

const vm = await Vm.create({ env: { PS1: 'ready> ' } });
try {
  const shell = vm.exec(['sh'], { pty: { columns: 100, rows: 30 } });
  let screen = '';
  let onOutput = () => {};
  shell.stdout.on('data', (chunk) => {
    screen += chunk;
    onOutput();
  });

  /** Types, and waits until the terminal shows what was meant to come of it. */
  async function type(text, expected) {
    screen = '';
    shell.stdin.write(text);
    return await shown(expected);
  }

  async function shown(expected) {
    for (;;) {
      const match = expected.exec(screen);
      if (match !== null) return match;
      await new Promise((resolve) => {
        onOutput = resolve;
      });
    }
  }

  await shown(/ready> /);
  const [, rows, columns] = await type('stty size\n', /(\d+) (\d+)\r\n/);
  console.log(`a terminal of ${columns} columns and ${rows} rows`);

  // The terminal echoes what is typed, so that the answer must not be part of it.
  const [, answer] = await type('echo "<$((6 * 7))>"\n', /<(\d+)>/);
  console.log(`answer: ${answer}`);

  await type(`sh -c 'echo at"" work; exec sleep 1000'\n`, /at work/);
  await type('\x03', /ready> /);
  const [, status] = await type('echo "<$?>"\n', /<(\d+)>/);
  console.log(`interrupted: ${status}`);

  shell.resize({ columns: 60, rows: 20 });
  const [, newRows, newColumns] = await type('stty size\n', /(\d+) (\d+)\r\n/);
  console.log(`resized to ${newColumns} columns and ${newRows} rows`);

  await type('vi /tmp/text\n', /~/);
  await type('iwritten in vi', /written in vi/);
  await type('\x1b', /- .tmp.text \[Modified\]/);
  await type(':wq\r', /ready> /);
  console.log(`the editor wrote: ${(await vm.fs.readFile('/tmp/text', 'utf8')).trim()}`);

  shell.stdin.end('exit 0\n');
  console.log(`the shell exited with ${(await shell).exitCode}`);
} finally {
  await vm.close();
}
