// `pad`, and `pack` as LLM Foundry packs, over samples that are listed batch by batch (see SampleList).
//
// A batch of rows is made of one batch of the list: a sample a row, or what its packer makes of it. Where that is fewer
// rows than there is room for, the others are empty. The shards under the chunk at hand and the next one are told as
// such, and those of so many chunks behind as the order's blocks_ahead say.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "layout/foundry_rows.h"
#include "layout/layout.h"
#include "layout/sample_unit.h"
#include "order/sample_list.h"

namespace stoker {

/// Rows can be asked for in ascending order only, those of a rank.
class ListedLayout final : public Layout {
 public:
  /// Of `order`, the streams' names, the global batch and the blocks ahead are used. In the hints of `start`, lanes are
  /// packers, and what is left over are numbers of samples.
  ListedLayout(const LayoutSpec& spec, const Order& order, SampleLengths& lengths, std::shared_ptr<SampleList> list,
               LayoutStart start);

  void append_row(uint64_t row, Rows& out) override;
  bool approach(uint64_t /*row*/) override { return true; }
  std::vector<BlockChange> take_changes() override { return std::exchange(changes_, {}); }
  std::span<const BlockChange> coming() const override { return changes_; }
  std::shared_ptr<const LaneHints> hints(uint64_t row) override;

 private:
  /// A chunk, and what of which shards it needs, in the order of need.
  struct Block {
    SampleList::Chunk chunk;
    std::vector<std::pair<uint32_t, ShardRange>> shards;  // each with its stream
    enum class Told { kNothing, kComing, kBegins } told = Told::kNothing;
  };
  /// A shard that blocks need which were told to begin.
  struct Use {
    uint32_t num_blocks = 0;
    Range told{};  // samples
  };

  void open_batch();
  void next_block();
  void take_blocks();
  Block make_block(SampleList::Chunk chunk) const;
  void tell(BlockChange::Kind kind, const Block& block);
  void pack(uint32_t packer, std::span<const uint64_t> samples);
  Part part_of(uint64_t sample);
  void restore_leftovers();
  void drop_leftovers();

  const LayoutSpec spec_;
  const Order& order_;
  SampleLengths& lengths_;
  const std::shared_ptr<SampleList> list_;
  LayoutStart start_;

  std::deque<Block> blocks_;  // the one at hand and those behind it
  uint32_t batch_in_chunk_ = 0;
  std::map<std::pair<uint32_t, uint32_t>, Use> uses_;  // by stream and shard
  std::vector<BlockChange> changes_;

  uint64_t batch_ = UINT64_MAX;          // the global one at hand
  std::vector<std::vector<Part>> rows_;  // of it
  uint32_t next_row_ = 0;                // of rows_
  std::vector<Unplaced> unplaced_;
  std::vector<FoundryLeftovers> leftovers_;  // by packer
};

}  // namespace stoker
