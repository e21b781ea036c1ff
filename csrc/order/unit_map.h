// Ticket -> unit, keeping the permutation tables of the blocks in use.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/range.h"
#include "order/order.h"

namespace stoker {

/// Parts of shards that begin or cease to lie under the blocks that units come from, or will come from next; or that
/// will after these, as far as Order::blocks_ahead() says.
struct BlockChange {
  enum class Kind { kBegins, kEnds, kComing };
  uint32_t stream;
  Kind kind;
  // In samples, or tokens for `concat`. An empty one that begins: what was told of the shard before goes on.
  std::vector<ShardRange> ranges;
};

/// Not thread-safe. One table of up to shuffle_block entries is kept for each (stream, span) in use, within
/// `table_bytes`: beyond that the least recently used is made again when it is needed, O(shuffle_block).
class UnitMap {
 public:
  static constexpr size_t kTableBytes = size_t{128} << 20;

  /// `order` must outlive the map.
  explicit UnitMap(const Order& order, size_t table_bytes = kTableBytes)
      : order_(order), limit_bytes_(table_bytes), passes_(order.num_streams()) {}

  /// The unit of a stream's ticket: a bijection on each pass.
  uint64_t unit(uint32_t stream, uint64_t ticket);

  /// The changes since the last call, in order. What begins ends once, as long as the map lives.
  std::vector<BlockChange> take_changes() { return std::exchange(changes_, {}); }

  /// What take_changes() would give. Valid until the next call.
  std::span<const BlockChange> coming() const { return changes_; }

  /// Memory that the tables take.
  size_t table_bytes() const { return table_bytes_; }

 private:
  struct Pass {
    uint64_t index = 0;
    Range units;
  };
  /// The block that a span of a stream is being read from.
  struct Block {
    bool is_entered = false;
    Pass pass;
    uint64_t index = 0;           // of the block in the visit, or in the line where shuffle is off
    Visit visit{{}};              // empty where the pass is one block
    std::vector<uint32_t> table;  // permutation of the block; empty where shuffle is off
    std::vector<ShardRange> here;
    std::vector<ShardRange> next;  // under the block that follows
    uint64_t last_use = 0;
  };

  Block& block_at(uint32_t stream, uint64_t place);
  const Pass& pass_of(uint32_t stream, uint64_t ticket);
  void enter(Block& block, uint32_t stream, uint32_t slot, const Pass& pass, uint64_t index);
  void enter_whole(Block& block, uint32_t stream, const Pass& pass);
  void enter_unshuffled(Block& block, uint32_t stream, uint64_t index);
  void set_table(Block& block, std::vector<uint32_t> table);
  std::vector<ShardRange> shards_behind(const Block& block, uint32_t stream, uint32_t slot, uint64_t blocks) const;
  std::vector<ShardRange> shards_under(uint32_t stream, const std::vector<Range>& units) const;
  void move_to(Block& block, uint32_t stream, std::vector<ShardRange> here, std::vector<ShardRange> next);
  void change(uint32_t stream, BlockChange::Kind kind, std::vector<ShardRange> ranges);

  const Order& order_;
  const size_t limit_bytes_;
  std::vector<Pass> passes_;                    // of each stream, the one last asked for
  std::unordered_map<uint64_t, Block> blocks_;  // by stream and slot
  size_t table_bytes_ = 0;
  uint64_t clock_ = 0;
  std::vector<BlockChange> changes_;
};

}  // namespace stoker
