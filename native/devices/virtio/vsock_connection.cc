#include "devices/virtio/vsock_connection.h"

#include <algorithm>

namespace forklet {

void VsockConnection::UpdatePeerCredit(uint32_t buffer_bytes, uint32_t forwarded) {
  state_.peer_buffer_bytes = buffer_bytes;
  state_.peer_forwarded = forwarded;
}

uint32_t VsockConnection::peer_free() const {
  // A guest that claims to have forwarded more than was sent makes this huge,
  // and so gets nothing.
  const uint32_t in_flight = state_.sent - state_.peer_forwarded;
  return in_flight < state_.peer_buffer_bytes ? state_.peer_buffer_bytes - in_flight : 0;
}

void VsockConnection::Consume(size_t bytes) {
  state_.consumed += static_cast<uint32_t>(std::min<size_t>(bytes, held()));
  // The guest believes in less than half of the buffer, and a quarter of it (at
  // least) would be news: anything less is not worth a packet of its own. Once
  // all is consumed the second follows from the first, so no guest starves.
  const uint32_t believed_used = state_.received - state_.reported_consumed;
  const uint32_t news = state_.consumed - state_.reported_consumed;
  if (believed_used > buffer_bytes_ / 2 && news >= buffer_bytes_ / 4) {
    state_.send_credit_update = true;
  }
}

void VsockConnection::Queue(std::vector<uint8_t> data) {
  if (data.empty()) return;
  queued_bytes_ += data.size();
  queue_.push_back(std::move(data));
}

std::vector<uint8_t> VsockConnection::CopyQueued() const {
  std::vector<uint8_t> bytes;
  bytes.reserve(queued_bytes_);
  size_t skip = front_offset_;
  for (const std::vector<uint8_t>& piece : queue_) {
    bytes.insert(bytes.end(), piece.begin() + static_cast<ptrdiff_t>(skip), piece.end());
    skip = 0;
  }
  return bytes;
}

size_t VsockConnection::DropQueued() {
  const size_t dropped = queued_bytes_;
  queue_.clear();
  front_offset_ = 0;
  queued_bytes_ = 0;
  return dropped;
}

size_t VsockConnection::sendable_bytes() const {
  if (state_.phase != VsockConnectionState::Phase::kOpen) return 0;
  return std::min<size_t>(queued_bytes_, peer_free());
}

std::span<const uint8_t> VsockConnection::front() const {
  if (queue_.empty()) return {};
  return std::span(queue_.front()).subspan(front_offset_);
}

void VsockConnection::PopFront(size_t bytes) {
  front_offset_ += bytes;
  queued_bytes_ -= bytes;
  if (front_offset_ < queue_.front().size()) return;
  queue_.pop_front();
  front_offset_ = 0;
}

uint16_t VsockConnection::TakeOp() {
  // Every packet carries our credit.
  state_.send_credit_update = false;
  state_.reported_consumed = state_.consumed;
  if (state_.send_request) {
    state_.send_request = false;
    return VIRTIO_VSOCK_OP_REQUEST;
  }
  if (state_.send_response) {
    state_.send_response = false;
    return VIRTIO_VSOCK_OP_RESPONSE;
  }
  if (sendable_bytes() > 0) return VIRTIO_VSOCK_OP_RW;
  if (can_shutdown()) {
    state_.send_shutdown = false;
    return VIRTIO_VSOCK_OP_SHUTDOWN;
  }
  return VIRTIO_VSOCK_OP_CREDIT_UPDATE;
}

}  // namespace forklet
