#include "shard/schema.h"

#include <algorithm>

namespace stoker {

std::optional<IntegerType> integer_type_of_code(uint8_t code) {
  switch (code) {
    case 8:
      return IntegerType::kU8;
    case 9:
      return IntegerType::kI8;
    case 16:
      return IntegerType::kU16;
    case 17:
      return IntegerType::kI16;
    case 32:
      return IntegerType::kU32;
    case 33:
      return IntegerType::kI32;
    case 64:
      return IntegerType::kU64;
    case 65:
      return IntegerType::kI64;
    default:
      return std::nullopt;
  }
}

uint32_t Schema::num_variable() const {
  return static_cast<uint32_t>(
      std::count_if(columns.begin(), columns.end(), [](const Column& c) { return c.fixed_size == 0; }));
}

bool Schema::has_labels() const {
  return std::any_of(columns.begin(), columns.end(), [](const Column& c) { return c.role == Column::Role::kLabels; });
}

}  // namespace stoker
