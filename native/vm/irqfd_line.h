#pragma once

#include "base/event_fd.h"
#include "devices/bus_device.h"
#include "kvm/vm_fd.h"

namespace forklet {

// An interrupt line that KVM raises by itself when an eventfd is signalled.
class IrqfdLine final : public InterruptLine {
 public:
  // Wires the line to a pin of the IOAPIC. After the irqchip exists. A second time:
  // to another VM's, while nobody raises it.
  Status Connect(const VmFd& vm, uint32_t gsi) {
    ASSIGN_OR_RETURN(EventFd event, EventFd::Create());
    event_ = std::make_unique<EventFd>(std::move(event));
    return vm.AddIrqfd(*event_, gsi);
  }
  void Raise() override { event_->Signal(); }

 private:
  std::unique_ptr<EventFd> event_;  // Null until Connect()
};

}  // namespace forklet
