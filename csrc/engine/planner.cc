#include "engine/planner.h"

#include <utility>

#include "base/error.h"

namespace stoker {

Planner::Planner(std::shared_ptr<ShardStore> store, std::shared_ptr<const Order> order, const LayoutSpec& layout,
                 RankSlice slice, const LayoutStart& start)
    : store_(std::move(store)), order_(std::move(order)), kind_(layout.kind), slice_(slice), next_row_(start.row) {
  const uint64_t global_batch = order_->spec().global_batch;
  if (slice_.world_size < 1 || slice_.rank >= slice_.world_size || global_batch % slice_.world_size != 0)
    throw ArgumentError(text("rank must be below world_size, which must divide the global batch; found rank ",
                             slice_.rank, ", world_size ", slice_.world_size, ", global batch ", global_batch, "."));
  if (store_->streams().size() != order_->num_streams())
    throw ArgumentError("the order and the shards are of different streams.");
  for (const StreamFiles& stream : store_->streams()) in_plan_.emplace_back(stream.shards.size());
  layout_ = make_layout(layout, *order_, *this, start);
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
  for (const Segment& segment : plan.rows.segments()) {
    plan.segment_shards.push_back(index_in_plan(segment.stream, segment.shard));
    if (kind_ == LayoutKind::kPack) check_covers(*plan.shards[plan.segment_shards.back()], segment);
  }
  plan.segment_loss.resize(plan.segment_shards.size());
  plan.hints = layout_->hints(end_row);
  next_row_ = plan.end_row = end_row;
  return plan;
}

Range Planner::samples_of(const Shard& shard, Range things) const {
  return kind_ == LayoutKind::kConcat ? shard.samples_of(things) : things;
}

std::span<const uint32_t> Planner::token_ends(uint32_t stream, uint32_t shard) {
  if (is_cancelled_.load(std::memory_order_relaxed)) throw ClosedError("the loader is closed.");
  num_lengths_read_.store(num_lengths_read() + 1, std::memory_order_relaxed);  // one thread writes
  return plan_->shards[index_in_plan(stream, shard)]->token_ends();
}

std::string Planner::path(uint32_t stream, uint32_t shard) {
  return plan_->shards[index_in_plan(stream, shard)]->path();
}

uint32_t Planner::index_in_plan(uint32_t stream, uint32_t shard) {
  InPlan& place = in_plan_[stream][shard];
  if (place.batch != batch_) {
    plan_->shards.push_back(store_->get({stream, shard}));
    place = {batch_, static_cast<uint32_t>(plan_->shards.size() - 1)};
  }
  return place.index;
}

// A row of a window may be emitted long after its lengths were read, from a shard that was closed and opened meanwhile.
void Planner::check_covers(const Shard& shard, const Segment& segment) {
  const std::span<const uint32_t> ends = shard.token_ends();
  if (segment.sample < ends.size() &&
      segment.token_end <= ends[segment.sample] - (segment.sample == 0 ? 0 : ends[segment.sample - 1]))
    return;
  throw shard.corrupt(segment.sample, "is shorter than it was: the shard has been replaced");
}

}  // namespace stoker
