import { describe, expect, test } from 'vitest';

import {
  CONSOLE_BYTES,
  ConsoleBuffer,
  escapeControl,
} from '../../lib/internal/vm/console-buffer.js';

describe('ConsoleBuffer', () => {
  test('is empty at first', () => {
    expect(new ConsoleBuffer().toString()).toBe('');
    expect(new ConsoleBuffer().tail()).toBe('');
  });

  test('keeps everything up to its size', () => {
    const console = new ConsoleBuffer();
    console.append(Buffer.from('one '));
    console.append(Buffer.from('two'));

    expect(console.toString()).toBe('one two');
  });

  test.each([1, 7, 4096, CONSOLE_BYTES - 1, CONSOLE_BYTES, CONSOLE_BYTES + 1, 3 * CONSOLE_BYTES])(
    'keeps the last 64 KiB when chunks have %i bytes',
    (size) => {
      const console = new ConsoleBuffer();
      const all = Buffer.from(
        Array.from({ length: 200_000 }, (_, i) => 0x20 + ((i * 7 + (i >> 8)) % 90)),
      );
      for (let at = 0; at < all.length; at += size) console.append(all.subarray(at, at + size));

      expect(console.toString()).toBe(all.subarray(-CONSOLE_BYTES).toString());
    },
  );

  test('has a short and harmless tail', () => {
    const console = new ConsoleBuffer();
    console.append(Buffer.from(`${'x'.repeat(10_000)}\x1b[31mred\x07\r\nend`));

    expect(console.tail().length).toBeLessThan(2100);
    expect(console.tail()).toMatch(/x\\x1b\[31mred\\x07\nend$/);
  });
});

describe('escapeControl()', () => {
  test.each([
    ['an escape sequence', '\x1b]0;title\x07', '\\x1b]0;title\\x07'],
    ['a lone carriage return', 'safe\rfake', 'safe\\x0dfake'],
    ['C1 controls', '\x9b2J', '\\x9b2J'],
    ['text that changes direction', 'a\u202eb', 'a\\u202eb'],
    ['NUL and DEL', '\0\x7f', '\\x00\\x7f'],
  ])('escapes %s', (_, text, escaped) => {
    expect(escapeControl(text)).toBe(escaped);
  });

  test('leaves text, tabs and line ends alone', () => {
    expect(escapeControl('grüße\t✓\r\nnext\n')).toBe('grüße\t✓\nnext\n');
  });
});
