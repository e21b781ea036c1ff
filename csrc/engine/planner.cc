#include "engine/planner.h"

#include <numeric>
#include <utility>

#include "base/error.h"

namespace stoker {
namespace {

constexpr size_t kMostLookedAt = 64;  // shards that planning keeps open besides, whatever the store closes

}  // namespace

Planner::Planner(std::shared_ptr<ShardStore> store, std::shared_ptr<const Order> order, const LayoutSpec& layout,
                 RankSlice slice, uint64_t first_row, const LayoutStart& start, std::shared_ptr<SampleList> list)
    : store_(std::move(store)),
      order_(std::move(order)),
      kind_(layout.kind),
      slice_(slice),
      list_(std::move(list)),
      next_row_(first_row),
      in_plan_(store_->streams()),
      looked_at_(store_->streams()) {
  const uint64_t global_batch = order_->spec().global_batch;
  if (slice_.world_size < 1 || slice_.rank >= slice_.world_size || global_batch % slice_.world_size != 0)
    throw ArgumentError(text("rank must be below world_size, which must divide the global batch; found rank ",
                             slice_.rank, ", world_size ", slice_.world_size, ", global batch ", global_batch, "."));
  if (store_->streams().size() != order_->num_streams())
    throw ArgumentError("the order and the shards are of different streams.");
  layout_ = make_layout(layout, *order_, *this, start, list_);
}

// The rank's first row of the next batch, and the row behind the batch.
std::pair<uint64_t, uint64_t> Planner::rows_of_batch() const {
  const uint64_t world = slice_.world_size;
  return {next_row_ + (slice_.rank + world - next_row_ % world) % world, next_row_ + order_->spec().global_batch};
}

bool Planner::approach() {
  const auto [first, end] = rows_of_batch();
  // The rank's first row of each lane in the batch.
  const uint64_t lanes = order_->lanes() / std::gcd(order_->lanes(), slice_.world_size);
  for (uint64_t i = 0; i < lanes && first + i * slice_.world_size < end; ++i)
    if (!layout_->approach(first + i * slice_.world_size)) return false;
  return true;
}

BatchPlan Planner::next() {
  BatchPlan plan(order_->num_streams());
  const auto [first, end] = rows_of_batch();
  for (uint64_t row = first; row < end; row += slice_.world_size) layout_->append_row(row, plan.rows);
  plan.segment_shards.reserve(plan.rows.segments().size());
  for (const Segment& segment : plan.rows.segments()) {
    plan.segment_shards.push_back(in_plan_.index_of({segment.stream, segment.shard}, *store_));
    if (kind_ == LayoutKind::kPack) check_covers(*in_plan_.shards[plan.segment_shards.back()], segment);
  }
  plan.shards = in_plan_.take();
  plan.segment_loss.resize(plan.segment_shards.size());
  plan.hints = layout_->hints(end);
  next_row_ = plan.end_row = end;
  return plan;
}

std::string Planner::waiting_for() const {
  if (list_ && list_->is_awaited()) return "; the order of the epoch is being worked out";
  const std::optional<ShardId> awaited = store_->supply().awaited();
  if (!awaited) return {};
  const StreamFiles& stream = store_->streams()[awaited->stream];
  return text("; it needs shard ", awaited->shard, " of stream \"", stream.name, "\", which is being ",
              stream.supply == StreamFiles::Supply::kMade ? "prepared" : "fetched");
}

double Planner::waited_s() const { return store_->supply().waited_s() + (list_ ? list_->waited_s() : 0); }

void Planner::stop() {
  store_->supply().stop();
  if (list_) list_->close();
}

Range Planner::samples_of(const Shard& shard, Range things) const {
  return kind_ == LayoutKind::kConcat ? shard.samples_of(things) : things;
}

std::span<const uint32_t> Planner::token_ends(uint32_t stream, uint32_t shard) {
  num_lengths_read_.store(num_lengths_read() + 1, std::memory_order_relaxed);  // one thread writes
  if (store_->is_supplied(stream)) want_coming({stream, shard});
  // Rows that are made now read from the shard; those of `pack` maybe much later, or never where a lane is walked.
  ShardList& list = kind_ == LayoutKind::kPack ? looked_at_ : in_plan_;
  if (kind_ == LayoutKind::kPack && list.shards.size() >= kMostLookedAt) list.take();
  return list.shards[list.index_of({stream, shard}, *store_)]->token_ends();
}

// Opening a shard that is still to be supplied waits: what comes behind it is asked for before that, to be supplied
// meanwhile.
void Planner::want_coming(ShardId id) {
  if (store_->is_open(id) || store_->supply().is_ready(id)) return;
  for (const BlockChange& change : layout_->coming()) {
    if (change.kind == BlockChange::Kind::kEnds || !store_->is_supplied(change.stream)) continue;
    for (const ShardRange& range : change.ranges) store_->want({change.stream, range.shard});
  }
}

std::string Planner::path(uint32_t stream, uint32_t shard) { return store_->get({stream, shard})->path(); }

// A row of a window may be emitted long after its lengths were read, from a shard that was closed and opened meanwhile.
void Planner::check_covers(const Shard& shard, const Segment& segment) {
  const std::span<const uint32_t> ends = shard.token_ends();
  if (segment.sample < ends.size() &&
      segment.token_end <= ends[segment.sample] - (segment.sample == 0 ? 0 : ends[segment.sample - 1]))
    return;
  throw shard.corrupt(segment.sample, "is shorter than it was: the shard has been replaced");
}

// ---------------------------------------------------------------- lists of shards
Planner::ShardList::ShardList(const std::vector<StreamFiles>& streams) {
  for (const StreamFiles& stream : streams) places_.emplace_back(stream.shards.size());
}

uint32_t Planner::ShardList::index_of(ShardId id, ShardStore& store) {
  Place& place = places_[id.stream][id.shard];
  if (place.list != list_) {
    shards.push_back(store.get(id));
    place = {list_, static_cast<uint32_t>(shards.size() - 1)};
  }
  return place.index;
}

// Begins another list.
std::vector<std::shared_ptr<const Shard>> Planner::ShardList::take() {
  ++list_;
  return std::exchange(shards, {});
}

}  // namespace stoker
