// A unit that is one sample (`pad`, `pack`): where it lies, how long it is, and what is kept of it.
#pragma once

#include <cstdint>
#include <vector>

#include "base/error.h"
#include "layout/layout.h"
#include "order/cursor.h"
#include "order/sample_list.h"

namespace stoker {

struct SampleUnit {
  uint32_t stream;
  uint32_t shard;
  uint32_t sample;  // in the shard
  uint32_t length;  // tokens
};

/// A sample, or what is kept of it in one row.
struct Part {
  Segment segment;
  uint32_t truncated;  // tokens cut off behind it
};

/// Reads the lengths of the sample's shard. `ranges` is scratch.
SampleUnit find_sample(const Order& order, Unit unit, SampleLengths& lengths, std::vector<ShardRange>& ranges);
SampleUnit measure(SamplePlace place, SampleLengths& lengths);

/// The first `seq_len` tokens of a sample, or all there are.
Part truncate(const SampleUnit& unit, uint32_t seq_len);

/// A sample that is dropped, whole.
Unplaced left_out(const Part& part);

/// Raises the error of a sample longer than seq_len where `overflow` is "error".
void check_length(const LayoutSpec& spec, const Order& order, const SampleUnit& unit, SampleLengths& lengths);

}  // namespace stoker
