// A unit that is one sample (`pad`, `pack`): where it lies and how long it is.
#pragma once

#include <cstdint>
#include <vector>

#include "base/error.h"
#include "layout/layout.h"
#include "order/cursor.h"

namespace stoker {

struct SampleUnit {
  uint32_t stream;
  uint32_t shard;
  uint32_t sample;  // in the shard
  uint32_t length;  // tokens
};

/// Reads the lengths of the sample's shard. `ranges` is scratch.
SampleUnit find_sample(const Order& order, Unit unit, SampleLengths& lengths, std::vector<ShardRange>& ranges);

/// The error of a sample longer than seq_len where `overflow` is "error".
ArgumentError too_long(const Order& order, const SampleUnit& unit, SampleLengths& lengths, uint32_t seq_len);

}  // namespace stoker
