#include "engine/planner.h"

#include <utility>

#include "base/error.h"

namespace stoker {

Planner::Planner(std::shared_ptr<ShardStore> store, std::shared_ptr<const Order> order, const LayoutSpec& layout,
                 RankSlice slice, uint64_t first_row)
    : store_(std::move(store)), order_(std::move(order)), kind_(layout.kind), slice_(slice), next_row_(first_row) {
  const uint64_t global_batch = order_->spec().global_batch;
  if (slice_.world_size < 1 || slice_.rank >= slice_.world_size || global_batch % slice_.world_size != 0)
    throw ArgumentError(text("rank must be below world_size, which must divide the global batch; found rank ",
                             slice_.rank, ", world_size ", slice_.world_size, ", global batch ", global_batch, "."));
  if (store_->streams().size() != order_->num_streams())
    throw ArgumentError("the order and the shards are of different streams.");
  for (const StreamFiles& stream : store_->streams()) slots_.emplace_back(stream.shards.size());
  layout_ = make_layout(layout, *order_, *this);
}

BatchPlan Planner::next() {
  BatchPlan plan(order_->num_streams());
  plan_ = &plan;
  ++batch_;
  const uint64_t end_row = next_row_ + order_->spec().global_batch;
  const uint64_t world = slice_.world_size;
  const uint64_t first = next_row_ + (slice_.rank + world - next_row_ % world) % world;
  for (uint64_t row = first; row < end_row; row += world) layout_->append_row(row, plan.rows);
  plan.segment_shards.reserve(plan.rows.segments().size());
  for (const Segment& segment : plan.rows.segments())
    plan.segment_shards.push_back(slots_[segment.stream][segment.shard].index);
  next_row_ = plan.end_row = end_row;
  return plan;
}

Range Planner::samples_of(const Shard& shard, Range things) const {
  return kind_ == LayoutKind::kConcat ? shard.samples_of(things) : things;
}

std::span<const uint32_t> Planner::token_ends(uint32_t stream, uint32_t shard) {
  Slot& slot = slots_[stream][shard];
  if (slot.batch != batch_) {
    plan_->shards.push_back(store_->get({stream, shard}));
    slot = {batch_, static_cast<uint32_t>(plan_->shards.size() - 1)};
  }
  return plan_->shards[slot.index]->token_ends();
}

}  // namespace stoker
