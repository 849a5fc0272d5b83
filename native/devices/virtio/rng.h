#pragma once

#include <cstdint>
#include <span>

#include "devices/virtio/device.h"

namespace forklet {

// virtio-rng (virtio 1.2 §5.4): fills device-writable buffers from getrandom(2).
//
// Owner: the VM. Thread: see VirtioDevice.
class RngDevice final : public VirtioDevice {
 public:
  uint32_t type() const override;
  std::span<const uint16_t> queue_sizes() const override;
  void ReadConfig(uint64_t offset, std::span<uint8_t> data) const override;
  Turn ProcessQueue(uint16_t index) override;
  void HandleReset() override {}

 private:
  // Returns the bytes written, at most kMaxRequestBytes.
  uint32_t Fill();

  DescriptorChain chain_;
};

}  // namespace forklet
