// Integer types that are known at run time.
#pragma once

#include <cstdint>

namespace stoker {

/// Of tokens on disk and of a batch's fields, little-endian.
enum class IntegerType : uint8_t { kU8, kI8, kU16, kI16, kU32, kI32, kU64, kI64 };

constexpr uint32_t size_bytes(IntegerType type) { return 1U << (static_cast<uint32_t>(type) / 2); }

/// As numpy calls it.
constexpr const char* name(IntegerType type) {
  constexpr const char* kNames[] = {"uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"};
  return kNames[static_cast<uint32_t>(type)];
}

/// Calls `action` with a value of the C++ type.
template <typename Action>
auto with_integer(IntegerType type, Action action) {
  switch (type) {
    case IntegerType::kU8:
      return action(uint8_t{});
    case IntegerType::kI8:
      return action(int8_t{});
    case IntegerType::kU16:
      return action(uint16_t{});
    case IntegerType::kI16:
      return action(int16_t{});
    case IntegerType::kU32:
      return action(uint32_t{});
    case IntegerType::kI32:
      return action(int32_t{});
    case IntegerType::kU64:
      return action(uint64_t{});
    case IntegerType::kI64:
      break;
  }
  return action(int64_t{});
}

}  // namespace stoker
