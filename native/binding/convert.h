// Between JavaScript's values and the core's messages. lib/native.ts declares
// the shapes.
#pragma once

#include <napi.h>

#include <optional>

#include "vm/messages.h"

namespace forklet::binding {

Napi::Value ToJs(Napi::Env env, const Event& event);

// Nothing, with a pending TypeError, when the value has another shape.
std::optional<VmConfig> ToVmConfig(Napi::Value value);

// Copies a Uint8Array. Nothing, with a pending TypeError, for anything else.
std::optional<Bytes> ToBytes(Napi::Value value);

// A non-negative safe integer. Nothing, with a pending TypeError, otherwise.
std::optional<uint64_t> ToInteger(Napi::Value value);

}  // namespace forklet::binding
