// Plans the batches of one rank: order, lengths and layout together.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
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

/// Not thread-safe, but for what is const and stop().
class Planner final : private SampleLengths {
 public:
  /// The first batch begins at global row `first_row`; `start` has hints of that row or one before. With a `list` the
  /// samples are those, of this rank, and not the order's.
  Planner(std::shared_ptr<ShardStore> store, std::shared_ptr<const Order> order, const LayoutSpec& layout,
          RankSlice slice, uint64_t first_row, const LayoutStart& start = {},
          std::shared_ptr<SampleList> list = nullptr);

  /// The plan of the next batch. After an error the planner must not be used again.
  BatchPlan next();

  /// The global row at which the next batch begins.
  uint64_t next_row() const { return next_row_; }

  /// Goes a part of the way to the next batch where that is far (see Layout::approach). Returns whether it is there;
  /// next() would go the rest of it at once.
  bool approach();

  /// Lengths that have been asked for: how far a plan is that has far to walk.
  uint64_t num_lengths_read() const { return num_lengths_read_.load(std::memory_order_relaxed); }  // for looking at

  /// Whether planning may wait: for a shard that is supplied, or for the list. What for, as the rest of a sentence; and
  /// seconds that it has waited.
  bool may_wait() const { return list_ != nullptr || store_->has_supplied_streams(); }
  std::string waiting_for() const;
  double waited_s() const;

  /// Ends all waiting: next() raises ClosedError.
  void stop();

  /// See UnitMap. Their ranges are what samples_of() takes.
  std::vector<BlockChange> take_changes() { return layout_->take_changes(); }

  /// The samples of a shard that a range of the order's things (samples, or tokens for `concat`), not empty, is of.
  Range samples_of(const Shard& shard, Range things) const;

 private:
  std::span<const uint32_t> token_ends(uint32_t stream, uint32_t shard) override;
  std::string path(uint32_t stream, uint32_t shard) override;
  void want_coming(ShardId id);
  static void check_covers(const Shard& shard, const Segment& segment);
  std::pair<uint64_t, uint64_t> rows_of_batch() const;

  /// Shards by number, each once.
  class ShardList {
   public:
    explicit ShardList(const std::vector<StreamFiles>& streams);
    uint32_t index_of(ShardId id, ShardStore& store);
    std::vector<std::shared_ptr<const Shard>> take();

    std::vector<std::shared_ptr<const Shard>> shards;

   private:
    struct Place {
      uint64_t list = 0;  // number of the list that `index` is of
      uint32_t index = 0;
    };
    std::vector<std::vector<Place>> places_;  // by stream and shard
    uint64_t list_ = 1;
  };

  std::shared_ptr<ShardStore> store_;
  std::shared_ptr<const Order> order_;
  const LayoutKind kind_;
  const RankSlice slice_;
  const std::shared_ptr<SampleList> list_;  // null: there is none
  uint64_t next_row_;
  ShardList in_plan_;                           // that the segments of the plan at hand are of
  ShardList looked_at_;                         // `pack`: whose lengths were read lately
  std::atomic<uint64_t> num_lengths_read_ = 0;  // written by the thread that plans
  std::unique_ptr<Layout> layout_;
};

}  // namespace stoker
