import { describe, expect, test } from 'vitest';

import { Dialogue } from '../helpers/dialogue.js';
import { hasKvm } from '../helpers/has-kvm.js';
import { sharedVm } from '../helpers/shared-vm.js';

// Interactive programs in a real guest. Where its kernel is emulated each of them takes a while to
// start, so that one shell serves several tests, as it would serve a person.

describe.runIf(hasKvm)('a terminal in a guest', () => {
  const shared = sharedVm({ env: { PS1: 'ready> ' } });

  test('has a shell with job control', async () => {
    const shell = shared.vm.exec(['sh'], { pty: { columns: 90, rows: 30 } });
    const terminal = new Dialogue(shell);
    await terminal.shows('ready> ');

    // Lines, one after the other.
    for (const word of ['one', 'two', 'three']) {
      terminal.type(`echo "<$(echo ${word})>"\n`);
      await terminal.shows(`<${word}>`);
    }

    // ^C ends what is in the foreground, and not the shell.
    terminal.type(`sh -c 'echo star""ted; exec sleep 1000'\n`);
    await terminal.shows('started');
    terminal.type('\x03');
    await terminal.shows('ready> ');
    terminal.type('echo "status $?"\n');
    await terminal.shows('status 130');

    // ^Z stops it, and fg goes on with it.
    terminal.type(`sh -c 'echo star""ted; sleep 1; echo fini""shed'\n`);
    await terminal.shows('started');
    terminal.type('\x1a');
    await terminal.shows(/Stopped/);
    terminal.type('fg\n');
    await terminal.shows('finished');

    shell.resize({ columns: 101, rows: 41 });
    terminal.type('stty size\n');
    await terminal.shows('41 101');

    terminal.type('exit 5\n');
    expect(await shell.exited).toEqual({ exitCode: 5, signal: null });
  });

  test('tells a program by SIGWINCH that it was resized', async () => {
    const script = 'trap "stty size; exit" WINCH; echo ready; while :; do sleep 0.2; done';
    const handle = shared.vm.exec(script, { pty: true });
    await new Dialogue(handle).shows('ready');

    handle.resize({ columns: 132, rows: 50 });

    expect(await handle.exited).toEqual({ exitCode: 0, signal: null });
  });

  test('shows a full-screen editor, which writes what is typed', async () => {
    const { vm } = shared;
    const vi = vm.exec(['vi', '/tmp/text'], { pty: true });
    const terminal = new Dialogue(vi);
    await terminal.shows(/~.*\/tmp\/text/s);
    terminal.type('ihello from vi\x1b');
    await terminal.shows('hello from vi');
    terminal.type(':wq\r');

    expect(await vi.exited).toEqual({ exitCode: 0, signal: null });
    expect(terminal.screen).toContain('\x1b[');
    expect(await vm.fs.readFile('/tmp/text', 'utf8')).toBe('hello from vi\n');
  });

  test('shows a pager, which leaves at q', async () => {
    const less = shared.vm.exec('seq 1000 | less', { pty: { columns: 80, rows: 10 } });
    const terminal = new Dialogue(less);
    await terminal.shows('standard input');
    terminal.type('G');
    await terminal.shows('1000');
    terminal.type('q');

    expect(await less.exited).toEqual({ exitCode: 0, signal: null });
  });

  test('ends with its command, whoever keeps it', async () => {
    const handle = shared.vm.exec('trap "" HUP; sleep 1000 & echo shown', { pty: true });

    expect(await handle).toMatchObject({ exitCode: 0, stdout: 'shown\r\n' });
  });

  test('goes on in a fork, each for itself', async () => {
    const { vm } = shared;
    const shell = vm.exec(['sh'], { pty: true });
    const terminal = new Dialogue(shell);
    await terminal.shows('ready> ');
    const { id } = await shell.started;
    const fork = await vm.fork();
    try {
      const attached = fork.attach(id);
      const there = new Dialogue(attached);
      attached.resize({ columns: 70, rows: 20 });
      there.type('stty size\n');
      await there.shows('20 70');
      terminal.type('stty size; exit\n');
      await terminal.shows('24 80');
      expect(await shell.exited).toEqual({ exitCode: 0, signal: null });
      there.type('exit 3\n');
      expect(await attached.exited).toEqual({ exitCode: 3, signal: null });
    } finally {
      await fork.close();
    }
  });
});
