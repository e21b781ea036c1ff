#include "shard/schema.h"

#include <algorithm>

namespace stoker {

std::optional<TokenType> token_type_of_code(uint8_t code) {
  switch (code) {
    case 8:
      return TokenType::kU8;
    case 9:
      return TokenType::kI8;
    case 16:
      return TokenType::kU16;
    case 17:
      return TokenType::kI16;
    case 32:
      return TokenType::kU32;
    case 33:
      return TokenType::kI32;
    case 64:
      return TokenType::kU64;
    case 65:
      return TokenType::kI64;
    default:
      return std::nullopt;
  }
}

const char* name(TokenType type) {
  static constexpr const char* kNames[] = {"uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"};
  return kNames[static_cast<size_t>(type)];
}

uint32_t Schema::num_variable() const {
  return static_cast<uint32_t>(
      std::count_if(columns.begin(), columns.end(), [](const Column& c) { return c.fixed_size == 0; }));
}

bool Schema::has_labels() const {
  return std::any_of(columns.begin(), columns.end(), [](const Column& c) { return c.role == Column::Role::kLabels; });
}

}  // namespace stoker
