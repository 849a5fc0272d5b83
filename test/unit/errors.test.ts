import { readFileSync } from 'node:fs';
import { inspect } from 'node:util';

import { describe, expect, test } from 'vitest';

import {
  describeErrno,
  ExecError,
  fromNative,
  guestFileError,
  VM_ERROR_CODES,
  VmError,
} from '../../lib/errors.js';

describe('VmError', () => {
  test('has only the fields that it was given', () => {
    const error = new VmError({ code: 'ERR_VM_CLOSED', message: 'gone' });

    expect(error).toBeInstanceOf(Error);
    expect(Object.keys(error)).toEqual(['code']);
    expect(error.name).toBe('VmError');
    expect(inspect(error)).toMatch(/^VmError: gone/);
  });

  test('is the base of ExecError', () => {
    const error = new ExecError({
      code: 'ERR_VM_TIMEOUT',
      message: 'late',
      command: 'x',
      stdout: 'so far',
      stderr: '',
      exitCode: null,
      signal: 'SIGKILL',
      durationMs: 5,
    });

    expect(error).toBeInstanceOf(VmError);
    expect(error).toMatchObject({ name: 'ExecError', code: 'ERR_VM_TIMEOUT', stdout: 'so far' });
  });
});

describe('fromNative()', () => {
  test('names call and negative errno', () => {
    const error = fromNative({
      code: 'ERR_VM_KVM_UNAVAILABLE',
      message: 'open /dev/kvm: Permission denied',
      errno: 13,
      syscall: 'open',
    });

    expect(error).toMatchObject({ code: 'ERR_VM_KVM_UNAVAILABLE', errno: -13, syscall: 'open' });
  });

  test('turns a code that it does not know into ERR_VM_INTERNAL', () => {
    const error = fromNative({ code: 'ERR_NEW', message: 'what', errno: 0, syscall: '' });

    expect(error).toMatchObject({ code: 'ERR_VM_INTERNAL', message: 'ERR_NEW: what' });
    expect(error.errno).toBeUndefined();
  });
});

describe('guest errnos', () => {
  test('have Node’s names', () => {
    expect(describeErrno(2)).toEqual({ code: 'ENOENT', text: 'no such file or directory' });
    expect(guestFileError(13, 'open', '/x').message).toBe("EACCES: permission denied, open '/x'");
  });

  test('that nobody knows have a name as well', () => {
    expect(describeErrno(4095)).toEqual({ code: 'UNKNOWN_4095', text: 'unknown error 4095' });
  });
});

test('every code has a section in docs/troubleshooting.md', () => {
  const text = readFileSync(new URL('../../docs/troubleshooting.md', import.meta.url), 'utf8');
  const sections = [...text.matchAll(/^## `(ERR_VM_\w+)`$/gm)].map(([, code]) => code);

  expect(sections.sort()).toEqual([...VM_ERROR_CODES].sort());
});
