#pragma once

#include <cstdint>
#include <initializer_list>
#include <string_view>
#include <vector>

namespace forklet::aml {

// The few terms of ACPI Machine Language (ACPI 6.4, chapter 20) that our
// namespace is made of. Each function returns the encoded bytes; containers
// take the encoded bytes of what they hold.
using Code = std::vector<uint8_t>;

Code Join(std::initializer_list<Code> parts);

// Names are one segment: 1 to 4 characters, padded with '_'.
Code Name(std::string_view name, const Code& value);
Code Scope(std::string_view name, const Code& body);
Code Device(std::string_view name, const Code& body);

Code Integer(uint64_t value);
Code String(std::string_view text);
// A compressed EISA id such as "PNP0501".
Code EisaId(std::string_view id);
Code Package(const std::vector<Code>& elements);

// A buffer of resource descriptors, with its end tag.
Code ResourceTemplate(const Code& descriptors);
Code Memory32Fixed(uint32_t address, uint32_t bytes);
Code Io(uint16_t port, uint8_t bytes);
// An edge-triggered, active-high, exclusive interrupt.
Code Interrupt(uint32_t gsi);

}  // namespace forklet::aml
