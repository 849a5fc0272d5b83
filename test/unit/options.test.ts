import { describe, expect, test } from 'vitest';
import { GiB, MiB, Vm } from '../../lib/index.js';
import { nearest } from '../../lib/internal/base/validate.js';
import { checkVmOptions } from '../../lib/options.js';

describe('Vm.create() options', () => {
  test('have the documented defaults', () => {
    expect(checkVmOptions(undefined)).toEqual({
      memoryBytes: 128 * MiB,
      vcpus: 1,
      kernel: undefined,
      modules: undefined,
      kernelArgs: '',
      root: undefined,
      env: {},
      hostname: 'forklet',
      bootTimeoutMs: 60_000,
      signal: undefined,
    });
  });

  test('take undefined for the default', () => {
    expect(checkVmOptions({ vcpus: undefined as never })).toMatchObject({ vcpus: 1 });
  });

  test.each([
    ['the smallest memory', { memoryBytes: 32 * MiB }],
    ['the largest memory', { memoryBytes: 64 * GiB }],
    ['16 vCPUs', { vcpus: 16 }],
    ['a host name with dots', { hostname: 'a-1.example' }],
    ['removed variables', { env: { PATH: undefined } }],
  ])('take %s', (_, options) => {
    expect(checkVmOptions(options)).toMatchObject(options);
  });

  test.each([
    ['memory below 32 MiB', { memoryBytes: 32 * MiB - 4096 }, RangeError, 'memoryBytes'],
    ['memory above 64 GiB', { memoryBytes: 64 * GiB + 4096 }, RangeError, 'memoryBytes'],
    ['memory between pages', { memoryBytes: 64 * MiB + 1 }, RangeError, 'memoryBytes'],
    ['memory that is no number', { memoryBytes: '64M' }, TypeError, 'memoryBytes'],
    ['memory that is NaN', { memoryBytes: Number.NaN }, RangeError, 'memoryBytes'],
    ['no vCPU', { vcpus: 0 }, RangeError, 'vcpus'],
    ['17 vCPUs', { vcpus: 17 }, RangeError, 'vcpus'],
    ['half a vCPU', { vcpus: 1.5 }, RangeError, 'vcpus'],
    ['a boot timeout of 0', { bootTimeoutMs: 0 }, RangeError, 'bootTimeoutMs'],
    ['an endless boot timeout', { bootTimeoutMs: Infinity }, RangeError, 'bootTimeoutMs'],
    ['an empty kernel path', { kernel: '' }, TypeError, 'kernel'],
    ['a kernel path with NUL', { kernel: 'a\0' }, TypeError, 'kernel'],
    ['an empty path of modules', { modules: '' }, TypeError, 'modules'],
    ['kernel arguments with a line end', { kernelArgs: 'a\nb' }, TypeError, 'kernelArgs'],
    ['too many kernel arguments', { kernelArgs: 'x'.repeat(1025) }, RangeError, 'kernelArgs'],
    ['a root that is no path', { root: 1 }, TypeError, 'root'],
    ['an environment that is a list', { env: ['A=B'] }, TypeError, 'env'],
    ['an empty variable name', { env: { '': 'x' } }, TypeError, 'env'],
    ['an empty host name', { hostname: '' }, TypeError, 'hostname'],
    ['a host name with spaces', { hostname: 'a b' }, TypeError, 'hostname'],
    ['a host name of 65 letters', { hostname: 'a'.repeat(65) }, TypeError, 'hostname'],
    ['a signal that is none', { signal: {} }, TypeError, 'signal'],
    ['an unknown option', { disk: 1 }, TypeError, '"disk"'],
    ['options that are no object', 'fast', TypeError, 'options'],
    ['null for options', null, TypeError, 'options'],
  ])('refuse %s and name the option', async (_, options, type, name) => {
    const failure = await Vm.create(options as never).then(
      () => undefined,
      (error: unknown) => error,
    );

    expect(failure).toBeInstanceOf(type);
    expect((failure as Error).message).toContain(name);
  });

  test.each([
    ['memoryByte', 'memoryBytes'],
    ['memory', 'memoryBytes'],
    ['vCPUs', 'vcpus'],
    ['vpcus', 'vcpus'],
    ['bootTimeout', 'bootTimeoutMs'],
    ['hostName', 'hostname'],
  ])('suggest the option that %s was meant to be', async (given, meant) => {
    await expect(Vm.create({ [given]: 1 })).rejects.toThrow(
      `Unknown option "${given}" of Vm.create(); did you mean "${meant}"?`,
    );
  });

  test('suggest nothing for a name that is like no other', () => {
    expect(nearest('colour', ['memoryBytes', 'vcpus'])).toBeUndefined();
  });
});
