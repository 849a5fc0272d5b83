import { readFileSync } from 'node:fs';

import { describe, expect, test } from 'vitest';

import * as protocol from '../../lib/internal/protocol/protocol.js';

const {
  encodeCancel,
  encodeConnect,
  encodeData,
  encodeEnd,
  encodeExec,
  encodeFrame,
  encodePark,
  encodeReadFile,
  encodeRecord,
  encodeRenew,
  encodeWaitPort,
  encodeWindow,
  FrameDecoder,
  FrameType,
  ParkMode,
  parseGuestMessage,
  ProtocolError,
  Stream,
  Tag,
} = protocol;

const HEADER = readFileSync(new URL('../../guest/agent/protocol.h', import.meta.url), 'utf8');

/** `FK_NAME = 1` and `FK_NAME = 1u << 2` of an enum in the header. */
function cEnum(name: string): Map<string, number> {
  const body = new RegExp(`enum ${name} \\{([^}]*)\\}`).exec(HEADER)?.[1] ?? '';
  const values = [...body.matchAll(/^\s*(FK_\w+) = (\d+)(?:u << (\d+))?,/gm)];
  return new Map(
    values.map(([, key = '', value, shift = '0']) => [key, Number(value) << Number(shift)]),
  );
}

/** `outputLimit` to `OUTPUT_LIMIT`. */
function upperCase(name: string): string {
  return name.replace(/[A-Z]/g, '_$&').toUpperCase();
}

function withPrefix(prefix: string, values: Record<string, number>): Map<string, number> {
  return new Map(Object.entries(values).map(([key, value]) => [prefix + upperCase(key), value]));
}

function frame(fields: Parameters<typeof encodeFrame>[0]) {
  const [decoded] = new FrameDecoder().push(encodeFrame(fields));
  if (!decoded) throw new Error('no frame');
  return decoded;
}

function parse(fields: Parameters<typeof encodeFrame>[0]) {
  return parseGuestMessage(frame(fields));
}

function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

describe('numbers', () => {
  test.each([
    ['fk_type', 'FK_', protocol.FrameType],
    ['fk_tag', 'FK_TAG_', protocol.Tag],
    ['fk_stream', 'FK_', protocol.Stream],
    ['fk_exec_flag', 'FK_EXEC_', protocol.ExecFlag],
    ['fk_exec_stage', 'FK_STAGE_', protocol.ExecStage],
    ['fk_file_op', 'FK_FILE_', protocol.FileOp],
    ['fk_file_flag', 'FK_FILE_', protocol.FileFlag],
    ['fk_watch_event', 'FK_WATCH_', protocol.WatchEvent],
    ['fk_cancel', 'FK_CANCEL_', protocol.Cancel],
    ['fk_tree_type', 'FK_TREE_', protocol.TreeType],
    ['fk_tree_flag', 'FK_TREE_', protocol.TreeFlag],
    ['fk_park', 'FK_PARK_', protocol.ParkMode],
    ['fk_renew_stage', 'FK_RENEW_', protocol.RenewStage],
  ] as const)('enum %s is the same in the header', (name, prefix, values) => {
    expect(withPrefix(prefix, values)).toEqual(cEnum(name));
  });

  test.each([
    ['FK_PROTOCOL_VERSION', protocol.PROTOCOL_VERSION],
    ['FK_CONTROL_PORT', protocol.CONTROL_PORT],
    ['FK_MAX_PAYLOAD', protocol.MAX_PAYLOAD_BYTES],
    ['FK_MAX_EXEC_PAYLOAD', protocol.MAX_EXEC_PAYLOAD_BYTES],
    ['FK_INPUT_WINDOW', protocol.INPUT_WINDOW_BYTES],
    ['FK_FILE_WINDOW', protocol.FILE_WINDOW_BYTES],
    ['FK_MAX_PATH', protocol.MAX_PATH_BYTES],
    ['FK_MAX_NAME', protocol.MAX_NAME_BYTES],
    ['FK_MAX_OPERATIONS', protocol.MAX_OPERATIONS],
    ['FK_LONGEST_LOOK_MS', protocol.LONGEST_LOOK_MS],
    ['FK_HOOK_TIMEOUT_MS', protocol.HOOK_TIMEOUT_MS],
  ])('%s is the same in the header', (name, value) => {
    expect(new RegExp(`#define ${name} (\\d+)u`).exec(HEADER)?.[1]).toBe(String(value));
  });
});

describe('FrameDecoder', () => {
  const stream = Buffer.concat([
    encodeFrame({ type: 32, value: 1 }),
    encodeData(7, 0, Buffer.from('some bytes')),
    encodeEnd(7, 10),
  ]);

  test('finds the same frames wherever the bytes are split', () => {
    const whole = new FrameDecoder().push(stream);

    for (let first = 0; first <= stream.length; first++) {
      for (let second = first; second <= stream.length; second += 7) {
        const decoder = new FrameDecoder();
        const parts = [
          stream.subarray(0, first),
          stream.subarray(first, second),
          stream.subarray(second),
        ];
        expect(parts.flatMap((part) => decoder.push(part))).toEqual(whole);
        expect(decoder.pendingBytes).toBe(0);
      }
    }
  });

  test('finds the same frames byte by byte', () => {
    const decoder = new FrameDecoder();

    const frames = [...stream].flatMap((byte) => decoder.push(Buffer.from([byte])));

    expect(frames).toEqual(new FrameDecoder().push(stream));
  });

  test('holds no more than one frame', () => {
    const decoder = new FrameDecoder();

    decoder.push(encodeFrame({ type: 16, payload: [Buffer.alloc(65536)] }).subarray(0, 65000));

    expect(decoder.pendingBytes).toBe(65000);
  });

  test('refuses a frame above the limit, and everything after it', () => {
    const decoder = new FrameDecoder();
    const header = Buffer.alloc(24);
    header.writeUInt32LE(65537, 0);

    expect(() => decoder.push(header)).toThrow(ProtocolError);
    expect(() => decoder.push(encodeEnd(1, 0))).toThrow(ProtocolError);
  });

  test('refuses an offset that is not a safe integer', () => {
    const header = encodeEnd(1, 0);
    header.writeBigUInt64LE(2n ** 53n, 16);

    expect(() => new FrameDecoder().push(header)).toThrow(ProtocolError);
  });
});

describe('parseGuestMessage()', () => {
  test('reads hello', () => {
    const payload = [encodeRecord(Tag.kernel, '6.12.1'), encodeRecord(Tag.agent, '0.1\n')];

    expect(parse({ type: FrameType.hello, value: 1, payload })).toEqual({
      type: 'hello',
      version: 1,
      kernel: '6.12.1',
      agent: '0.1\ufffd',
    });
  });

  test('reads a reply with its records', () => {
    const payload = [encodeRecord(Tag.exitCode, uint32(3))];

    expect(parse({ type: FrameType.reply, id: 5, value: 0, payload })).toEqual({
      type: 'reply',
      id: 5,
      errno: 0,
      stage: null,
      exitCode: 3,
      signal: null,
      stat: null,
      path: null,
    });
  });

  test('reads a renewal, whose generation takes all 64 bits', () => {
    const bytes = encodeFrame({ type: FrameType.renewed });
    bytes.writeBigUInt64LE(0xfedc_ba98_7654_3210n, 16);

    const [decoded] = new FrameDecoder().push(bytes);

    expect(decoded && parseGuestMessage(decoded)).toEqual({
      type: 'renewed',
      generation: 0xfedc_ba98_7654_3210n,
      errno: 0,
      stage: null,
      hook: null,
      exitCode: null,
      signal: null,
    });
  });

  test('reads which hook of a renewal failed, and how', () => {
    const payload = [
      encodeRecord(Tag.stage, uint32(protocol.RenewStage.hook)),
      encodeRecord(Tag.hook, '10-keys\n'),
      encodeRecord(Tag.exitCode, uint32(3)),
    ];

    expect(parse({ type: FrameType.renewed, value: 5, payload })).toMatchObject({
      errno: 5,
      stage: protocol.RenewStage.hook,
      hook: '10-keys\ufffd',
      exitCode: 3,
    });
  });

  test('reads that a connection is there', () => {
    expect(parse({ type: FrameType.connected, id: 5 })).toEqual({ type: 'connected', id: 5 });
  });

  test('reads data as bytes at an offset of a stream', () => {
    const fields = { type: FrameType.data, id: 5, stream: Stream.error, offset: 2 ** 40 };

    expect(parse({ ...fields, payload: [Buffer.from('x')] })).toEqual({
      type: 'data',
      id: 5,
      stream: Stream.error,
      offset: 2 ** 40,
      bytes: Buffer.from('x'),
    });
  });

  test.each([
    ['an unknown type', { type: 99 }],
    ['a type that only the host sends', { type: FrameType.exec }],
    ['hello with an id', { type: FrameType.hello, value: 1, id: 1 }],
    ['hello with another record', { type: FrameType.hello, payload: [encodeRecord(Tag.arg, 'x')] }],
    ['a pid of 0', { type: FrameType.started, id: 1, value: 0 }],
    ['a connection with a value', { type: FrameType.connected, id: 1, value: 1 }],
    [
      'a connection with records',
      { type: FrameType.connected, id: 1, payload: [encodeRecord(Tag.port, uint32(80))] },
    ],
    ['data for the input stream', { type: FrameType.data, payload: [Buffer.from('x')] }],
    ['data without data', { type: FrameType.data, stream: 1 }],
    [
      'data that ends beyond the safe integers',
      {
        type: FrameType.data,
        stream: 1,
        offset: Number.MAX_SAFE_INTEGER,
        payload: [Buffer.from('x')],
      },
    ],
    ['an end with data', { type: FrameType.end, stream: 1, payload: [Buffer.from('x')] }],
    ['a window for an output stream', { type: FrameType.window, stream: 1 }],
    ['an errno out of range', { type: FrameType.reply, value: 5000 }],
    [
      'an exit code out of range',
      { type: FrameType.reply, payload: [encodeRecord(Tag.exitCode, uint32(256))] },
    ],
    [
      'a signal out of range',
      { type: FrameType.reply, payload: [encodeRecord(Tag.signal, uint32(0))] },
    ],
    [
      'an exit code of another size',
      { type: FrameType.reply, payload: [encodeRecord(Tag.exitCode, Buffer.alloc(8))] },
    ],
    [
      'a stat of another size',
      { type: FrameType.reply, payload: [encodeRecord(Tag.stat, Buffer.alloc(95))] },
    ],
    [
      'a path without bytes',
      { type: FrameType.reply, payload: [encodeRecord(Tag.path, Buffer.alloc(0))] },
    ],
    [
      'a path with a null byte',
      { type: FrameType.reply, payload: [encodeRecord(Tag.path, Buffer.from('a\0b'))] },
    ],
    [
      'a path that is too long',
      { type: FrameType.reply, payload: [encodeRecord(Tag.path, Buffer.alloc(4096, 'x'))] },
    ],
    ['a renewal of an operation', { type: FrameType.renewed, id: 1 }],
    ['a renewal that failed nowhere', { type: FrameType.renewed, value: 5 }],
    [
      'a renewal that failed with success',
      { type: FrameType.renewed, payload: [encodeRecord(Tag.stage, uint32(1))] },
    ],
    [
      'a renewal of an unknown stage',
      { type: FrameType.renewed, value: 5, payload: [encodeRecord(Tag.stage, uint32(7))] },
    ],
    ['half a record', { type: FrameType.reply, payload: [Buffer.alloc(7)] }],
    [
      'a record beyond its frame',
      { type: FrameType.reply, payload: [Buffer.from('0d000000ff000000', 'hex')] },
    ],
    [
      'a record with reserved bits',
      { type: FrameType.reply, payload: [Buffer.from('0d00010000000000', 'hex')] },
    ],
  ])('refuses %s', (_name, fields) => {
    expect(() => parse(fields)).toThrow(ProtocolError);
  });

  test('makes text of the guest safe to show', () => {
    const payload = [Buffer.from(`\u001b[2J${'x'.repeat(1000)}`)];

    const message = parse({ type: FrameType.fatal, payload });

    expect(message).toMatchObject({ reason: expect.stringMatching(/^\ufffd\[2Jx{252}$/) });
  });

  test('throws nothing but ProtocolError for random bytes', () => {
    // A linear congruential generator, so that a failure can be repeated.
    let state = 12345;
    const random = (below: number) => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      // The low bits of such a generator are poor.
      return Math.floor((state / 2 ** 32) * below);
    };
    const types = [...Object.values(FrameType), 0, 99];
    let parsed = 0;
    for (let round = 0; round < 20_000; round++) {
      const payload = Buffer.from(
        Array.from({ length: random(24) }, () => random(random(2) ? 20 : 256)),
      );
      const fields = {
        type: types[random(types.length)] ?? 0,
        stream: random(4),
        id: random(2),
        value: random(6000),
        offset: random(3),
        payload: [payload],
      };
      try {
        parse(fields);
        parsed++;
      } catch (error) {
        expect(error).toBeInstanceOf(ProtocolError);
      }
    }
    expect(parsed).toBeGreaterThan(0);
  });
});

describe('encoding', () => {
  test('lays a frame out as the header says', () => {
    expect(encodeWindow(0x01020304, Stream.output, 0x1122334455).toString('hex')).toBe(
      '00000000' + '1200' + '0100' + '04030201' + '00000000' + '5544332211000000',
    );
  });

  test('says how to park in the value', () => {
    expect(encodePark(7, ParkMode.flush).toString('hex')).toBe(
      '00000000' + '0700' + '0000' + '07000000' + '01000000' + '0000000000000000',
    );
  });

  test('says how a connection is cancelled in the value', () => {
    expect(encodeCancel(7).readUInt32LE(12)).toBe(0);
    expect(encodeCancel(7, protocol.Cancel.reset).readUInt32LE(12)).toBe(1);
  });

  test('lays requests for ports out as records', () => {
    expect(encodeConnect(7, 8080, 0).subarray(24).toString('hex')).toBe(
      '3200' + '0000' + '04000000' + '901f0000',
    );
    expect(encodeConnect(7, 8080, 5).subarray(36).toString('hex')).toBe(
      '0700' + '0000' + '08000000' + '0500000000000000',
    );
    expect(encodeWaitPort(7, 8080, 20).subarray(36).toString('hex')).toBe(
      '3300' + '0000' + '04000000' + '14000000',
    );
  });

  test('asks for renewal outside of operations', () => {
    expect(encodeRenew().toString('hex')).toBe(`00000000${'0800'}${'00'.repeat(18)}`);
  });

  test('refuses a null byte in an argument, which would cut it short', () => {
    expect(() => encodeExec(1, { args: ['a\0b'] })).toThrow(TypeError);
  });

  test('refuses a null byte in a path', () => {
    expect(() => encodeReadFile(1, '/etc/passwd\0.txt')).toThrow(TypeError);
    expect(() => encodeReadFile(1, Buffer.from('/etc/passwd\0.txt'))).toThrow(TypeError);
  });

  test('takes arguments above the frame limit for exec only', () => {
    expect(encodeExec(1, { args: ['x'.repeat(1_000_000)] }).length).toBeGreaterThan(1_000_000);
    expect(() => encodeExec(1, { args: ['x'.repeat(2_097_153)] })).toThrow(RangeError);
    expect(() => encodeData(1, 0, Buffer.alloc(65537))).toThrow(RangeError);
  });
});
