import { AgentConnection } from '../../lib/internal/agent/connection.js';
import {
  encodeFrame,
  type Frame,
  FrameDecoder,
  FrameType,
} from '../../lib/internal/protocol/protocol.js';
import { CountingHold } from './agent-guest.js';

/**
 * A connection to an agent that does what a test wants: it has said hello, and each frame of the
 * host's goes to `receive`. What it says is given to `receive()` of the connection.
 */
export function scriptedAgent(
  receive: (frame: Frame) => void,
  hold: CountingHold = new CountingHold(),
): AgentConnection {
  const decoder = new FrameDecoder();
  const agent: AgentConnection = new AgentConnection(
    {
      send: (data) => {
        agent.sent(data.length);
        for (const frame of decoder.push(Buffer.from(data))) receive(frame);
      },
      consume: () => {},
      disconnect: () => {},
    },
    hold,
  );
  agent.receive(encodeFrame({ type: FrameType.hello, value: 1 }));
  return agent;
}
