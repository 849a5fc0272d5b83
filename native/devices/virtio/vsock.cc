#include "devices/virtio/vsock.h"

#include <linux/virtio_ids.h>

#include <algorithm>
#include <cstring>
#include <iterator>

namespace forklet {

namespace {

// Rx, tx, event. A driver fills the whole rx queue at boot and keeps it full, at
// some thousand guest instructions a buffer. Our guest kernel's buffers have 32
// KiB, and 16 of them twice the guest's credit window; a stock kernel's have 4,
// and take a few turns for a full window.
constexpr uint16_t kQueueSizes[] = {16, 64, 8};

}  // namespace

VsockDevice::VsockDevice(const VsockConfig& config, VsockHost& host)
    : config_(config), config_space_{.guest_cid = config.guest_cid}, host_(host) {}

uint32_t VsockDevice::type() const { return VIRTIO_ID_VSOCK; }

std::span<const uint16_t> VsockDevice::queue_sizes() const { return kQueueSizes; }

void VsockDevice::ReadConfig(uint64_t offset, std::span<uint8_t> data) const {
  std::fill(data.begin(), data.end(), uint8_t{0});
  if (offset >= sizeof config_space_) return;
  const size_t count = std::min<size_t>(data.size(), sizeof config_space_ - offset);
  std::memcpy(data.data(), reinterpret_cast<const uint8_t*>(&config_space_) + offset, count);
}

Turn VsockDevice::ProcessQueue(uint16_t index) {
  in_turn_ = true;
  wake_pending_ = false;
  Turn turn = Turn::kIdle;
  if (index == kTxQueue) turn = ProcessTx();
  // With a budget of its own: a guest that never stops sending still gets what
  // is for it. All that it sent this turn may be answered in the same one.
  if (ProcessRx() == Turn::kMoreWork) turn = Turn::kMoreWork;
  in_turn_ = false;
  return turn;
}

void VsockDevice::HandleReset() {
  const std::vector<ConnectionId> closed = Ids();
  connections_.clear();
  by_ports_.clear();
  ready_.clear();
  resets_.clear();
  wake_pending_ = false;
  for (ConnectionId id : closed) host_.OnClosed(id);
}

std::optional<ConnectionId> VsockDevice::Connect(uint32_t guest_port) {
  if (connections_.size() >= config_.max_connections) return std::nullopt;
  VsockConnection& connection = Add({AllocateHostPort(guest_port), guest_port});
  connection.state().send_request = true;
  Schedule(connection);
  return connection.state().id;
}

bool VsockDevice::Send(ConnectionId id, std::vector<uint8_t> data) {
  VsockConnection* connection = Find(id);
  if (connection == nullptr || connection->state().shutdown_requested ||
      (connection->state().peer_shutdown & VIRTIO_VSOCK_SHUTDOWN_RCV)) {
    return false;
  }
  connection->Queue(std::move(data));
  Schedule(*connection);
  return true;
}

void VsockDevice::Consume(ConnectionId id, size_t bytes) {
  VsockConnection* connection = Find(id);
  if (connection == nullptr) return;
  connection->Consume(bytes);
  Schedule(*connection);
}

void VsockDevice::Shutdown(ConnectionId id) {
  VsockConnection* connection = Find(id);
  if (connection == nullptr || connection->state().shutdown_requested) return;
  connection->state().shutdown_requested = true;
  connection->state().send_shutdown = true;
  Schedule(*connection);
}

void VsockDevice::Reset(ConnectionId id) {
  VsockConnection* connection = Find(id);
  if (connection == nullptr) return;
  const VsockConnectionState& state = connection->state();
  // A guest that has not heard of the connection need not hear of its end.
  if (!state.send_request) ReplyReset(state.ports, VIRTIO_VSOCK_TYPE_STREAM);
  Remove(*connection);
}

void VsockDevice::ResetOthers(ConnectionId keep) {
  for (ConnectionId id : Ids()) {
    if (id != keep) Reset(id);
  }
}

std::vector<ConnectionId> VsockDevice::Ids() const {
  std::vector<ConnectionId> ids;
  ids.reserve(connections_.size());
  for (const auto& entry : connections_) ids.push_back(entry.first);
  std::sort(ids.begin(), ids.end());
  return ids;
}

VsockConnection* VsockDevice::Find(ConnectionId id) {
  const auto found = connections_.find(id);
  return found == connections_.end() ? nullptr : found->second.get();
}

VsockConnection* VsockDevice::Find(VsockPorts ports) {
  const auto found = by_ports_.find(ports.key());
  return found == by_ports_.end() ? nullptr : Find(found->second);
}

VsockConnection& VsockDevice::Add(VsockPorts ports) {
  const ConnectionId id{next_id_++};
  by_ports_[ports.key()] = id;
  auto& slot = connections_[id];
  slot = std::make_unique<VsockConnection>(id, ports, config_.buffer_bytes);
  return *slot;
}

void VsockDevice::Remove(VsockConnection& connection) {
  const ConnectionId id = connection.state().id;
  if (connection.in_ready_list) std::erase(ready_, id);
  by_ports_.erase(connection.state().ports.key());
  connections_.erase(id);
}

void VsockDevice::Close(VsockConnection& connection) {
  const ConnectionId id = connection.state().id;
  Remove(connection);
  host_.OnClosed(id);
}

uint32_t VsockDevice::AllocateHostPort(uint32_t guest_port) {
  // Ends: there are far fewer connections than ports.
  for (;;) {
    const uint32_t port = next_host_port_++;
    if (next_host_port_ == kVsockAnyPort) next_host_port_ = kVsockFirstHostPort;
    if (Find(VsockPorts{port, guest_port}) == nullptr) return port;
  }
}

bool VsockDevice::Enlist(VsockConnection& connection) {
  if (connection.in_ready_list || !connection.has_packet()) return false;
  connection.in_ready_list = true;
  ready_.push_back(connection.state().id);
  return true;
}

void VsockDevice::Schedule(VsockConnection& connection) {
  // One that is in line already is either about to be served or waits for
  // buffers, of which the driver will notify us.
  if (Enlist(connection)) WakeRx();
}

void VsockDevice::WakeRx() {
  if (in_turn_ || wake_pending_) return;
  wake_pending_ = true;
  notifiers_[kRxQueue].Signal();
}

}  // namespace forklet
