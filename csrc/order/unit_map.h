// Ticket -> unit, keeping the permutation tables of the blocks in use.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

#include "order/order.h"

namespace stoker {

/// A part of a shard that units will soon come from.
struct Upcoming {
  uint32_t stream;
  ShardRange range;  // in samples, or tokens for `concat`
};

/// Not thread-safe. One table of up to shuffle_block entries is kept for each (stream, span) in use, within
/// kTableBytes: beyond that the least recently used is made again when it is needed, O(shuffle_block).
class UnitMap {
 public:
  static constexpr size_t kTableBytes = size_t{128} << 20;

  /// `order` must outlive the map.
  explicit UnitMap(const Order& order) : order_(order), passes_(order.num_streams()) {}

  /// The unit of a stream's ticket: a bijection on each pass.
  uint64_t unit(uint32_t stream, uint64_t ticket);

  /// What lies under the blocks entered since the last call and under those that follow them. Empties the list.
  std::vector<Upcoming> take_upcoming() { return std::exchange(upcoming_, {}); }

 private:
  struct Pass {
    uint64_t index = 0;
    Range units{0, 0};
  };
  /// The block that a span of a stream is being read from.
  struct Block {
    Pass pass;
    Visit visit{{}};     // empty where the pass is one block
    uint64_t index = 0;  // of the block in the visit
    std::vector<uint32_t> table;
    uint64_t last_use = 0;
  };

  const Pass& pass_of(uint32_t stream, uint64_t ticket);
  void enter(Block& block, uint32_t stream, uint32_t slot, const Pass& pass, uint64_t index);
  void enter_whole(Block& block, uint32_t stream, const Pass& pass);
  void set_table(Block& block, std::vector<uint32_t> table);
  void announce(uint32_t stream, const std::vector<Range>& units);

  const Order& order_;
  std::vector<Pass> passes_;                    // of each stream, the one last asked for
  std::unordered_map<uint64_t, Block> blocks_;  // by stream and slot
  size_t table_bytes_ = 0;
  uint64_t clock_ = 0;
  std::vector<Upcoming> upcoming_;
};

}  // namespace stoker
