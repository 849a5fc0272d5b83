#pragma once

#include <string>

#include "vm/messages.h"

namespace forklet {

// Looks at the host's KVM as a boot would, and says for each step what was
// found, what is needed, and what to do about it. Never fails.
ProbeReport ProbeKvm(const std::string& kvm_path);

}  // namespace forklet
