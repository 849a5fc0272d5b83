import * as fs from 'node:fs';
import { join } from 'node:path';

/** A directory with a target for trees, and what must stay as it is beside it. */
export class Canary {
  readonly root: string;
  readonly target: string;
  readonly outside: string;
  readonly #before: string;

  constructor(root: string) {
    this.root = root;
    this.target = join(root, 'target');
    this.outside = join(root, 'outside');
    fs.mkdirSync(join(this.outside, 'directory'), { recursive: true });
    fs.writeFileSync(join(this.outside, 'file'), 'untouched');
    fs.writeFileSync(join(this.outside, 'directory/a'), 'untouched');
    fs.chmodSync(join(this.outside, 'directory/a'), 0o600);
    fs.symlinkSync('file', join(this.outside, 'link'));
    this.#before = this.#describe();
  }

  /** What links of hostile trees say. */
  get targets(): string[] {
    const { outside } = this;
    return [
      '../outside',
      '../../outside',
      outside,
      `${outside}/file`,
      '../outside/file',
      '..',
      '/',
    ];
  }

  /** What is different from before; empty if nothing is. */
  get harm(): string {
    const now = this.#describe();
    return now === this.#before ? '' : `${this.#before}\n->\n${now}`;
  }

  /** With the times of the last change, which nobody can set. */
  #describe(): string {
    const lines: string[] = [];
    const visit = (path: string): void => {
      const { mode, ino, nlink, size, mtimeNs, ctimeNs } = fs.lstatSync(path, { bigint: true });
      lines.push([path, mode.toString(8), ino, nlink, size, mtimeNs, ctimeNs].join(' '));
      if (fs.lstatSync(path).isDirectory()) {
        for (const name of fs.readdirSync(path).sort()) visit(join(path, name));
      }
    };
    visit(this.outside);
    const beside = fs.readdirSync(this.root).filter((name) => name !== 'target');
    return [...lines, ...beside.sort()].join('\n');
  }

  clear(): void {
    fs.rmSync(this.target, { recursive: true, force: true });
  }
}
