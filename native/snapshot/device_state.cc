#include "snapshot/device_state.h"

namespace forklet {

namespace {

// Least bytes that an element of a list takes, so that a count that the rest
// cannot hold is refused before anything is allocated for it.
constexpr size_t kQueueBytes = 2 + 1 + 3 * 8 + 3 * 2;
constexpr size_t kConnectionBytes = 8 + 2 * 4 + 1 + 5 + 7 * 4 + 8;
constexpr size_t kIdBytes = 8;
constexpr size_t kResetBytes = 2 * 4 + 2;

// No device has nearly as many queues; the transport compares the exact number.
constexpr size_t kMaxQueues = 64;
// VsockDevice compares with its own bound.
constexpr size_t kMaxConnections = 1u << 16;

// The same for writing and reading: calls `visit` with every field of fixed size
// in the order of the format.
template <class State, class Visit>
void VisitConnection(State& state, Visit visit) {
  visit(state.ports.host);
  visit(state.ports.guest);
  visit(state.send_request);
  visit(state.send_response);
  visit(state.send_credit_update);
  visit(state.send_shutdown);
  visit(state.shutdown_requested);
  visit(state.peer_shutdown);
  visit(state.sent);
  visit(state.peer_buffer_bytes);
  visit(state.peer_forwarded);
  visit(state.received);
  visit(state.consumed);
  visit(state.reported_consumed);
}

template <class State, class Visit>
void VisitSerial(State& state, Visit visit) {
  visit(state.ier);
  visit(state.fcr);
  visit(state.lcr);
  visit(state.mcr);
  visit(state.scr);
  visit(state.dll);
  visit(state.dlm);
  visit(state.thre_pending);
  visit(state.line);
}

template <class State, class Visit>
void VisitQueue(State& state, Visit visit) {
  visit(state.size);
  visit(state.ready);
  visit(state.descriptors.value);
  visit(state.available.value);
  visit(state.used.value);
  visit(state.next_available);
  visit(state.next_used);
  visit(state.signalled_used);
}

template <class State, class Visit>
void VisitTransport(State& state, Visit visit) {
  visit(state.status);
  visit(state.driver_features);
  visit(state.device_features_select);
  visit(state.driver_features_select);
  visit(state.queue_select);
  visit(state.interrupt_status);
  visit(state.reset_pending);
}

// A visitor that writes, and one that reads and remembers a failure.
auto Writing(StateWriter& out) {
  return [&out](auto value) { out.Write(value); };
}
auto Reading(StateReader& in, bool& ok) {
  return [&in, &ok](auto& value) { ok = ok && in.Read(value); };
}

}  // namespace

void WriteState(StateWriter& out, const Serial::State& state) {
  VisitSerial(state, Writing(out));
  out.WriteBytes(std::vector<uint8_t>(state.input.begin(), state.input.end()));
}

bool ReadState(StateReader& in, Serial::State& state) {
  bool ok = true;
  VisitSerial(state, Reading(in, ok));
  std::vector<uint8_t> input;
  if (!ok || !in.ReadBytes(input, Serial::kMaxInputBytes)) return false;
  state.input.assign(input.begin(), input.end());
  return true;
}

void WriteState(StateWriter& out, const QueueState& state) { VisitQueue(state, Writing(out)); }

bool ReadState(StateReader& in, QueueState& state) {
  bool ok = true;
  VisitQueue(state, Reading(in, ok));
  return ok;
}

void WriteState(StateWriter& out, const VirtioMmio::State& state) {
  VisitTransport(state, Writing(out));
  out.WriteCount(state.queues.size());
  for (const QueueState& queue : state.queues) WriteState(out, queue);
}

bool ReadState(StateReader& in, VirtioMmio::State& state) {
  bool ok = true;
  VisitTransport(state, Reading(in, ok));
  size_t count = 0;
  if (!ok || !in.ReadCount(count, kQueueBytes, kMaxQueues)) return false;
  state.queues.assign(count, QueueState());
  for (QueueState& queue : state.queues) {
    if (!ReadState(in, queue)) return false;
  }
  return true;
}

void WriteState(StateWriter& out, const VsockConnectionState& state) {
  out.Write(static_cast<uint64_t>(state.id));
  out.Write(static_cast<uint8_t>(state.phase));
  VisitConnection(state, Writing(out));
}

bool ReadState(StateReader& in, VsockConnectionState& state) {
  uint64_t id = 0;
  uint8_t phase = 0;
  bool ok = in.Read(id) && in.Read(phase);
  // Before it becomes an enumerator, which no other value may be.
  if (phase > static_cast<uint8_t>(VsockConnectionState::Phase::kOpen)) return false;
  state.id = ConnectionId{id};
  state.phase = VsockConnectionState::Phase{phase};
  VisitConnection(state, Reading(in, ok));
  return ok;
}

void WriteState(StateWriter& out, const VsockDevice::State& state) {
  out.Write(state.next_id);
  out.Write(state.next_host_port);
  out.WriteCount(state.connections.size());
  for (const VsockDevice::State::Connection& connection : state.connections) {
    WriteState(out, connection.state);
    out.WriteBytes(connection.queued);
  }
  out.WriteCount(state.ready.size());
  for (ConnectionId id : state.ready) out.Write(static_cast<uint64_t>(id));
  out.WriteCount(state.resets.size());
  for (const VsockDevice::PendingReset& reset : state.resets) {
    out.Write(reset.ports.host);
    out.Write(reset.ports.guest);
    out.Write(reset.type);
  }
}

bool ReadState(StateReader& in, VsockDevice::State& state) {
  size_t count = 0;
  if (!in.Read(state.next_id) || !in.Read(state.next_host_port) ||
      !in.ReadCount(count, kConnectionBytes, kMaxConnections)) {
    return false;
  }
  state.connections.assign(count, VsockDevice::State::Connection());
  for (VsockDevice::State::Connection& connection : state.connections) {
    if (!ReadState(in, connection.state) ||
        !in.ReadBytes(connection.queued, VsockDevice::kMaxSavedBytes)) {
      return false;
    }
  }
  if (!in.ReadCount(count, kIdBytes, kMaxConnections)) return false;
  state.ready.assign(count, ConnectionId{});
  for (ConnectionId& id : state.ready) {
    uint64_t value = 0;
    if (!in.Read(value)) return false;
    id = ConnectionId{value};
  }
  if (!in.ReadCount(count, kResetBytes, VsockDevice::kMaxPendingResets)) return false;
  state.resets.assign(count, VsockDevice::PendingReset());
  for (VsockDevice::PendingReset& reset : state.resets) {
    if (!in.Read(reset.ports.host) || !in.Read(reset.ports.guest) || !in.Read(reset.type)) {
      return false;
    }
  }
  return true;
}

void WriteState(StateWriter& out, const DevicesState& state) {
  WriteState(out, state.serial);
  WriteState(out, state.vsock_transport);
  WriteState(out, state.rng_transport);
  WriteState(out, state.vsock);
}

bool ReadState(StateReader& in, DevicesState& state) {
  return ReadState(in, state.serial) && ReadState(in, state.vsock_transport) &&
         ReadState(in, state.rng_transport) && ReadState(in, state.vsock);
}

}  // namespace forklet
