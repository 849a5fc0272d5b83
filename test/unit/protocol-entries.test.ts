import { describe, expect, test } from 'vitest';

import {
  DirentDecoder,
  ProtocolError,
  WatchDecoder,
} from '../../lib/internal/protocol/protocol.js';

describe('DirentDecoder', () => {
  const listing = Buffer.concat([
    Buffer.from([1, 0, 8, 0]),
    Buffer.from('a'),
    Buffer.from([5, 0, 4, 0]),
    Buffer.from('b c\u00e9'),
  ]);
  const entries = [
    { name: Buffer.from('a'), type: 8 },
    { name: Buffer.from('b c\u00e9'), type: 4 },
  ];

  test('finds the same entries wherever the bytes are split', () => {
    for (let split = 0; split <= listing.length; split++) {
      const decoder = new DirentDecoder();
      const found = [
        ...decoder.push(listing.subarray(0, split)),
        ...decoder.push(listing.subarray(split)),
      ];
      decoder.end();
      expect(found).toEqual(entries);
    }
  });

  test('throws at the end of a listing that is cut off', () => {
    const decoder = new DirentDecoder();
    decoder.push(listing.subarray(0, 7));

    expect(() => decoder.end()).toThrow(ProtocolError);
  });

  test.each([
    ['a slash', '../../etc/passwd'],
    ['a null byte', 'a\0b'],
    ['the directory itself', '.'],
    ['its parent', '..'],
  ])('refuses a name with %s', (_name, text) => {
    const bytes = Buffer.concat([Buffer.from([text.length, 0, 8, 0]), Buffer.from(text)]);

    expect(() => new DirentDecoder().push(bytes)).toThrow(ProtocolError);
  });

  test.each([
    ['an empty name', '00000800'],
    ['a name of 256 bytes', '00010800'],
    ['reserved bits', '01000801'],
    ['an unknown type', '01001000'],
  ])('refuses %s', (_name, hex) => {
    expect(() => new DirentDecoder().push(Buffer.from(hex, 'hex'))).toThrow(ProtocolError);
  });
});

describe('DirentDecoder of a tree', () => {
  const entry = (text: string) =>
    Buffer.concat([Buffer.from([text.length & 255, text.length >> 8, 4, 0]), Buffer.from(text)]);
  const decode = (text: string) => new DirentDecoder({ recursive: true }).push(entry(text));

  test('takes paths below', () => {
    const long = 'x'.repeat(255);

    expect(decode('a')).toEqual([{ name: Buffer.from('a'), type: 4 }]);
    expect(decode(`a/...b/${long}`)[0]?.name.toString()).toBe(`a/...b/${long}`);
  });

  test.each([
    '/a',
    'a/',
    'a//b',
    '../a',
    'a/../b',
    'a/.',
    'a\0b/c',
    `a/${'x'.repeat(256)}`,
    `${'x/'.repeat(2048)}x`,
    '',
  ])('refuses %j', (text) => {
    expect(() => decode(text)).toThrow(ProtocolError);
  });

  test('throws nothing but ProtocolError for random bytes', () => {
    let state = 99;
    const random = (below: number) => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return Math.floor((state / 2 ** 32) * below);
    };
    let found = 0;
    for (let round = 0; round < 20_000; round++) {
      const bytes = Buffer.from(
        Array.from({ length: random(40) }, () => [0, 1, 2, 4, 0x2e, 0x2f, 0x61][random(7)] ?? 0),
      );
      const decoder = new DirentDecoder({ recursive: random(2) === 1 });
      try {
        for (const { name } of decoder.push(bytes)) {
          expect(name.toString()).not.toMatch(/^\/|\/$|\/\/|(^|\/)\.\.?(\/|$)|\0/);
          found++;
        }
        decoder.end();
      } catch (error) {
        expect(error).toBeInstanceOf(ProtocolError);
      }
    }
    expect(found).toBeGreaterThan(0);
  });
});

describe('WatchDecoder', () => {
  test('reads events with a path, with none, and cut anywhere', () => {
    const bytes = Buffer.concat([
      Buffer.from([0, 0, 4, 0]),
      Buffer.from([3, 0, 1, 0]),
      Buffer.from('a/b'),
      Buffer.from([0, 0, 2, 0]),
      Buffer.from([0, 0, 3, 0]),
    ]);
    for (let split = 0; split <= bytes.length; split++) {
      const decoder = new WatchDecoder();
      const events = [
        ...decoder.push(bytes.subarray(0, split)),
        ...decoder.push(bytes.subarray(split)),
      ];
      expect(events.map(({ type, name }) => `${type} ${name}`)).toEqual([
        '4 ',
        '1 a/b',
        '2 ',
        '3 ',
      ]);
      decoder.end();
    }
  });

  test.each([
    ['type 0', '00000000'],
    ['an unknown type', '00000500'],
    ['reserved bits', '00000101'],
    ['an overflow with a path', '0100030061'],
    ['a readiness with a path', '0100040061'],
    ['an absolute path', '020001002f61'],
    ['a path upwards', '050002002e2e2f61'],
    ['a path of 4096 bytes', '00100100'],
  ])('refuses %s', (_name, hex) => {
    expect(() => {
      const decoder = new WatchDecoder();
      decoder.push(Buffer.from(hex, 'hex'));
      decoder.end();
    }).toThrow(ProtocolError);
  });
});
