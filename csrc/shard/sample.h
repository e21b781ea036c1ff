// The token columns of one sample: how long they are, and where their values lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <stdexcept>

#include "shard/schema.h"

namespace stoker {

/// The values of a column of one sample, unaligned, little-endian. Points into the shard.
struct TokenArray {
  IntegerType type = IntegerType::kU8;
  uint32_t size = 0;  // values, not bytes
  const std::byte* values = nullptr;
};

struct SampleTokens {
  TokenArray tokens;
  std::optional<TokenArray> labels;  // where the schema has them
};

/// A sample's bytes break the MDS format. The message is the end of a sentence that begins "sample N of PATH".
struct SampleFormatError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Finds the token columns of a sample (spec: size words of variable columns, then all columns). Reads the size words
/// and array headers, no values. Raises SampleFormatError.
SampleTokens parse_sample(const Schema& schema, std::span<const std::byte> sample);

/// Tells the number of tokens of a sample from its size in bytes, where the columns allow it. Immutable.
class LengthRule {
 public:
  /// Nothing where a variable column that holds no tokens, or an ndarray of unstated type, makes it impossible.
  static std::optional<LengthRule> of(const Schema& schema);

  /// Tokens of a sample of `sample_bytes`; nothing if no sample of the schema has that size. Whether the sample's own
  /// size words and headers agree is checked when it is parsed.
  std::optional<uint32_t> tokens(uint32_t sample_bytes) const;

 private:
  LengthRule() = default;
  std::optional<uint32_t> fixed_tokens_;  // static shape
  uint64_t constant_bytes_ = 0;           // of a sample, whatever its tokens; with a static shape, at least
  uint32_t num_headers_ = 0;              // array headers, whose size depends on the shape
  uint32_t bytes_per_token_ = 0;          // over all columns
};

}  // namespace stoker
