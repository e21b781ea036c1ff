// Plans the batches of one rank: order, lengths and layout together.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/range.h"
#include "fill/plan.h"
#include "layout/layout.h"
#include "order/order.h"
#include "shard/shard_store.h"

namespace stoker {

/// Which rows of a global batch a rank serves: R with R mod world_size == rank.
struct RankSlice {
  uint32_t rank = 0;
  uint32_t world_size = 1;  // divides the global batch
};

/// Not thread-safe, but for samples_of(), cancel() and num_lengths_read().
class Planner final : private SampleLengths {
 public:
  /// The first batch begins at global row start.row.
  Planner(std::shared_ptr<ShardStore> store, std::shared_ptr<const Order> order, const LayoutSpec& layout,
          RankSlice slice, const LayoutStart& start);

  /// The plan of the next batch. After an error the planner must not be used again.
  BatchPlan next();

  /// The global row at which the next batch begins.
  uint64_t next_row() const { return next_row_; }

  /// Makes next() raise ClosedError soon, the one at hand too: it may have far to walk.
  void cancel() { is_cancelled_.store(true, std::memory_order_relaxed); }  // nothing else is told by it

  /// Lengths that have been asked for: how far a plan is that has far to walk.
  uint64_t num_lengths_read() const { return num_lengths_read_.load(std::memory_order_relaxed); }  // for looking at

  /// See UnitMap. Their ranges are what samples_of() takes.
  std::vector<BlockChange> take_changes() { return layout_->take_changes(); }

  /// The samples of a shard that a range of the order's things (samples, or tokens for `concat`), not empty, is of.
  Range samples_of(const Shard& shard, Range things) const;

 private:
  std::span<const uint32_t> token_ends(uint32_t stream, uint32_t shard) override;
  std::string path(uint32_t stream, uint32_t shard) override;
  uint32_t index_in_plan(uint32_t stream, uint32_t shard);
  static void check_covers(const Shard& shard, const Segment& segment);

  /// Where a shard stands in the plan at hand.
  struct InPlan {
    uint64_t batch = 0;  // number of the batch that `index` is of; 0: none
    uint32_t index = 0;
  };

  std::shared_ptr<ShardStore> store_;
  std::shared_ptr<const Order> order_;
  const LayoutKind kind_;
  const RankSlice slice_;
  uint64_t next_row_;
  uint64_t batch_ = 0;                        // batches begun
  std::vector<std::vector<InPlan>> in_plan_;  // by stream and shard
  BatchPlan* plan_ = nullptr;                 // the plan at hand
  std::atomic<bool> is_cancelled_ = false;
  std::atomic<uint64_t> num_lengths_read_ = 0;  // written by the thread that plans
  std::unique_ptr<Layout> layout_;
};

}  // namespace stoker
