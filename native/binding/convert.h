// Between JavaScript's values and the core's messages. lib/native.ts declares
// the shapes.
#pragma once

#include <napi.h>

#include <optional>
#include <string>

#include "vm/messages.h"

namespace forklet::binding {

Napi::Value ToJs(Napi::Env env, const Event& event);
Napi::Value ForkTimesToJs(Napi::Env env, const ForkTimes& times);

// Nothing, with a pending TypeError, when the value has another shape.
std::optional<VmConfig> ToVmConfig(Napi::Value value);

// Copies a Uint8Array. Nothing, with a pending TypeError, for anything else.
std::optional<Bytes> ToBytes(Napi::Value value);

// One of the names that stand for these in lib/native.ts.
std::optional<ParkPlace> ToParkPlace(Napi::Value value);
std::optional<PoolUse> ToPoolUse(Napi::Value value);
std::optional<std::string> ToText(Napi::Value value);
std::optional<bool> ToBoolean(Napi::Value value);

// A 32-bit id of a request, a VM or a snapshot.
std::optional<uint32_t> ToId(Napi::Value value);

// A non-negative safe integer. Nothing, with a pending TypeError, otherwise.
std::optional<uint64_t> ToInteger(Napi::Value value);

}  // namespace forklet::binding
