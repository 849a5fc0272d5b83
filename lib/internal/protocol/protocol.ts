/**
 * Codec of the guest agent's protocol: guest/agent/protocol.h in TypeScript, without I/O.
 *
 * The host writes requests with the `encode*` functions and reads with {@link FrameDecoder}
 * and {@link parseGuestMessage}. The guest is hostile: whatever it sends either parses
 * completely or throws {@link ProtocolError}, after which the connection is of no more use.
 */

export * from './decode.js';
export * from './encode.js';
export * from './encode-files.js';
export * from './entries.js';
export * from './numbers.js';
export * from './tree.js';
