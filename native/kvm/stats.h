#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "base/result.h"
#include "base/unique_fd.h"

namespace forklet {

// Calls `visit` with each single-valued statistic of one KVM statistics descriptor
// (KVM API, KVM_GET_STATS_FD). Histograms are left out.
Status VisitStats(const UniqueFd& stats,
                  const std::function<void(std::string_view name, uint64_t value)>& visit);

// Adds them to `totals` by name.
Status AddStats(const UniqueFd& stats, std::map<std::string, uint64_t>& totals);

}  // namespace forklet
