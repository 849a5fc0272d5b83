// The half of VsockDevice that takes packets from the guest.
#include "devices/virtio/vsock.h"

namespace forklet {

Turn VsockDevice::ProcessTx() {
  TurnBudget budget;
  Virtqueue& queue = queues_[kTxQueue];
  while (!budget.exhausted()) {
    if (queue.Pop(chain_)) {
      HandlePacket();
      queue.PushUsed(chain_.head(), 0);
      budget.Spend(chain_.readable_bytes());
      continue;
    }
    if (!queue.EnableNotify()) return Turn::kIdle;
    // A driver that adds chains and takes them back could keep us here.
    budget.Spend(0);
  }
  return Turn::kMoreWork;
}

void VsockDevice::HandlePacket() {
  virtio_vsock_hdr header;
  const std::span<uint8_t> out(reinterpret_cast<uint8_t*>(&header), sizeof header);
  if (chain_.Read(0, out) != sizeof header || header.src_cid != config_.guest_cid ||
      header.dst_cid != kVsockHostCid) {
    ++counters_.dropped_packets;
    return;
  }
  const VsockPorts ports{.host = header.dst_port, .guest = header.src_port};
  VsockConnection* connection = header.type == VIRTIO_VSOCK_TYPE_STREAM ? Find(ports) : nullptr;
  if (connection == nullptr) {
    if (header.type == VIRTIO_VSOCK_TYPE_STREAM && header.op == VIRTIO_VSOCK_OP_REQUEST) {
      return HandleRequest(ports, header);
    }
    ++counters_.dropped_packets;
    // Never an answer to an answer: two sides that do so never stop.
    if (header.op != VIRTIO_VSOCK_OP_RST) ReplyReset(ports, header.type);
    return;
  }
  if (header.op == VIRTIO_VSOCK_OP_RST) return Close(*connection);
  const bool length_ok = header.op == VIRTIO_VSOCK_OP_RW
                             ? header.len <= chain_.readable_bytes() - sizeof header
                             : header.len == 0;
  if (!length_ok) return Violation(*connection);

  VsockConnectionState& state = connection->state();
  if (state.phase == VsockConnectionState::Phase::kConnecting) {
    // No answer is due before the question has left.
    if (header.op != VIRTIO_VSOCK_OP_RESPONSE || state.send_request) return Violation(*connection);
    state.phase = VsockConnectionState::Phase::kOpen;
    connection->UpdatePeerCredit(header.buf_alloc, header.fwd_cnt);
    Schedule(*connection);
    host_.OnOpened(state.id, ports.guest);
    return;
  }
  connection->UpdatePeerCredit(header.buf_alloc, header.fwd_cnt);
  Schedule(*connection);
  HandleOpenPacket(*connection, header);
}

void VsockDevice::HandleRequest(VsockPorts ports, const virtio_vsock_hdr& header) {
  if (header.len != 0 || connections_.size() >= config_.max_connections ||
      !host_.OnConnect(ports.host)) {
    return ReplyReset(ports, VIRTIO_VSOCK_TYPE_STREAM);
  }
  VsockConnection& connection = Add(ports);
  connection.state().phase = VsockConnectionState::Phase::kOpen;
  connection.state().send_response = true;
  connection.UpdatePeerCredit(header.buf_alloc, header.fwd_cnt);
  Schedule(connection);
  host_.OnOpened(connection.state().id, ports.host);
}

void VsockDevice::HandleOpenPacket(VsockConnection& connection, const virtio_vsock_hdr& header) {
  switch (header.op) {
    case VIRTIO_VSOCK_OP_RW:
      return HandleData(connection, header.len);
    case VIRTIO_VSOCK_OP_CREDIT_UPDATE:
      return;  // Every packet is one
    case VIRTIO_VSOCK_OP_CREDIT_REQUEST:
      connection.state().send_credit_update = true;
      return Schedule(connection);
    case VIRTIO_VSOCK_OP_SHUTDOWN:
      return HandleShutdown(connection, header.flags);
    default:
      // REQUEST and RESPONSE have their time, and this is not it.
      return Violation(connection);
  }
}

void VsockDevice::HandleData(VsockConnection& connection, uint32_t bytes) {
  if (bytes == 0) return;
  if (bytes > connection.local_free() ||
      (connection.state().peer_shutdown & VIRTIO_VSOCK_SHUTDOWN_SEND)) {
    return Violation(connection);
  }
  std::vector<uint8_t> data(bytes);
  // Bounds: HandlePacket has compared the length with the chain.
  chain_.Read(sizeof(virtio_vsock_hdr), data);
  connection.Receive(bytes);
  host_.OnData(connection.state().id, std::move(data));
}

void VsockDevice::HandleShutdown(VsockConnection& connection, uint32_t flags) {
  VsockConnectionState& state = connection.state();
  const ConnectionId id = state.id;
  const uint32_t before = state.peer_shutdown;
  constexpr uint32_t kBoth = VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND;
  state.peer_shutdown |= flags & kBoth;
  const uint32_t added = state.peer_shutdown & ~before;
  if (state.peer_shutdown == kBoth) {
    // A clean close: the guest waits for this answer (virtio 1.2 §5.10.6.5).
    ReplyReset(state.ports, VIRTIO_VSOCK_TYPE_STREAM);
    return Close(connection);
  }
  if (added & VIRTIO_VSOCK_SHUTDOWN_SEND) return host_.OnEnd(id);
  if (added & VIRTIO_VSOCK_SHUTDOWN_RCV) {
    const size_t dropped = connection.DropQueued();
    Schedule(connection);
    if (dropped > 0) host_.OnSent(id, dropped);
  }
}

void VsockDevice::Violation(VsockConnection& connection) {
  ++counters_.violations;
  ReplyReset(connection.state().ports, VIRTIO_VSOCK_TYPE_STREAM);
  Close(connection);
}

}  // namespace forklet
