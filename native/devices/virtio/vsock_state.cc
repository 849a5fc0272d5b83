// The half of VsockDevice that saves and restores it.
#include <algorithm>
#include <string>
#include <unordered_set>

#include "devices/virtio/vsock.h"

namespace forklet {

namespace {

// Ids reach JavaScript as numbers, which are exact up to here; no VM opens so
// many connections.
constexpr uint64_t kMaxNextId = uint64_t{1} << 52;

constexpr uint32_t kBothShutdown = VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND;

}  // namespace

VsockDevice::State VsockDevice::Save() const {
  State state;
  for (ConnectionId id : Ids()) {
    const VsockConnection& connection = *connections_.at(id);
    state.connections.push_back({connection.state(), connection.CopyQueued()});
  }
  state.ready.assign(ready_.begin(), ready_.end());
  state.resets.assign(resets_.begin(), resets_.end());
  state.next_id = next_id_;
  state.next_host_port = next_host_port_;
  return state;
}

const char* VsockDevice::FindFault(const State::Connection& saved) const {
  const VsockConnectionState& state = saved.state;
  const bool connecting = state.phase == VsockConnectionState::Phase::kConnecting;
  if (!connecting && state.phase != VsockConnectionState::Phase::kOpen) return "unknown phase";
  // Before the guest's answer there is nothing but our question.
  if (connecting && (state.send_response || state.send_credit_update || state.peer_shutdown != 0 ||
                     state.sent != 0 || state.received != 0 || state.consumed != 0 ||
                     state.reported_consumed != 0)) {
    return "traffic on a connection that is not open";
  }
  if (!connecting && state.send_request) return "request on an open connection";
  if (state.send_shutdown && !state.shutdown_requested) return "shutdown that nobody asked for";
  // A connection that is shut down both ways is gone.
  if ((state.peer_shutdown & ~kBothShutdown) != 0 || state.peer_shutdown == kBothShutdown) {
    return "impossible shutdown flags";
  }
  // The counters wrap, so that only their distance says anything.
  if (state.received - state.consumed > config_.buffer_bytes) return "more received than allowed";
  if (saved.queued.size() > kMaxSavedBytes) return "too many bytes to send";
  if (!saved.queued.empty() && (state.peer_shutdown & VIRTIO_VSOCK_SHUTDOWN_RCV)) {
    return "bytes for a guest that does not read";
  }
  return nullptr;
}

const char* VsockDevice::FindFault(const State& state) const {
  if (state.next_id == 0 || state.next_id > kMaxNextId ||
      state.next_host_port < kVsockFirstHostPort || state.next_host_port == kVsockAnyPort) {
    return "impossible next id or port";
  }
  if (state.connections.size() > config_.max_connections) return "too many connections";
  if (state.resets.size() > kMaxPendingResets) return "too many resets";

  std::unordered_set<uint64_t> ids;
  std::unordered_set<uint64_t> ports;
  uint64_t last_id = 0;
  size_t queued_bytes = 0;
  for (const State::Connection& saved : state.connections) {
    const auto id = static_cast<uint64_t>(saved.state.id);
    if (id <= last_id || id >= state.next_id || !ports.insert(saved.state.ports.key()).second) {
      return "impossible or repeated id or ports of a connection";
    }
    ids.insert(id);
    last_id = id;
    if (const char* fault = FindFault(saved)) return fault;
    queued_bytes += saved.queued.size();
    if (queued_bytes > kMaxSavedBytesInAll) return "too many bytes to send in all";
  }
  // Each once at most: what is taken out of `ids` here is not found again.
  for (ConnectionId id : state.ready) {
    if (ids.erase(static_cast<uint64_t>(id)) == 0) return "nonsense in line for buffers";
  }
  return nullptr;
}

Status VsockDevice::Restore(const State& state) {
  if (const char* fault = FindFault(state)) {
    return Error{ErrorCode::kBadSnapshot, 0, "", "virtio-vsock: " + std::string(fault)};
  }
  connections_.clear();
  by_ports_.clear();
  for (const State::Connection& saved : state.connections) {
    by_ports_[saved.state.ports.key()] = saved.state.id;
    connections_[saved.state.id] =
        std::make_unique<VsockConnection>(saved.state, config_.buffer_bytes, saved.queued);
  }
  ready_.assign(state.ready.begin(), state.ready.end());
  for (ConnectionId id : ready_) Find(id)->in_ready_list = true;
  // One that has something to send and is not in line would wait for ever.
  for (ConnectionId id : Ids()) Enlist(*Find(id));
  resets_.assign(state.resets.begin(), state.resets.end());
  next_id_ = state.next_id;
  next_host_port_ = state.next_host_port;
  in_turn_ = false;
  wake_pending_ = false;
  return Ok();
}

void VsockDevice::ForgetDelivered() {
  for (ConnectionId id : Ids()) {
    VsockConnection& connection = *Find(id);
    connection.Consume(connection.held());
    Enlist(connection);
  }
}

}  // namespace forklet
