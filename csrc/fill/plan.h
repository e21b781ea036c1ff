// The plan of one batch of one rank: everything that fill needs, before a byte is copied.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "layout/layout.h"
#include "layout/rows.h"
#include "shard/shard.h"

namespace stoker {

struct BatchPlan {
  explicit BatchPlan(uint32_t num_streams) : rows(num_streams) {}

  Rows rows;
  std::vector<std::shared_ptr<const Shard>> shards;  // that the rows read from, kept open
  std::vector<uint32_t> segment_shards;              // for each segment of `rows`, its place in `shards`
  std::vector<uint32_t> segment_loss;                // for each segment, its loss tokens: written when it is filled
  std::vector<uint32_t> row_tokens;                  // of each row, and its loss tokens: counted when all are filled
  std::vector<uint32_t> row_loss;
  uint64_t end_row = 0;                    // global rows delivered once this batch is: the state after it
  std::shared_ptr<const LaneHints> hints;  // of the state after it, where the layout needs any
};

}  // namespace stoker
