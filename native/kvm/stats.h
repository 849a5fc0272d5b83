#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"

namespace forklet {

// Adds the single-valued statistics of one KVM statistics descriptor (KVM API,
// KVM_GET_STATS_FD) to `totals` by name. Histograms are left out.
Status AddStats(const UniqueFd& stats, std::map<std::string, uint64_t>& totals);

}  // namespace forklet
