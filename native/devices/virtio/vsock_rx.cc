// The half of VsockDevice that sends packets to the guest.
#include <algorithm>

#include "devices/virtio/vsock.h"

namespace forklet {

namespace {

// Payload of one packet; Linux takes no more (VIRTIO_VSOCK_MAX_PKT_BUF_SIZE),
// and one buffer must not make a turn endless.
constexpr size_t kMaxPayloadBytes = 64 * 1024;

std::span<const uint8_t> AsBytes(const virtio_vsock_hdr& header) {
  return {reinterpret_cast<const uint8_t*>(&header), sizeof header};
}

}  // namespace

Turn VsockDevice::ProcessRx() {
  TurnBudget budget;
  Virtqueue& queue = queues_[kRxQueue];
  while (HasPacket()) {
    if (budget.exhausted()) return Turn::kMoreWork;
    if (!queue.Pop(chain_)) {
      // Out of buffers: the one case in which to hear of new ones.
      if (!queue.EnableNotify()) return Turn::kIdle;
      // A driver that adds chains and takes them back could keep us here.
      budget.Spend(0);
      continue;
    }
    // With no room behind the header no packet of data ever gets through.
    if (chain_.writable_bytes() <= sizeof(virtio_vsock_hdr)) {
      ++counters_.dropped_buffers;
      queue.PushUsed(chain_.head(), 0);
      budget.Spend(0);
      continue;
    }
    SendPacket(budget);
  }
  queue.DisableNotify();
  return Turn::kIdle;
}

bool VsockDevice::HasPacket() {
  if (!resets_.empty()) return true;
  while (!ready_.empty()) {
    VsockConnection& connection = *Find(ready_.front());
    if (connection.has_packet()) return true;
    connection.in_ready_list = false;
    ready_.pop_front();
  }
  return false;
}

void VsockDevice::SendPacket(TurnBudget& budget) {
  virtio_vsock_hdr header = {};
  header.src_cid = kVsockHostCid;
  header.dst_cid = config_.guest_cid;
  if (!resets_.empty()) {
    const PendingReset reset = resets_.front();
    resets_.pop_front();
    header.src_port = reset.ports.host;
    header.dst_port = reset.ports.guest;
    header.type = reset.type;
    header.op = VIRTIO_VSOCK_OP_RST;
    FinishPacket(header, budget);
    return;
  }

  VsockConnection& connection = *Find(ready_.front());
  const ConnectionId id = connection.state().id;
  header.src_port = connection.state().ports.host;
  header.dst_port = connection.state().ports.guest;
  header.type = VIRTIO_VSOCK_TYPE_STREAM;
  header.op = connection.TakeOp();
  header.buf_alloc = connection.buffer_bytes();
  header.fwd_cnt = connection.state().consumed;
  if (header.op == VIRTIO_VSOCK_OP_SHUTDOWN) header.flags = VIRTIO_VSOCK_SHUTDOWN_SEND;
  if (header.op == VIRTIO_VSOCK_OP_RW) header.len = CopyQueued(connection);
  FinishPacket(header, budget);

  // To the end of the line, so that connections take turns.
  ready_.pop_front();
  connection.in_ready_list = connection.has_packet();
  if (connection.in_ready_list) ready_.push_back(id);
  if (header.len > 0) host_.OnSent(id, header.len);
}

uint32_t VsockDevice::CopyQueued(VsockConnection& connection) {
  const size_t room =
      std::min(chain_.writable_bytes() - sizeof(virtio_vsock_hdr), kMaxPayloadBytes);
  const size_t total = std::min(connection.sendable_bytes(), room);
  for (size_t done = 0; done < total;) {
    std::span<const uint8_t> piece = connection.front();
    piece = piece.first(std::min(piece.size(), total - done));
    chain_.Write(sizeof(virtio_vsock_hdr) + done, piece);
    connection.PopFront(piece.size());
    done += piece.size();
  }
  // Bounds: sendable_bytes is within the guest's 32-bit credit.
  connection.CountSent(static_cast<uint32_t>(total));
  return static_cast<uint32_t>(total);
}

void VsockDevice::FinishPacket(const virtio_vsock_hdr& header, TurnBudget& budget) {
  chain_.Write(0, AsBytes(header));
  const uint32_t written = static_cast<uint32_t>(sizeof header) + header.len;
  queues_[kRxQueue].PushUsed(chain_.head(), written);
  budget.Spend(written);
}

void VsockDevice::ReplyReset(VsockPorts ports, uint16_t type) {
  if (resets_.size() >= kMaxPendingResets) {
    ++counters_.dropped_resets;
    return;
  }
  resets_.push_back({ports, type});
  WakeRx();
}

}  // namespace forklet
