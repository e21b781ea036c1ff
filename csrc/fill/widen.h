// Copies tokens out of a shard, widening them to the batch's integer type.
#pragma once

#include <cstdint>

#include "shard/sample.h"

namespace stoker {

/// Copies `count` values of `source` from value `begin` on to `ids`, and to `labels` too where that is not null.
/// Returns the largest value as an unsigned 64-bit number, a negative one counting as larger than all others; 0 where
/// no value of the type can reach `limit`. Instantiated for uint16_t, int32_t and int64_t.
template <typename Integer>
uint64_t widen(const TokenArray& source, uint32_t begin, uint32_t count, uint64_t limit, Integer* ids, Integer* labels);

/// What widen_labels() found.
struct LabelCounts {
  uint64_t largest;      // as widen() returns it, of the labels that are not kIgnoreLabel
  uint32_t num_ignored;  // labels that are
};

/// Copies labels in the same way, unless `labels` is null; kIgnoreLabel modulo 2^16 as uint16_t.
template <typename Integer>
LabelCounts widen_labels(const TokenArray& source, uint32_t begin, uint32_t count, Integer* labels);

/// How many of `count` values from `begin` on equal `value`.
uint32_t count_equal(const TokenArray& source, uint32_t begin, uint32_t count, int64_t value);

/// Value `index` of an array; of uint64 its bits.
int64_t value_at(const TokenArray& source, uint32_t index);

}  // namespace stoker
