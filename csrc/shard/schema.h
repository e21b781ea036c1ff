// What the columns of a stream's shards are, as far as tokens are concerned (MDS format, encodings of index.json).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/integer.h"

namespace stoker {

/// MDS dtype code of an ndarray header -> type; nothing for floats and unknown codes.
std::optional<IntegerType> integer_type_of_code(uint8_t code);

/// One column. Physical order is the order of Schema::columns.
struct Column {
  enum class Role : uint8_t { kOther, kTokens, kLabels };
  enum class Encoding : uint8_t {
    kOpaque,       // not read
    kBytes,        // bare values
    kArray,        // ndarray with its shape in a header
    kStaticArray,  // bare values, as many as fixed_size says
  };
  Role role = Role::kOther;
  Encoding encoding = Encoding::kOpaque;
  std::optional<IntegerType> type;  // of the values; nothing where the ndarray header says it
  uint32_t fixed_size = 0;          // bytes; 0: variable, with a size word in front of the sample
};

/// The columns of a shard; exactly one has the role kTokens.
struct Schema {
  std::vector<Column> columns;

  uint32_t num_variable() const;  // columns with a size word
  bool has_labels() const;
};

}  // namespace stoker
